"""What befalls a run on a cluster: a code that schedulers understand, one line, and equal bits."""

import pathlib
import random
import re
import signal
import subprocess
import time

import pytest

from curia2_jax.telemetry import metrics
from curia2_jax.training import checkpoints
from tests.training.test_loop import command, environment, what_happened
from tests.training.tiny import tiny_config
from tests.training.zygote import Call, Zygote

PHASES = ("restore", "compile", "step", "save")
NOTHING = "SIG{}: stopped where there was nothing to save; call again with the same --workdir"


class Chaos:
    """Calls of launch/main.py on one working directory, and on one that is left alone."""

    def __init__(self, folder: pathlib.Path, corpus: pathlib.Path, cache: pathlib.Path, calls: Zygote):
        self.folder, self.corpus, self.calls, self.env = folder, corpus, calls, environment(cache)
        self.run, self.alone = folder / "run", folder / "alone"
        self.configure(total_steps=12)

    def configure(self, **changes) -> None:
        more = {"data__corpus": str(self.corpus), "checkpoint__latest": 3, "model__init": "fan_in"} | changes
        self.go = command(self.folder, tiny_config(**more), self.run)

    def start(self, devices: int = 1) -> Call:
        return self.calls.start(*self.go[2:], devices=devices)

    def is_the_run_left_alone(self) -> bool:
        assert self.calls.start(self.go[2], f"--workdir={self.alone}").ended() == (0, [])
        return what_happened(self.run) == what_happened(self.alone)


def flip(folder: pathlib.Path) -> None:
    """One bit in the middle of the largest file of the teacher."""
    path = max((p for p in (folder / "teacher").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal by now: before, it is the interpreter that starts."""
    mask = re.search(r"^SigCgt:\s*(\w+)", pathlib.Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask[1], 16) >> (number - 1) & 1)


@pytest.fixture
def chaos(tmp_path, corpus, cache):
    with Zygote(tmp_path / "calls", environment(cache)) as calls:
        yield Chaos(tmp_path, corpus, cache, calls)


def test_stopped_in_every_phase_started_twice_and_damaged_it_equals_the_run_left_alone(chaos):
    # While modules are imported: this one is no fork of one that has.
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(chaos.go, env=chaos.env, **pipes) as process:
        while not catches(process.pid, signal.SIGTERM):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert (process.communicate(timeout=240)[1].splitlines(), process.returncode) == ([NOTHING.format("TERM")], 42)
    compiling = chaos.start()
    assert compiling.reached("phases", "compile")
    compiling.send_signal(signal.SIGINT)
    assert compiling.ended() == (42, [NOTHING.format("INT")])
    assert not (chaos.run / "lock").exists()

    first = chaos.start()
    assert first.reached("out", "step 5")
    first.send_signal(signal.SIGSTOP)
    code, said = chaos.start().ended()
    assert code == 2 and len(said) == 1 and f"process {first.pid} on" in said[0], said
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGCONT)
    assert first.ended() == (42, [])

    newest = checkpoints.steps(chaos.run)[-1]
    flip(chaos.run / "checkpoints" / str(newest))
    code, said = chaos.start().ended()
    assert code == 0 and len(said) == 1 and said[0].startswith(f"warning: checkpoint {chaos.run}@{newest}: teacher/")
    assert chaos.is_the_run_left_alone()


@pytest.mark.soak
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ["TERM", "INT", "USR1"])
def test_a_signal_in_any_phase_is_42_and_at_most_one_line(chaos, phase, name):
    before = chaos.start()
    assert before.reached("out", "step 4")
    before.send_signal(signal.SIGKILL)
    before.ended()
    call = chaos.start()
    assert call.reached("phases", phase)
    call.send_signal(getattr(signal, f"SIG{name}"))
    assert call.ended() == (42, [NOTHING.format(name)] if phase in ("restore", "compile") else [])
    assert chaos.start().ended() == (0, [])
    assert chaos.is_the_run_left_alone()


def blow(chaos: Chaos, draw: random.Random) -> tuple[str, int, list[str]]:
    """One call that is hit somewhere: (signal and phase, exit code, lines of stderr)."""
    number = draw.choice([signal.SIGKILL] * 7 + [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    phase, times = draw.choice([("restore", 1), ("compile", 1), ("step", draw.randint(1, 8)), ("save", 1), ("save", 2)])
    call = chaos.start()
    call.reached("phases", phase, times)
    time.sleep(draw.choice([0.0, draw.uniform(0, 0.05), draw.uniform(0, 0.5)]))
    call.send_signal(number)
    return f"{number.name} {phase}", *call.ended()


@pytest.mark.soak
def test_a_hundred_blows(chaos):
    """Kills and signals at random in every phase of a whole run, and flipped bits: no call says more than three lines
    or ends with another code than it should, and what comes out is the run that was left alone."""
    chaos.configure(total_steps=200)
    draw, wrong, hits, flips = random.Random(0), [], 0, 0
    while hits < 100:
        what, code, said = blow(chaos, draw)
        hits += code in (-9, 42)
        expected = {-9, 0} if "KILL" in what else {42, 0}
        if code not in expected or len(said) > 3 or any("Traceback" in line for line in said):
            wrong.append((what, code, said))
        if code == 0:
            break
        found = checkpoints.steps(chaos.run)
        if len(found) > 1 and draw.random() < 0.1:
            flip(chaos.run / "checkpoints" / str(found[-1]))
            flips += 1
    print(f"{hits} blows, {flips} flipped bits, {len(wrong)} wrong: {wrong}")
    assert not wrong and hits > 30
    assert chaos.start().ended()[0] == 0
    assert chaos.is_the_run_left_alone()


@pytest.mark.soak
def test_a_run_goes_on_with_any_number_of_devices(chaos):
    """Batches and randomness do not depend on it; sums are taken in another order."""
    chaos.configure(total_steps=12, data__group_size=1, parallel__fsdp=8)
    for devices in (1, 2, 4, 8, 2):
        call = chaos.start(devices)
        if call.reached("out", "step ", times=2):
            call.send_signal(signal.SIGTERM)
        code, said = call.ended()
        assert code in (0, 42) and not said, said
    assert chaos.start().ended()[0] == 0
    assert not chaos.is_the_run_left_alone()
    rows, expected = (metrics.read(run / "metrics.jsonl")[0] for run in (chaos.run, chaos.alone))
    assert [row["step"] for row in rows] == [row["step"] for row in expected] == list(range(1, 13))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-3)
