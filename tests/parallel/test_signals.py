"""A process that is asked to stop does, wherever it is: real signals, real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from curia2_jax.parallel.signals import SIGNALS

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Says where it is, and stays there. `work` is what a run would do with the request.
PROGRAM = """
import sys, time
from curia2_jax.parallel.signals import StopRequest
stop = StopRequest()
stop.listen()
{work}
"""
STARTING = "print('here', flush=True); time.sleep(30)"
STEPPING = """
with stop.answered():
    print('here', flush=True)
    while not stop.made():
        time.sleep(0.01)
    print('saving', flush=True)
    time.sleep({saving})
sys.exit(42)
"""


def started(work: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(work=work)], cwd=ROOT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_where_nothing_can_be_saved_a_request_ends_it_at_once(number):
    process = started(STARTING)
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 42 and time.monotonic() - began < 10
    assert said == f"{number.name}: stopped where there was nothing to save; call again with the same --workdir\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_where_something_can_be_saved_it_is_even_when_a_launcher_repeats_itself(number):
    process = started(STEPPING.format(saving=0.3))
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.02)
    out, said = process.communicate(timeout=20)
    assert (process.returncode, out, said) == (42, "saving\n", "")


def test_who_asks_again_later_does_not_wait_for_the_save():
    process = started(STEPPING.format(saving=30))
    process.send_signal(signal.SIGINT)
    time.sleep(2.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (
        process.returncode == 42 and said.startswith("SIGINT: asked again, stopped at once") and said.count("\n") == 1
    )


def test_a_forked_child_dies_of_its_own_signals_and_stops_nobody():
    work = """
import os, signal, warnings
warnings.simplefilter("ignore")  # of a fork beside threads, which is what is tried
child = os.fork()
if not child:
    time.sleep(30)
time.sleep(1)  # the child is itself by then
os.kill(child, signal.SIGTERM)
print('here', flush=True)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop.made(), flush=True)
"""
    with started(work) as process:
        out, said = process.stdout.read(), process.stderr.read()  # communicate loses what readline has read ahead
    assert (process.returncode, out, said) == (0, "-15 False\n", "")
