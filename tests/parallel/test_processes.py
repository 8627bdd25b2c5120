"""Real processes on loopback, through launch/main.py: they train as one, stop as one, and go on as one."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from curia2_jax.telemetry import metrics
from tests.data.small_corpus import write_small_corpus

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = """
from ml_collections import ConfigDict
from tests.training.tiny import tiny_config

def get_config():
    c = ConfigDict(tiny_config(
        total_steps=16, checkpoint__every_steps=100, parallel__fsdp={fsdp}, data__global_batch={batch},
        crops__num_local=1, objective__sigreg__weight=0.0, model__width=64,
        probe__every_steps=8,
    ))
    c.data.corpus = {corpus!r}
    return c
"""


class Job:
    """`processes` runs of launch/main.py that share `devices` virtual devices."""

    def __init__(
        self, config: pathlib.Path, workdir: pathlib.Path, processes: int, devices: int, more: Sequence[str] = ()
    ):
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices // processes),
            "JAX_COMPILATION_CACHE_DIR": str(config.parent / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_llvm_disable_expensive_passes=true",
            "PYTHONPATH": str(ROOT),
        }
        with socket.socket() as s:
            s.bind(("localhost", 0))
            address = f"localhost:{s.getsockname()[1]}"
        command = [
            sys.executable,
            str(ROOT / "launch" / "main.py"),
            f"--config={config}",
            f"--workdir={workdir}",
            *more,
        ]
        self.workdir, self.processes = workdir, []
        for i in range(processes):
            flags = [f"--coordinator={address}", f"--num-processes={processes}", f"--process-id={i}"]
            line = command + (flags if processes > 1 else [])
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            self.processes.append(subprocess.Popen(line, env=env, cwd=workdir.parent, **pipes))

    def wait(self) -> tuple[list[int], list[str]]:
        outputs = [p.communicate(timeout=1200)[0] for p in self.processes]
        return [p.returncode for p in self.processes], outputs

    def rows(self) -> list[dict]:
        """Of steps: not what was seen before the first."""
        return [row for row in metrics.read(self.workdir / "metrics.jsonl")[0] if row["step"]]

    def stop(self, process: int) -> None:
        """SIGTERM to one, once the first step is logged."""
        self.reach(1)
        self.processes[process].send_signal(signal.SIGTERM)

    def reach(self, rows: int) -> None:
        """Waits until so many steps are logged."""
        deadline = time.monotonic() + 900
        while len(self.rows()) < rows and time.monotonic() < deadline:
            assert all(p.poll() is None for p in self.processes), self.wait()
            time.sleep(0.05)

    def steps(self) -> list[str]:
        return sorted(p.name for p in (self.workdir / "checkpoints").iterdir())


def config_file(folder: pathlib.Path, fsdp: int, devices: int) -> pathlib.Path:
    write_small_corpus(folder / "corpus")
    path = folder / "config.py"
    path.write_text(CONFIG.format(fsdp=fsdp, batch=4 * devices, corpus=str(folder / "corpus")))
    return path


def stop_one(folder: pathlib.Path, processes: int, devices: int, fsdp: int) -> tuple[pathlib.Path, int]:
    """SIGTERM to the last process: all save the same step and end with 42. Returns the config and that step."""
    config = config_file(folder, fsdp, devices)
    job = Job(config, folder / "run", processes, devices)
    job.stop(processes - 1)
    codes, outputs = job.wait()
    assert codes == [42] * processes, outputs
    (saved,) = job.steps()
    assert 0 < int(saved) < 16
    # Only process 0 talks.
    assert f"stopped at step {saved}" in outputs[0]
    assert not any("step 1" in output or "compiled" in output for output in outputs[1:]), outputs
    assert [row["step"] for row in job.rows()] == list(range(1, int(saved) + 1))
    seen = metrics.read(job.workdir / "metrics.jsonl")[0][0]  # by all of them, before the first step
    assert seen["step"] == 0 and {"probe/height_ridge", "probe_patch/height_knn", "monitor/lidar"} <= seen.keys()
    return config, int(saved)


def test_two_processes_stop_as_one(tmp_path):
    stop_one(tmp_path, processes=2, devices=2, fsdp=2)


@pytest.mark.soak
@pytest.mark.parametrize(("processes", "devices", "fsdp"), [(2, 2, 2), (2, 4, 2), (4, 8, 4)])
def test_processes_are_one_run(tmp_path, processes, devices, fsdp):
    """They go on together, and every loss is that of one process with as many devices and the same batch."""
    config, saved = stop_one(tmp_path, processes, devices, fsdp)
    jobs = []
    for name, number in (("run", processes), ("alone", 1)):  # one after the other, on the cores there are
        jobs.append(Job(config, tmp_path / name, number, devices))
        codes, outputs = jobs[-1].wait()
        assert set(codes) == {0}, outputs
    job, alone = jobs
    assert job.steps() == sorted([str(saved), "16"])
    assert (tmp_path / "run" / "state.sha256").exists()
    rows, expected = job.rows(), alone.rows()
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    for one, other in ((rows[number], expected[number]) for number in (7, 15)):
        assert {"probe/height_ridge", "probe_patch/modality_knn", "monitor/lidar"} <= one.keys()
        names = [name for name in one if name.startswith(("probe", "monitor"))]
        assert [one[name] for name in names] == pytest.approx([other[name] for name in names], rel=0.05, abs=0.05)


@pytest.mark.soak
def test_a_mistake_ends_every_process(tmp_path):
    config = config_file(tmp_path, 1, 2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something.txt").write_text("not a run")
    codes, outputs = Job(config, tmp_path / "run", 2, 2).wait()
    assert codes == [2, 2] and "not empty and no run" in outputs[0] and "process 0" in outputs[1]


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_dies_in_mid_run_and_the_next_call_goes_on(tmp_path, victim, number):
    """The other ends with 42 in one line, whatever it was in; nothing that was saved is lost."""
    config = config_file(tmp_path, 2, 2)
    more = ["--config.total_steps=400", "--config.checkpoint.every_steps=4", "--config.data.num_threads=1"]
    job = Job(config, tmp_path / "run", 2, 2, ["--peer-timeout=10", *more])
    job.reach(6)
    job.processes[victim].send_signal(number)
    other = job.processes[1 - victim]
    said = other.communicate(timeout=120)[0].splitlines()
    assert other.returncode == 42, said
    job.processes[victim].kill()
    job.processes[victim].communicate()
    assert sum(" stops: process " in line for line in said) == 1 and not any("Traceback" in line for line in said), said
    start = max(int(name) for name in job.steps() if name.isdigit())
    again = Job(config, tmp_path / "run", 2, 2, ["--peer-timeout=10", *more])
    again.reach(len(job.rows()) + 4)
    again.processes[0].send_signal(signal.SIGTERM)
    codes, outputs = again.wait()
    assert codes == [42, 42] and f"from step {start:,} to 400" in outputs[0], outputs
