"""Reference curves: ranges of runs, and which runs are held to them."""

import json

import pytest

from curia2_jax.telemetry import reference

CONFIG = {
    "total_steps": 60, "seed": 0, "data": {"global_batch": 8, "group_size": 4, "corpus": "A"},
    "model": {"width": 32}, "objective": {"dino": {"weight": 1.0}}, "crops": {"global_area": (0.3, 1.0)},
}  # fmt: skip


def rows(level: float) -> list[dict]:
    return [{"step": step, "loss": level - step / 100, "rankme": 4.0} for step in range(1, 61)]


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    path = tmp_path / "curves.json"
    reference.record("tiny", [rows(5.0), rows(5.2)], CONFIG, path)
    monkeypatch.setattr(reference, "shipped", lambda: json.loads(path.read_text()))
    return path


def test_ranges_hold_the_runs_that_they_were_made_of(recorded):
    (one,) = json.loads(recorded.read_text())
    assert list(one["ranges"]["loss"]) == ["10", "20", "30", "40", "50", "60"]
    # Medians of the newest five rows are 4.92 and 5.12; 30 % of one, and half of what lies between them.
    assert one["ranges"]["loss"]["10"] == pytest.approx([4.92 - 1.636, 5.12 + 1.636], rel=0.01)
    assert not reference.outside(rows(5.1), CONFIG)
    reference.record("other", [rows(5.0)], CONFIG, recorded)
    reference.record("tiny", [rows(5.0)], CONFIG, recorded)
    assert [one["name"] for one in json.loads(recorded.read_text())] == ["other", "tiny"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, ["unlike its reference"]),
        ({"seed": 3, "data": CONFIG["data"] | {"corpus": "B"}}, ["unlike its reference"]),
        ({"model": {"width": 32, "new": True}}, ["unlike its reference"]),  # a key that the reference is older than
        ({"model": {"width": 64}}, []),
        ({"crops": {"global_area": (0.5, 1.0)}}, []),
    ],
)
def test_runs_of_the_config_are_held_to_them_and_no_others(recorded, change, found):
    said = reference.outside(rows(9.0)[:30], CONFIG | change)
    assert [one.kind for one in said] == found
    assert not said or "loss at step 30 is 8.72; runs of tiny have" in said[0].says


def test_what_is_shipped_has_the_form_of_what_is_recorded():
    for one in reference.shipped():
        assert one["config"]["total_steps"] and set(one["ranges"]) <= set(reference.METRICS)
        for by_step in one["ranges"].values():
            assert all(low < high for low, high in by_step.values())
