"""The job files: shell that parses, requeues that happen on exit code 42 only, YAML with the fields of its schema."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
import yaml

from curia2_jax.parallel.cluster import cluster

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("slurm/*"), *LAUNCH.glob("tpu/*")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shell_parses(script):
    subprocess.run(["bash", "-n", script], check=True)


def fake(folder: pathlib.Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)


def slurm(folder: pathlib.Path, python: str) -> dict[str, str]:
    """The environment of a job whose srun starts two tasks of `python`, waits and tells the highest code, as srun does;
    folder/log has what was called."""
    fake(folder, "srun", f"""
echo "srun $*" >> "{folder}/log"
shift
for SLURM_PROCID in 0 1; do export SLURM_PROCID; env --default-signal "$@" & tasks+=($!); done
echo "${{tasks[*]}}" > "{folder}/tasks"
for task in "${{tasks[@]}}"; do
  until wait "$task"; code=$?; ! kill -0 "$task" 2> /dev/null; do :; done
  if ((code > worst)); then worst=$code; fi
done
exit $((worst))
""")  # fmt: skip
    fake(folder, "scontrol", f'echo "scontrol $*" >> "{folder}/log"\n')
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "launch").symlink_to(LAUNCH)
    fake(folder / ".venv" / "bin", "python", f'echo "$*" >> "{folder}/log"\n' + python)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
            "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}  # fmt: skip


PRETRAIN, SWEEP = LAUNCH / "slurm" / "pretrain.sbatch", LAUNCH / "slurm" / "sweep.sbatch"


@pytest.mark.parametrize(
    ("script", "command", "requeue"),
    [
        (PRETRAIN, "launch/main.py --config=configs/vitg.py --workdir=a b", "scontrol requeue 7\n"),
        (SWEEP, "launch/sweep.py --config=configs/vitg.py --workdir=a b --only=3", "scontrol requeue 5_3\n"),
    ],
)
@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((0, 0), 0), ((1, 1), 1), ((2, 2), 2), ((42, 42), 42), ((43, 43), 43),
        ((42, 137), 42),  # one was killed by the kernel: the other has noticed
        ((137, 137), 137), ((42, 43), 43), ((42, 1), 1), ((2, 42), 2), ((1, 137), 1),
    ],
)  # fmt: skip
def test_slurm_requeues_when_a_task_says_42_and_none_forbids_it(tmp_path, script, command, requeue, codes, code):
    env = slurm(tmp_path, f"codes=({codes[0]} {codes[1]})\nexit ${{codes[$SLURM_PROCID]}}\n")
    line = ["bash", script, "--config=configs/vitg.py", "--workdir=a b"]
    done = subprocess.run(line, env=env, check=False, cwd=tmp_path)
    log = (tmp_path / "log").read_text()
    assert done.returncode == code
    assert log.splitlines().count(command) == 2
    assert (requeue in log) == (code == 42)
    assert not list(tmp_path.glob(".curia2-*"))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_tasks_hear_signals_and_say_their_own_code(tmp_path, number):
    env = slurm(
        tmp_path, 'trap "sleep 0.2; exit 42" USR1 TERM\ntouch "ready-$SLURM_PROCID"\nwhile :; do sleep 0.05; done\n'
    )
    job = subprocess.Popen(["bash", PRETRAIN], env=env, cwd=tmp_path)
    while not all((tmp_path / f"ready-{process}").exists() for process in (0, 1)):
        time.sleep(0.02)
    for task in (tmp_path / "tasks").read_text().split():
        os.kill(int(task), number)
    assert job.wait(timeout=60) == 42
    assert "scontrol requeue 7" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("codes", "expected", "runs"), [([0], 0, 1), ([42, 42, 0], 0, 3), ([42, 43], 43, 2), ([1], 1, 1)]
)
def test_tpu_goes_on_after_42_only(tmp_path, codes, expected, runs):
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    # The first line of `codes` is the exit code of the next run; copying and set-up succeed.
    fake(tmp_path, "gcloud", f"""
if [[ "$*" == *launch/main.py* ]]; then
  echo "$*" >> "{tmp_path}/log"
  code=$(head -1 "{tmp_path}/codes"); sed -i 1d "{tmp_path}/codes"; exit "$code"
fi
""")  # fmt: skip
    fake(tmp_path, "git", "exit 0\n")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NAME": "n", "ZONE": "z", "TYPE": "t", "VERSION": "v"}
    script = LAUNCH / "tpu" / "queued_resource.sh"
    done = subprocess.run(["bash", script, "train", "--workdir=a b"], env=env, check=False)
    log = (tmp_path / "log").read_text()
    assert done.returncode == expected
    assert log.count("--workdir=a\\ b") == runs


def test_tpu_worker_learns_its_place(tmp_path):
    """The shell that runs on a worker, with a metadata server that is a script."""
    fake(tmp_path, "curl", """
case "$*" in
  *agent-worker-number) echo 1 ;;
  *worker-network-endpoints) echo "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3" ;;
esac
""")  # fmt: skip
    text = (LAUNCH / "tpu" / "queued_resource.sh").read_text()
    worker = text.split("worker='")[1].split("'\n")[0].split("cd curia2")[0]
    shown = subprocess.run(
        ["bash", "-c", worker + 'echo "$TPU_WORKER_ID $TPU_WORKER_HOSTNAMES"'],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    found = cluster({"TPU_WORKER_ID": shown[0], "TPU_WORKER_HOSTNAMES": shown[1]})
    assert (found.coordinator, found.processes, found.process) == ("10.0.0.2:8476", 2, 1)


def test_jobset():
    jobset = yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    name, spec = jobset["metadata"]["name"], jobset["spec"]
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]

    # Exit codes other than 42 fail the Job by its pod failure policy, 42 by its backoff limit of zero.
    actions = {reason: r["action"] for r in spec["failurePolicy"]["rules"] for reason in r["onJobFailureReasons"]}
    assert actions == {"PodFailurePolicy": "FailJobSet", "BackoffLimitExceeded": "RestartJobSetAndIgnoreMaxRestarts"}
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (fails,) = [r for r in job["podFailurePolicy"]["rules"] if r["action"] == "FailJob"]
    assert fails["onExitCodes"] == {"containerName": container["name"], "operator": "NotIn", "values": [42]}
    assert (job["backoffLimit"], job["completionMode"], pod["restartPolicy"]) == (0, "Indexed", "Never")
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}

    # Every pod finds the same coordinator, which is the first pod, and its own number.
    env = {e["name"]: e["value"] for e in container["env"]}
    found = [cluster({**env, "JOB_COMPLETION_INDEX": str(i)}) for i in range(job["completions"])]
    assert job["parallelism"] == job["completions"] == found[0].processes
    assert {c.coordinator for c in found} == {
        f"{name}-{replicated['name']}-0-0.{name}:{container['ports'][0]['containerPort']}"
    }
    assert [c.process for c in found] == list(range(8))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck on this machine")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck(script):
    subprocess.run(["shellcheck", script], check=True)
