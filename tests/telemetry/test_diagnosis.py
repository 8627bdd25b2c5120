"""The doctor's verdicts, on the metrics of real runs of two blocks: some made to fail in one way each, some healthy.

`runs/` has what 200 steps of 32 phantom slices left, at the size of configs/demo.py cut down to 48 pixels and width 64.
"""

import json
import pathlib

import pytest

from curia2_jax.telemetry.diagnosis import diagnose, since_start

RUNS = pathlib.Path(__file__).parent / "runs"
# run: what is wrong, the key that mends it, and the step by which it is said.
SICK = {
    "no_update": ("no update", "config.optim.base_lr", 30),  # a learning rate of 0
    "uniform_answers": ("uniform answers", "config.schedule.teacher_temp", 130),  # a teacher at temperature 1
    "collapse_by_rate": ("collapse", "config.optim.base_lr", 130),  # forty times the learning rate
    "collapse_without_sigreg": ("collapse", "config.objective.sigreg.weight", 130),  # LeJEPA without
    "dead_prototypes": ("dead prototypes", "config.objective.centering=sinkhorn_knopp", 180),  # softmax centering
    "loader_bound": ("loader-bound", "config.data.num_threads", 40),  # every record takes 20 ms
}


def run(name: str) -> tuple[list[dict], dict]:
    found = json.loads((RUNS / f"{name}.json").read_text())
    return found["rows"], found["config"]


@pytest.mark.parametrize("name", SICK)
def test_a_run_made_to_fail_is_told_how_and_what_mends_it(name):
    (kind, mend, by), (rows, config) = SICK[name], run(name)
    said = diagnose(rows, config)
    assert said[0].kind == kind and mend in said[0].says, said
    early = [row for row in rows if row["step"] <= by]
    assert kind in [one.kind for one in diagnose(early, config)] or kind == "dead prototypes"


@pytest.mark.parametrize("name", sorted(path.stem for path in RUNS.glob("healthy*.json")))
def test_a_healthy_run_is_never_told_anything(name):
    """At no row of it; `healthy_slow` begins with uniform attention and learns late, but learns."""
    rows, config = run(name)
    assert len(rows) > 40
    assert not [found for count in range(len(rows) + 1) for found in diagnose(rows[:count], config)]


def test_a_spike_is_told_while_it_is_new():
    """The real one: softmax centering with a sharp teacher. Later rows forget it."""
    rows, config = run("spike")
    said = {row["step"]: diagnose(rows[: number + 1], config) for number, row in enumerate(rows)}
    kinds = {step: [one.kind for one in found] for step, found in said.items()}
    assert "spike" in kinds[95] and "spike" not in kinds[90]
    assert any("the loss jumped from" in one.says and "before step 95" in one.says for one in said[95])
    healthy, config = run("healthy")
    losses = [row for row in healthy if "loss" in row]
    losses[-3] = losses[-3] | {"loss": 1.3 * losses[-3]["loss"]}
    assert [one.kind for one in diagnose(losses, config)] == ["spike"]
    losses[-3]["loss"] /= 1.25
    assert not diagnose(losses, config)


@pytest.mark.parametrize(
    ("seen", "changes", "mend"),
    [
        ({"monitor/attention_entropy": 0.9997}, {"model": {"init": "normal_0.02"}}, "config.model.init=fan_in"),
        ({"teacher_information": 0.01}, {}, "config.schedule.teacher_temp (it is 0.015)"),
        ({}, {"masks": {"probability": 1.0}}, "config.masks.probability=0.5"),
        ({}, {}, "config.schedule.teacher_momentum (it is 0.96)"),
    ],
)
def test_what_mends_uniform_answers_follows_from_what_else_is_seen(seen, changes, mend):
    rows, config = run("healthy")
    rows = [row | {"nats/dino": 0.0} | {name: seen[name] for name in seen if name in row} for row in rows]
    (said,) = diagnose(rows, config | changes)
    assert said.kind == "uniform answers" and mend in said.says


UP, DOWN, ALIKE = (0.3, 0.6, 0.6, 0.55, 0.5), (0.5, 0.9, 0.9, 0.8, 0.75), (0.5, 0.9, 0.9, 0.9, 0.9)


@pytest.mark.parametrize(
    ("dice", "others", "said"),
    [
        (UP, {"probe/structures_ridge": ALIKE}, True),
        (UP, {"probe/height_ridge": ALIKE}, True),
        (UP, {"probe/structures_ridge": DOWN, "probe/height_ridge": ALIKE}, False),  # nothing is kept
        (UP, {}, False),  # nothing to compare with
        ((0.3, 0.6, 0.6, 0.6, 0.58), {"probe/structures_ridge": ALIKE}, False),
        (ALIKE, {"probe/structures_ridge": ALIKE}, False),
    ],
)
def test_dense_features_that_decay_are_told_apart(dice, others, said):
    """Of a healthy run that got five values in a row; what random weights had, and one odd look, are no loss."""
    rows, config = run("healthy")
    parts = [min(5 * number // len(rows), 4) for number in range(len(rows))]
    rows = [
        row | {"monitor/linear_dice": dice[part]} | {name: values[part] for name, values in others.items()}
        for part, row in zip(parts, rows, strict=True)
    ]
    rows[0]["monitor/linear_dice"] = rows[1]["monitor/linear_dice"] = 0.9
    rows[-1]["monitor/linear_dice"] -= 0.3
    found = diagnose(rows, config)
    assert [one.kind for one in found] == ["dense decay"] * said
    if said:
        assert "fell by 17% of its best, 0.600 near step" in found[0].says
        few = [row if number % 8 == 0 else row | {"monitor/linear_dice": None} for number, row in enumerate(rows)]
        assert not diagnose(few, config)


def test_no_gradient_is_told_apart_from_no_rate():
    rows, config = run("healthy")
    still = {"grad_norm/dino_head": 0.0, "update_ratio/dino_head": 0.0}
    (said,) = diagnose([row | {name: still[name] for name in still if name in row} for row in rows], config)
    assert said.kind == "no update" and "no gradient reaches dino_head" in said.says


def test_then_and_now():
    rows, _ = run("healthy")
    found = {name: (first, now) for name, first, now in since_start(rows)}
    assert found["monitor/rankme"] == ("15.1", "20.9") and "data_wait" not in found
    assert diagnose([], {}) == [] and diagnose(rows[:1], {}) == []  # only a look before the first step
