"""Learning from fewer patients, and from CT to MR: what is drawn, and what stands in the results and predictions."""

import numpy as np
import pytest

from curia2_jax.curiabench import answers, comparison, evaluate, few_shot, protocol, splits, tasks
from curia2_jax.errors import UserError
from tests import small_benchmark


def samples(patients, modality="CT", first=0):
    """Two noisy slices a patient; the class, which the brightness of one half tells, is the parity of the patient."""
    rng = np.random.default_rng(first)
    found = []
    for number in range(first, first + patients):
        for _ in range(2):
            image = rng.normal(size=(24, 24)) + 2 * (number % 2) * (np.arange(24) > 12)
            found.append((image, None, number % 2, f"p{number}", modality))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_benchmark.write_model(tmp_path_factory.mktemp("model"))


def test_draws_are_of_whole_patients_each_within_the_next_and_never_of_one_class(tmp_path):
    small_benchmark.write_task(
        tmp_path / "halves", {"train": samples(40), "test": samples(4, first=40)}, {0: "no", 1: "yes"}, mask=False
    )
    task = tasks.read_task(tmp_path, "halves")
    for draw in range(few_shot.DRAWS):
        smaller = np.zeros(80, bool)
        for percent in few_shot.PERCENT:
            fit = few_shot.fits(task, percent, draw)
            drawn = set(task.train.patients[fit])
            assert not smaller[~fit].any() and not drawn & set(task.train.patients[~fit])
            assert len(set(task.train.targets[fit])) == 2
            if percent >= 25:
                assert len(drawn) == 40 * percent / 100
            smaller = fit
    half = [frozenset(task.train.patients[few_shot.fits(task, 50, draw)]) for draw in range(few_shot.DRAWS)]
    assert len(set(half)) == few_shot.DRAWS


def test_the_curve_follows_from_the_predictions_and_ends_at_the_score_of_the_table(tmp_path, model, monkeypatch):
    monkeypatch.setattr(few_shot, "PERCENT", (25, 50))
    monkeypatch.setattr(few_shot, "DRAWS", 2)
    small_benchmark.write_task(
        tmp_path / "data" / "halves", {"train": samples(20), "test": samples(12, first=20)}, {0: "no", 1: "yes"}, False
    )
    report = tmp_path / "report"
    results = evaluate.evaluate(
        model, tmp_path / "data", ["halves"], report, began=[str(model)], settings=["few-shot"], say=lambda line: None
    )
    task, (one,) = results["tasks"]["halves"], answers.read(report)
    scoring = protocol.scoring_of("classification")
    curve = few_shot.curve(one, tasks.read_task(tmp_path / "data", "halves"), scoring)
    assert task["few_shot"] == curve and list(curve) == list(task["rows"])
    for row, shots in curve.items():
        assert [(shot["percent"], shot["patients"]) for shot in shots] == [(25, 5), (50, 10), (100, 20)]
        assert shots[-1]["score"] == pytest.approx(task["rows"][row]["linear"]["balanced_accuracy"], nan_ok=True)
        draws = one.aside[row, "linear@50%"]
        assert len(draws) == 2
        values = [comparison.alone(one, scoring.primary.metric, each).value for each in draws]
        assert shots[-2]["score"][0] == pytest.approx(np.mean(values))
    assert set(task["rows"]["trained"]) == {"linear", "knn"}  # the table is of all patients


def test_from_ct_to_mr(tmp_path):
    """CT of train and val is learned from, MR of test is asked, and nothing else is read."""
    both = {
        "train": samples(8) + samples(4, "MR", 8),
        "val": samples(4, first=30) + samples(2, "MR", 40),
        "test": samples(4, first=12) + samples(6, "MR", 16),
    }
    small_benchmark.write_task(tmp_path / "halves", both, {0: "no", 1: "yes"}, mask=False)
    task = tasks.across(tasks.read_task(tmp_path, "halves"))
    assert task.name == "halves, CT to MR"
    assert {name: len(split.images) for name, split in task.splits.items()} == {"train": 16, "val": 8, "test": 12}
    assert set(task.train.modalities) | set(task.val.modalities) == {"CT"} and set(task.test.modalities) == {"MR"}
    assert [splits.read_sample(task.test, i)[0].tolist() for i in range(12)] == [
        image.astype(np.float32).tolist() for image, *_ in samples(6, "MR", 16)
    ]


def test_a_task_of_one_modality_cannot_be_crossed(tmp_path):
    small_benchmark.write_task(
        tmp_path / "halves", {"train": samples(4), "test": samples(4, first=4)}, {0: "no", 1: "yes"}, mask=False
    )
    with pytest.raises(UserError, match="found no MR in test of halves"):
        tasks.across(tasks.read_task(tmp_path, "halves"))
