"""The seconds of a run belong to one phase each, and what a kill undid is found."""

import time

import pytest

from curia2_jax.telemetry import goodput
from curia2_jax.telemetry.goodput import PHASES, Ledger


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; `clock(3)` lets three seconds pass."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def live(clock, run, start, steps, save_every=2):
    """One life of `steps` steps: 5 s to start, 2 to restore, 1 a step, 0.25 of data, 0.5 a save."""
    ledger = Ledger()
    clock(5)
    with ledger.spent("restore"):
        clock(2)
    ledger.begin(run, start, 1)
    ledger.enter("step")
    for step in range(start + 1, start + steps + 1):
        clock(1)
        with ledger.spent("data"):
            clock(0.25)
        if step % save_every == 0:
            with ledger.spent("save"):
                clock(0.5)
        ledger.write(step)
    return ledger


def test_one_life(clock, tmp_path):
    ledger = live(clock, tmp_path, 0, 4)
    found = goodput.totals(goodput.read(tmp_path / goodput.NAME))
    expected = {"start": 5, "restore": 2, "compile": 0, "step": 4, "data": 1, "look": 0, "save": 1}
    assert found == expected | {"lost": 0, "apart": 0}
    assert ledger.line() == "goodput 31% of 13 s: start 5 s, restore 2 s, step 4 s, data 1 s, save 1 s"


def test_what_a_kill_undid_is_lost_and_nothing_is_counted_twice(clock, tmp_path):
    """Killed after step 5, of which 4 was saved; then stopped at 8 and taken up there."""
    began = time.time()
    for start, steps in ((0, 5), (4, 4), (8, 2)):
        live(clock, tmp_path, start, steps)
        clock(100)
    found = goodput.totals(goodput.read(tmp_path / goodput.NAME))
    assert found["step"] == 10 and found["lost"] == 1.25 and found["apart"] == 200 and found["start"] == 15
    assert sum(found.values()) == time.time() - began - 100


def test_a_long_run_keeps_ever_fewer_rows_and_every_total(clock, tmp_path, monkeypatch):
    """Lives that were killed or stopped, some long, one that went back behind another, and one far back."""
    thinned, whole = tmp_path / "thinned", tmp_path / "whole"

    def totals(run, lives):
        run.mkdir(exist_ok=True)
        for start, steps in lives:
            live(clock, run, start, steps)
            clock(100)
        return goodput.totals(goodput.read(run / goodput.NAME))

    near, far = [(0, 5), (4, 5000), (5004, 50), (2000, 9), (2008, 5000), (7007, 3)], [(7010, 5000), (7013, 1)]
    found, found_far = (totals(thinned, lives) for lives in (near, far))
    rows = len(goodput.read(thinned / goodput.NAME))
    monkeypatch.setattr(Ledger, "_thin", lambda _: None)
    expected, expected_far = (totals(whole, lives) for lives in (near, far))
    assert found == expected and found["step"] == 7010 and found["lost"] > 3000 * 1.5
    assert sum(found_far.values()) == sum(expected_far.values()) and found_far["lost"] >= expected_far["lost"]
    assert rows < 4096 < 10_000 < len(goodput.read(whole / goodput.NAME))


def test_damaged_rows_and_a_disk_that_takes_none_stop_nothing(clock, tmp_path):
    live(clock, tmp_path, 0, 2)
    path = tmp_path / goodput.NAME
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"life": 1}\n[]\n\xff\n{"li')
    assert goodput.totals(goodput.read(path))["step"] == 2
    path.write_bytes(whole.replace(b'"look": 0.0, ', b""))  # of a release that knew no look
    assert goodput.totals(goodput.read(path))["step"] == 2
    path.unlink()
    path.mkdir()
    ledger = live(clock, tmp_path, 2, 2)
    assert ledger.line() == ""


def test_without_a_run_nothing_is_written(clock, tmp_path):
    ledger = Ledger()
    ledger.write(1)
    assert ledger.line() == "" and not list(tmp_path.iterdir())
    assert set(PHASES) <= set(goodput.totals([]))
