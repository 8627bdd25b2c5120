"""Real processes on loopback, through launch/main.py: they train as one, stop as one, and go on as one."""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

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
        probe__every_steps=8, model__init="fan_in",
    ))
    c.data.corpus = {corpus!r}
    return c
"""


# What XLA prints of a compilation that takes minutes, on a machine that does other things too.
SLOW = re.compile(r"E\d{4} .*slow_operation_alarm.*|\*{20,}|\[Compiling module .*|")


class Host(NamedTuple):
    """Where a process can run: the words before a command, and the address that others have of it."""

    enter: list[str]
    address: str


class Job:
    """`processes` runs of launch/main.py that share `devices` virtual devices."""

    started: ClassVar[list[subprocess.Popen]] = []  # of all jobs

    def __init__(
        self, config: pathlib.Path, workdir: pathlib.Path, processes: int, devices: int, more: Sequence[str] = (),
        hosts: Sequence[Host] = (),
    ):  # fmt: skip
        """`hosts` of the processes; all on this one by default."""
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
            address = f"{hosts[0].address if hosts else 'localhost'}:{s.getsockname()[1]}"
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
            line = [*(hosts[i].enter if hosts else ()), *command, *(flags if processes > 1 else ())]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(line, env=env, cwd=workdir.parent, **pipes))
        Job.started += self.processes

    def wait(self) -> tuple[list[int], list[str]]:
        """(exit codes, what each said)."""
        outputs = ["".join(p.communicate(timeout=1200)) for p in self.processes]
        return [p.returncode for p in self.processes], outputs

    def end(self, but: int | None = None) -> list[tuple[int, list[str]]]:
        """(exit code, lines of stderr) of all, or of all but one."""
        ended = [p for i, p in enumerate(self.processes) if i != but]
        outputs = [p.communicate(timeout=1200)[1].splitlines() for p in ended]
        said = [[line for line in lines if not SLOW.fullmatch(line)] for lines in outputs]
        assert all(len(lines) <= 3 and "Traceback" not in "".join(lines) for lines in said), said
        return [(p.returncode, lines) for p, lines in zip(ended, said, strict=True)]

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


@pytest.fixture(autouse=True)
def nobody_is_left():
    """A test that fails leaves no process behind, not even a stopped one."""
    yield
    while Job.started:
        process = Job.started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


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


LONG = [
    *("--peer-timeout=60", "--config.total_steps=400", "--config.checkpoint.every_steps=4"),
    *("--config.data.num_threads=1", "--config.probe.every_steps=0"),
]


def stopped_together(job: Job) -> None:
    """One is asked, all stop with 42 and say nothing on stderr."""
    job.processes[-1].send_signal(signal.SIGTERM)
    assert job.end() == [(42, [])] * len(job.processes)


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(("processes", "victim"), [(2, 0), (2, 1), (4, 0), (4, 3)])
def test_one_of_several_dies_in_mid_run_and_the_next_call_goes_on(tmp_path, processes, victim, number):
    """The others end with 42 in one line, whatever they were in; nothing that was saved is lost."""
    config = config_file(tmp_path, 2, processes)
    job = Job(config, tmp_path / "run", processes, processes, LONG)
    job.reach(6)
    job.processes[victim].send_signal(number)
    ended = job.end(but=victim)
    job.processes[victim].kill()
    job.processes[victim].communicate()
    assert [code for code, _ in ended] == [42] * (processes - 1), ended
    assert all(sum(" stops: process " in line for line in lines) == 1 for _, lines in ended), ended
    start = max(int(name) for name in job.steps() if name.isdigit())
    again = Job(config, tmp_path / "run", processes, processes, LONG)
    again.reach(start + 4)
    stopped_together(again)
    rows = again.rows()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))


@pytest.mark.soak
@pytest.mark.parametrize("processes", [2, 4])
def test_a_job_that_is_started_twice_is_one(tmp_path, processes):
    config = config_file(tmp_path, 2, processes)
    job = Job(config, tmp_path / "run", processes, processes, LONG)
    job.reach(2)
    first, *others = Job(config, tmp_path / "run", processes, processes, LONG).end()
    assert first[0] == 2 and f"process {job.processes[0].pid} on" in first[1][0] and len(first[1]) == 1
    assert others == [(2, ["error: process 0 refuses; its own message says why"])] * (processes - 1)
    stopped_together(job)


@pytest.mark.soak
def test_two_processes_on_a_full_disk_go_on_and_say_so(small_disk, tmp_path):
    """As one does: filled behind the first checkpoint; the fourth interval without one ends it."""
    config, run = config_file(tmp_path, 2, 2), small_disk / "run"
    flags = [*LONG, "--config.total_steps=40"]
    job = Job(config, run, 2, 2, flags)
    while not (run / "checkpoints" / "4").exists():
        time.sleep(0.005)
        assert all(p.poll() is None for p in job.processes), job.wait()
    with open(small_disk / "fill", "wb", buffering=0) as file:
        while shutil.disk_usage(small_disk).free:
            file.write(bytes(4096))
    (lead, lines), other = job.end()
    assert lead == 42 and other == (42, []) and len(lines) == 1
    assert lines[0].startswith("warning: stopped at step 16, not saved since step 4: ")
    (small_disk / "fill").unlink()
    again = Job(config, run, 2, 2, flags)
    assert again.end() == [(0, [])] * 2
    assert [row["step"] for row in again.rows()] == list(range(1, 41))
