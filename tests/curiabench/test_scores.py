"""Scores against scikit-learn, resample by resample."""

import warnings

import numpy as np
import pytest
from sklearn import metrics

from curia2_jax.curiabench import scores


def drawn(seed, n=120, num_groups=9, num_classes=4, ties=True):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_classes, n)
    probabilities = rng.dirichlet(np.ones(num_classes), n) + 0.5 * np.eye(num_classes)[targets] * rng.random((n, 1))
    if ties:
        probabilities = np.round(probabilities, 1)
    return targets, probabilities, rng.integers(0, num_groups, n)


METRICS = (scores.accuracy, scores.balanced_accuracy, scores.auroc)


def reference(targets, probabilities):
    """The three scores of scikit-learn, over the classes that can be scored."""
    areas = []
    for k in range(probabilities.shape[1]):
        if 0 < (targets == k).sum() < len(targets):
            areas.append(metrics.roc_auc_score(targets == k, probabilities[:, k]))
    predicted = probabilities.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of predicted classes that do not occur
        balanced = metrics.balanced_accuracy_score(targets, predicted)
    return metrics.accuracy_score(targets, predicted), balanced, np.mean(areas) if areas else np.nan


@pytest.mark.parametrize("ties", [False, True])
def test_scores_are_those_of_scikit_learn(ties):
    """All three scores of the samples as they are, with and without ties."""
    targets, probabilities, groups = drawn(1, ties=ties)
    got = [metric(targets, probabilities, groups, np.ones((1, 9)))[0] for metric in METRICS]
    np.testing.assert_allclose(got, reference(targets, probabilities), rtol=1e-12)


def test_every_resample_is_scored_as_scikit_learn_scores_the_repeated_samples():
    """Fifty draws of patients, their samples repeated as often as drawn."""
    targets, probabilities, groups = drawn(2, n=40, num_groups=6)
    weights = np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6), size=50).astype(float)
    got = [metric(targets, probabilities, groups, weights) for metric in METRICS]
    for draw, weight in enumerate(weights.astype(int)):
        rows = np.concatenate([np.repeat(np.flatnonzero(groups == g), weight[g]) for g in range(6)])
        expected = reference(targets[rows], probabilities[rows])
        np.testing.assert_allclose([drawn[draw] for drawn in got], expected, rtol=1e-12)


def test_classes_without_samples_are_left_out_and_not_scored_as_zero():
    """A class that nobody has costs nothing; one class alone has no AUROC."""
    targets = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.3, 0.7, 0.0], [0.1, 0.9, 0.0]])
    assert [metric(targets, probabilities, np.arange(4), np.ones((1, 4)))[0] for metric in METRICS] == [1, 1, 1]
    alone = scores.auroc(targets[:2], probabilities[:2], np.arange(2), np.ones((1, 2)))
    assert np.isnan(alone[0])


def test_parts_are_what_the_scores_are_means_of():
    """Recalls and areas of the classes, each with the number of patients who have the class."""
    targets, probabilities, groups = drawn(5, n=30, num_groups=9)
    for score, parts in ((scores.balanced_accuracy, scores.recalls), (scores.auroc, scores.areas)):
        values, patients = parts(targets, probabilities, groups)
        np.testing.assert_allclose(np.mean(values), score(targets, probabilities, groups, np.ones((1, 9)))[0])
        assert patients.tolist() == [len(set(groups[targets == k].tolist())) for k in range(4)]
    recall = metrics.recall_score(targets, probabilities.argmax(1), average=None)
    np.testing.assert_allclose(scores.recalls(targets, probabilities, groups)[0], recall, rtol=1e-12)


def test_presence_is_the_mean_area_of_the_questions_that_have_both_answers():
    """And a resample counts a patient as often as it was drawn."""
    rng = np.random.default_rng(3)
    present, groups = rng.random((80, 3)) < 0.4, rng.integers(0, 6, 80)
    present[:, 2] = True  # nothing to tell apart
    outputs = np.round(rng.normal(size=(80, 3)) + present, 1)
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 1, 3, 0, 0]])
    for found, multiplicity in zip(scores.presence_auroc(present, outputs, groups, weights), weights, strict=True):
        repeated = np.repeat(np.arange(80), multiplicity[groups])
        areas = [metrics.roc_auc_score(present[repeated, k], outputs[repeated, k]) for k in (0, 1)]
        assert found == pytest.approx(np.mean(areas), abs=1e-12)


def test_explained_variance_is_that_of_scikit_learn():
    rng = np.random.default_rng(4)
    values, groups = rng.normal(size=50), rng.integers(0, 5, 50)
    outputs = 0.7 * values + 0.3 * rng.normal(size=50)
    weights = np.array([[1, 1, 1, 1, 1], [0, 2, 1, 0, 2]])
    expected = [metrics.r2_score(values, outputs, sample_weight=one[groups]) for one in weights]
    np.testing.assert_allclose(scores.explained(values, outputs, groups, weights), expected, rtol=1e-12)
