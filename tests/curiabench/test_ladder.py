"""Runs beside the first one: values against plain arithmetic, pairs against what is known of them, and refusals."""

import json

import numpy as np
import pytest

from curia2_jax.curiabench import answers, ladder
from curia2_jax.errors import UserError


def write_report(folder, probabilities, targets, patients):
    """A report of one task with two classes, by both heads alike."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"kind": "classification", "primary": {"head": "linear", "metric": "balanced_accuracy"}}
    (folder / "results.json").write_text(json.dumps({"settings": settings}))
    outputs = {(row, head): [probabilities] for row in ("trained", "random") for head in ("linear", "knn")}
    samples = np.array([f"sample_{i}" for i in range(len(targets))])
    one = answers.Answers("organs", "classification", ["a", "b"], samples, patients, samples, targets, outputs)
    answers.write(folder / answers.FILE, [one])
    return folder


def answered(right, targets):
    """Probabilities (n, 2) of somebody who is right where `right` says so."""
    second = np.where((targets == 1) == right, 0.9, 0.1)
    return np.stack([1 - second, second], axis=1)


@pytest.fixture
def made(tmp_path):
    """Targets, patients, and a function that writes the report of somebody who is right as often as asked."""
    rng = np.random.default_rng(0)
    targets, patients = np.tile([0, 1], 60), np.repeat([f"patient {i}" for i in range(20)], 6)
    draw = rng.random(len(targets))

    def write(name, share):
        return write_report(tmp_path / name, answered(draw < share, targets), targets, patients)

    return targets, draw, write


def test_differences_are_of_the_same_patients_and_seeds_are_averaged(made):
    targets, draw, write = made
    reports = {"first": [write("a", 0.6)], "second": [write("b", 0.7), write("c", 0.8)], "again": [write("d", 0.6)]}
    rungs, scoring = ladder.climb(reports)

    def balanced(share):
        return np.mean([(draw[targets == label] < share).mean() for label in (0, 1)])

    assert [head.name for head in scoring.heads] == ["linear", "knn"] and rungs["first"].gains is None
    for number in range(2):
        assert rungs["first"].scores[number][0] == pytest.approx(balanced(0.6))
        value, low, high = rungs["second"].gains[number]
        assert value == pytest.approx((balanced(0.7) + balanced(0.8)) / 2 - balanced(0.6))
        assert 0 < low < value < high
        # Whoever gives the same answers differs by nothing, however unsure the scores themselves are.
        assert rungs["again"].gains[number] == (0, 0, 0)
        assert rungs["again"].scores[number][2] - rungs["again"].scores[number][1] > 0.05


def test_other_samples_are_refused(made, tmp_path):
    targets, _, write = made
    first = write("a", 0.6)
    other = write_report(tmp_path / "z", answered(targets > 0, targets), targets, np.repeat(["x", "y"], 60))
    with pytest.raises(UserError, match="z: scored on other samples of organs than the first run; score it anew"):
        ladder.climb({"first": [first], "other": [other]})


def test_the_picture_has_a_point_for_every_run_and_difference(made, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    _, _, write = made
    drawn = []
    monkeypatch.setattr(Axes, "errorbar", lambda self, x, y, **how: drawn.append((len(x), how["label"])))
    monkeypatch.setattr(Axes, "legend", lambda self, **how: None)
    rungs, scoring = ladder.climb({"first": [write("a", 0.6)], "second": [write("b", 0.7)]})
    ladder.draw(tmp_path / "picture.png", rungs, ["probe", "kNN"], scoring.primary.metric)
    assert drawn == [(2, "probe"), (1, "probe"), (2, "kNN"), (1, "kNN")]
    assert (tmp_path / "picture.png").stat().st_size > 1000
