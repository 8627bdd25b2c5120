"""One writer a run, wherever it lives, however it died."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from curia2_jax.errors import UserError
from curia2_jax.training import lock
from curia2_jax.training.lock import Lock, this_process


def never(why: str) -> None:
    raise AssertionError(why)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "STALE", 0.5)


def write(folder: pathlib.Path, **changes: object) -> pathlib.Path:
    """The lock of somebody else."""
    path = folder / lock.NAME
    path.write_text(json.dumps({**this_process(), "id": "x", "since": "then", **changes}))
    return path


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_the_second_is_refused_with_one_line_and_the_third_is_not(tmp_path):
    first = Lock(tmp_path / "run", never).take()
    with pytest.raises(UserError, match=rf"process {os.getpid()} on .* writes there; wait for it or stop it") as error:
        Lock(tmp_path / "run", never).take()
    assert "\n" not in str(error.value)
    first.close()
    third = Lock(tmp_path / "run", never).take()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [lock.NAME]
    third.close()
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    "owner",
    [
        {"pid": dead_pid()},
        {"started": "1"},  # its number has gone to another process
        {"machine": "another", "pid": os.getpid()},  # and renews nothing
    ],
)
def test_a_dead_owner_is_taken_over_with_one_line(tmp_path, capsys, owner):
    write(tmp_path, **owner)
    mine = Lock(tmp_path, never).take()
    assert json.loads((tmp_path / lock.NAME).read_text())["id"] != "x"
    said = capsys.readouterr().out
    assert said.startswith("taking over from process") and said.count("\n") == 1
    mine.close()
    assert not list(tmp_path.iterdir())


def test_an_empty_lock_of_a_full_disk_becomes_stale(tmp_path):
    (tmp_path / lock.NAME).write_text("")
    Lock(tmp_path, never).take().close()
    assert not list(tmp_path.iterdir())


def test_an_owner_elsewhere_lives_as_long_as_it_renews(tmp_path):
    path, over = write(tmp_path, machine="another", host="node7"), threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="on node7"):
            Lock(tmp_path, never).take()
    finally:
        over.set()
        thread.join()
    assert [each.name for each in tmp_path.iterdir()] == [lock.NAME]


def test_the_owner_renews_and_notices_that_it_was_taken_over(tmp_path):
    lost: list[str] = []
    mine = Lock(tmp_path, lost.append).take()
    before = (tmp_path / lock.NAME).stat().st_mtime_ns
    time.sleep(0.2)
    assert (tmp_path / lock.NAME).stat().st_mtime_ns > before and not lost
    (tmp_path / lock.NAME).unlink()
    write(tmp_path, host="node7", pid=5)
    deadline = time.monotonic() + 5
    while not lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lost == ["process 5 on node7 (since then) has taken it over"]
    mine.close()
    assert json.loads((tmp_path / lock.NAME).read_text())["host"] == "node7"  # not ours to remove


def test_without_hard_links(tmp_path, monkeypatch):
    """As on a mounted bucket."""

    def refused(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    first = Lock(tmp_path, never).take()
    with pytest.raises(UserError, match="writes there"):
        Lock(tmp_path, never).take()
    first.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("storm", range(40))  # one in eight met a name that was given back while it was looked at
def test_of_many_that_come_together_one_is_let_in(tmp_path, capsys, storm):
    """All find the lock of a dead process."""
    write(tmp_path, pid=dead_pid())
    let_in: list[Lock] = []
    refused: list[UserError] = []
    ready = threading.Barrier(8)

    def come() -> None:
        mine = Lock(tmp_path, never)
        ready.wait()
        try:
            let_in.append(mine.take())
        except UserError as e:
            refused.append(e)

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_in) == 1 and len(refused) == 7
    let_in[0].close()
    assert not list(tmp_path.iterdir())
