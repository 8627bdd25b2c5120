"""What befalls a run on a cluster: a code that schedulers understand, one line, and equal bits."""

import pathlib
import random
import signal
import subprocess
import time

import pytest

from curia2_jax.training import checkpoints
from tests.training.test_loop import command, environment, what_happened
from tests.training.tiny import tiny_config

STEPS = 12


class Chaos:
    """Calls of launch/main.py on one working directory, and what they said."""

    def __init__(self, folder: pathlib.Path, corpus: pathlib.Path, cache: pathlib.Path):
        config = tiny_config(data__corpus=str(corpus), total_steps=STEPS, checkpoint__latest=3, model__init="fan_in")
        self.run, self.alone, self.env = folder / "run", folder / "alone", environment(cache)
        self.go = command(folder, config, self.run)
        self.control = [*self.go[:-1], f"--workdir={self.alone}"]

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(self.go, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ended(self, process: subprocess.Popen) -> tuple[int, list[str]]:
        """(exit code, lines of stderr)."""
        _, said = process.communicate(timeout=240)
        return process.returncode, said.splitlines()

    def interrupted(self, at: str | float, number: signal.Signals) -> tuple[int, list[str]]:
        """A call that is sent a signal after so many seconds, or when a line begins like this."""
        process = self.start()
        if isinstance(at, float):
            time.sleep(at)
        else:
            wait_for(process, at)
        process.send_signal(number)
        return self.ended(process)


def wait_for(process: subprocess.Popen, beginning: str) -> None:
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(process.stderr.read())


def flip(folder: pathlib.Path) -> None:
    """One bit in the middle of the largest file of the teacher."""
    path = max((p for p in (folder / "teacher").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def chaos(tmp_path, corpus, cache) -> Chaos:
    return Chaos(tmp_path, corpus, cache)


def test_stopped_in_every_phase_started_twice_and_damaged_it_equals_the_run_left_alone(chaos):
    nothing = "SIG{}: stopped where there was nothing to save; call again with the same --workdir"
    assert chaos.interrupted(0.4, signal.SIGTERM) == (42, [nothing.format("TERM")])  # modules are imported
    assert chaos.interrupted("from step", signal.SIGINT) == (42, [nothing.format("INT")])  # the step is compiled
    assert not (chaos.run / "lock").exists()

    first = chaos.start()
    wait_for(first, "step 5")
    first.send_signal(signal.SIGSTOP)
    code, said = chaos.ended(chaos.start())
    assert code == 2 and len(said) == 1 and f"process {first.pid} on" in said[0], said
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGCONT)
    assert chaos.ended(first) == (42, [])

    newest = checkpoints.steps(chaos.run)[-1]
    flip(chaos.run / "checkpoints" / str(newest))
    code, said = chaos.ended(chaos.start())
    assert code == 0 and len(said) == 1 and said[0].startswith(f"warning: checkpoint {chaos.run}@{newest}: teacher/")
    subprocess.run(chaos.control, check=True, env=chaos.env, timeout=240, stdout=subprocess.DEVNULL)
    assert what_happened(chaos.run) == what_happened(chaos.alone)


@pytest.mark.soak
def test_whatever_comes_next(chaos):
    """Thirty random blows: the exit code of each is expected, none says more than three lines; then it is let go."""
    draw, silent, loud = random.Random(0), 0, []
    phases = ("from step", "compiled", "step 1", "step 2", "step 3", "step 4", "step 7")
    expected = {signal.SIGKILL: {-9}, signal.SIGTERM: {42}, signal.SIGINT: {42}, signal.SIGUSR1: {42}}
    for _ in range(30):
        number = draw.choice(list(expected))
        at = draw.choice([draw.uniform(0.2, 6.0), *phases[: 2 + 6 * (draw.random() < 0.7)]])
        process = chaos.start()
        if isinstance(at, float):
            time.sleep(at)
        else:
            for line in process.stdout:
                if line.startswith(at):
                    break
        process.send_signal(number)
        code, said = chaos.ended(process)
        assert code in expected[number] | {0}, (code, number, at, said)
        loud += [said] if len(said) > 3 or any("Traceback" in line for line in said) else []
        silent += code not in (0, 42, -9) and not said
        found = checkpoints.steps(chaos.run)
        if len(found) > 1 and draw.random() < 0.3:
            flip(chaos.run / "checkpoints" / str(found[-1]))
    print(f"30 blows: {silent} silent, {len(loud)} with a traceback or more than three lines")
    assert not silent and not loud
    assert chaos.ended(chaos.start())[0] == 0
    subprocess.run(chaos.control, check=True, env=chaos.env, timeout=240, stdout=subprocess.DEVNULL)
    assert what_happened(chaos.run) == what_happened(chaos.alone)
