"""A run that hangs is ended, with the stacks of its threads; three times from one checkpoint is enough."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import pathlib, sys, time
from curia2_jax.training import watchdog
watchdog.FLOORS.update(restore=9, compile=9, step=0.3, save=9)
folder, newest, life = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def collective_that_never_ends():
    time.sleep(60)
with watchdog.Watchdog(folder, 5) as watch, watchdog.count_faults(folder, newest, life):
    watch.enter("compile")
    time.sleep(0.6)  # in time
    for seconds in {steps}:
        watch.enter("step")
        time.sleep(seconds)
    watch.enter({last!r})
    collective_that_never_ends()
"""


def hanging(folder: pathlib.Path, newest: int, life: str, steps: tuple[float, ...], last: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(steps=steps, last=last), str(folder), str(newest), life],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_the_stacks_are_kept_and_the_third_time_is_the_last(tmp_path):
    ends = [(8, "a", 42), (8, "b", 42), (8, "b", 42), (8, "c", 43), (12, "d", 42)]
    for newest, life, expected in ends:
        code, said = hanging(tmp_path, newest, life, (0.01, 0.01), "step")
        assert code == expected and said.count("\n") == 1, said
        assert said.startswith("process 5 stops: a step has not ended for 0 s") and ("not for the first" in said) == (
            expected == 43
        )
    assert "collective_that_never_ends" in (tmp_path / "stacks-5.txt").read_text()
    assert json.loads((tmp_path / "faults.json").read_text()) == {"step": 12, "lives": ["d"]}


def test_what_is_usual_in_a_run_is_no_hang(tmp_path):
    """A step of 0.2 s allows one of 4 s, beyond the floor of 0.3 s."""
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-c", PROGRAM.format(steps=(0.2,), last="step"), str(tmp_path), "8", "a"],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=4,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
