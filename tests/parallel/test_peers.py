"""Processes that JAX has joined: one dies or hangs, and the others say so in one line and end with 42."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, time
from curia2_jax.parallel import cluster as hosts
hosts.start(hosts.Cluster("flags", sys.argv[1], 3, int(sys.argv[2])), peer_timeout=5)
print("joined", flush=True)
time.sleep(float(sys.argv[3]))
"""


def joined(seconds: float) -> list[subprocess.Popen]:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(i), str(seconds)], cwd=ROOT, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(3)
    ]  # fmt: skip
    assert [process.stdout.readline() for process in processes] == ["joined\n"] * 3
    return processes


@pytest.mark.parametrize(
    ("victim", "number", "words", "within"),
    [
        (0, signal.SIGKILL, "process 0 has died", 3),
        (2, signal.SIGKILL, "process 2 has died", 3),
        (0, signal.SIGSTOP, "process 0 has been silent for 5 s", 20),
        (1, signal.SIGSTOP, "process 1 has been silent for 5 s", 20),
    ],
)
def test_the_others_say_who_is_gone_and_stop(victim, number, words, within):
    processes = joined(60)
    others = [process for i, process in enumerate(processes) if i != victim]
    began = time.monotonic()
    processes[victim].send_signal(number)
    try:
        said = [process.communicate(timeout=60)[1] for process in others]
    finally:
        processes[victim].kill()
        processes[victim].communicate()
    assert [process.returncode for process in others] == [42, 42], said
    assert time.monotonic() - began < within + 10  # of a machine that does other things too
    assert all(line.count("\n") == 1 and " stops: process " in line for line in said), said
    assert all(words in line for line in said), said


def test_an_ordinary_end_is_no_death():
    processes = joined(0.2)
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in processes] == [("", 0)] * 3
