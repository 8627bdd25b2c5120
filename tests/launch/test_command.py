"""How a command calls another: its exit code comes through."""

import os
import signal

import pytest

from launch import command


@pytest.mark.parametrize("code", [1, 2, 42, 43, 130])
def test_the_code_of_a_child_is_the_code_of_its_caller(code):
    with pytest.raises(SystemExit) as ended:
        command.call(["-c", f"raise SystemExit({code})"])
    assert ended.value.code == code


def test_a_child_that_was_killed_gives_what_a_shell_would():
    with pytest.raises(SystemExit) as ended:
        command.call(["-c", f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})"])
    assert ended.value.code == 128 + signal.SIGTERM


def test_a_child_that_succeeds_lets_its_caller_go_on():
    command.call(["-c", f"assert {os.getpid()} > 0"])


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGUSR1])
def test_who_is_asked_to_stop_asks_its_child_and_waits_for_it(asked):
    """As schedulers ask only the process that they started; the child saves and says how it ended."""
    child = (
        "import os, signal, time\n"
        f"signal.signal({int(asked)}, lambda *_: os._exit(42))\n"
        f"os.kill(os.getppid(), {int(asked)})\n"
        "time.sleep(60)"
    )
    before = signal.getsignal(asked)
    with pytest.raises(SystemExit) as ended:
        command.call(["-c", child])
    assert ended.value.code == 42 and signal.getsignal(asked) == before
