"""Several labels at once: heads and scores against scikit-learn label by label, from a folder to the report."""

import json

import numpy as np
import pytest
from sklearn import metrics

from curia2_jax.curiabench import answers, comparison, evaluate, heads, label_scores, protocol
from tests import small_benchmark

LABELS = {0: "lung", 1: "liver", 2: "never"}


def questions(n, seed):
    """Features of width 4, answers to three questions of which the last is always no, and a tenth unknown."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 4)).astype(np.float32)
    targets = (features @ np.array([[2.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]) + rng.normal(size=(n, 3)) > 0) * 1.0
    targets[:, 2] = 0
    targets[rng.random(targets.shape) < 0.1] = np.nan
    return features, targets


def test_every_label_is_a_probe_of_its_own_on_what_is_known():
    (train, targets), (test, _) = questions(120, 0), questions(40, 1)
    groups = np.arange(120) // 6
    asked = heads.Problem(train, targets, groups, test, np.empty(0), True)
    got = heads.linear_labels(asked)
    for label in (0, 1):
        known = ~np.isnan(targets[:, label])
        alone = heads.linear_probe(
            heads.Problem(train[known], targets[known, label].astype(int), groups[known], test, np.arange(2), True)
        )
        np.testing.assert_array_equal(got.outputs[:, label], alone.outputs[:, 1])
    assert (got.outputs[:, 2] == 0).all() and got.settings["fitted_labels"] == 2 and got.settings["converged"]


@pytest.mark.parametrize(
    ("ours", "parts", "theirs"),
    [
        (label_scores.auroc, label_scores.auroc_parts, metrics.roc_auc_score),
        (label_scores.average_precision, label_scores.average_precision_parts, metrics.average_precision_score),
    ],
)
def test_scores_are_scikit_learns_with_sample_weights(ours, parts, theirs):
    """Ties, unknown answers, weights of patients, and a label that is always no, which has no score."""
    _, targets = questions(90, 2)
    rng = np.random.default_rng(3)
    outputs, groups = rng.normal(size=(90, 3)).round(1) + np.nan_to_num(targets), rng.integers(0, 7, 90)
    weights = np.stack([np.ones(7), rng.integers(0, 4, 7)])
    each = np.full((2, 2), np.nan)
    for draw, label in np.ndindex(2, 2):
        known = ~np.isnan(targets[:, label])
        each[draw, label] = theirs(
            targets[known, label], outputs[known, label], sample_weight=weights[draw, groups[known]]
        )
    np.testing.assert_allclose(ours(targets, outputs, groups, weights), each.mean(1), rtol=1e-12)
    values, patients = parts(targets, outputs, groups)
    np.testing.assert_allclose(values, [*each[0], np.nan], rtol=1e-12)
    assert patients.tolist() == [*(len(set(groups[targets[:, k] == 1])) for k in (0, 1)), 0]


def test_from_the_folder_to_the_report_and_back(tmp_path):
    """A task of three labels: every score of results.json follows from the predictions on disk."""
    rng = np.random.default_rng(4)
    fields = [("filename", "U8"), ("target", "f8", (3,)), ("patient_id", "U8")]
    for split, first in (("train", 0), ("test", 50)):
        (tmp_path / "organs" / split / "images").mkdir(parents=True)
        _, targets = questions(24, first)
        for number, row in enumerate(targets):
            image = rng.normal(size=(24, 24)) + 3 * np.nan_to_num(row[0]) * (np.arange(24) > 12)
            np.save(tmp_path / "organs" / split / "images" / f"{number}.npy", image.astype(np.float32))
        table = [(str(number), tuple(row), f"p{first + number // 2}") for number, row in enumerate(targets)]
        np.save(tmp_path / "organs" / split / "extra_data.npy", np.array(table, fields))
    told = {"name": "organs", "kind": "multi-label", "mask": False, "modality": "MR", "classes": LABELS}
    (tmp_path / "organs" / "task.json").write_text(json.dumps(told))
    model, output = small_benchmark.write_model(tmp_path / "model"), tmp_path / "report"
    results = evaluate.evaluate(model, tmp_path, ["organs"], output, began=[str(model)], say=lambda line: None)
    (one,) = answers.read(output)
    scoring = protocol.scoring_of("multi-label")
    compared = json.loads(json.dumps(comparison.compare(comparison.estimates([one], scoring)[0])))
    assert {key: results["tasks"]["organs"][key] for key in compared} == compared
    labels = results["tasks"]["organs"]["labels"]["trained"]["linear"]["auroc"]
    known = ~np.isnan(one.targets[:, 0])
    expected = metrics.roc_auc_score(one.targets[known, 0], one.outputs["trained", "linear"][0][known, 0])
    assert labels[0] == pytest.approx(expected, abs=1e-12) and labels[2] is None
