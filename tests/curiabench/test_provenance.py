"""Where a report came from."""

import datetime
import pathlib
import subprocess
import sys

import numpy as np

from curia2_jax.curiabench import provenance
from tests import small_benchmark

ROOT = pathlib.Path(__file__).resolve().parents[2]


def task(folder, target=1):
    rows = [(np.zeros((3, 4)), None, i % 2, f"p{i}", "CT") for i in range(3)]
    test = [(np.zeros((3, 4)), None, target, "q", "CT")]
    return small_benchmark.write_task(folder / "organs", {"train": rows, "test": test}, {0: "a", 1: "b"}, mask=False)


def test_a_report_says_how_to_make_it_again(tmp_path, monkeypatch):
    """The command as it was typed, the commit of the checkout, and the day."""
    task(tmp_path)
    monkeypatch.setattr(sys, "argv", ["launch/evaluate.py", "--data", "my scans"])
    found = provenance.provenance(tmp_path, ["organs"])
    assert found["command"] == "launch/evaluate.py --data 'my scans'"
    head = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert found["commit"].rstrip("+") == head
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(found["date"])
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=10)


def test_the_hash_of_a_task_is_that_of_its_description_and_tables(tmp_path):
    """The same task elsewhere has the same one, another target another."""
    task(tmp_path / "a"), task(tmp_path / "b"), task(tmp_path / "c", target=0)
    a, b, c = (provenance.provenance(tmp_path / name, ["organs"])["tasks"]["organs"] for name in "abc")
    assert a == b != c


def test_outside_of_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    """As when it was installed from a wheel."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance._commit(tmp_path) == ""
