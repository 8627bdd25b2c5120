"""The classifiers against scikit-learn and against formulas written out."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from curia2_jax.curiabench import heads

CLASSES = np.array([2, 5, 7, 9])


def clusters(seed, n=60, spread=1.0):
    """Three classes of Gaussian clusters in 6 dimensions; class 9 never occurs."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(CLASSES[:3], n)
    centers = np.random.default_rng(0).normal(0, 2, (10, 6))
    return (centers[targets] + rng.normal(0, spread, (n, 6))).astype(np.float32), targets


def problem(train, targets, test, groups=None, has_direction=True):
    """Every sample of its own patient unless `groups` says more."""
    return heads.Problem(
        train, targets, np.arange(len(train)) if groups is None else groups, test, CLASSES, has_direction
    )


def test_neighbors_vote_with_the_weights_of_dino():
    """exp(cosine / 0.07) of the twenty nearest, by hand."""
    train, targets = clusters(1, spread=2)
    test, _ = clusters(2, spread=2)
    got = heads.nearest_neighbors(problem(train, targets, test))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train.astype(np.float64), test.astype(np.float64))]
    similarity = unit[1] @ unit[0].T
    expected = np.zeros((len(test), 4))
    for row, near in enumerate(np.argsort(-similarity, axis=1)[:, : heads.NEIGHBORS]):
        for neighbor in near:
            expected[row, list(CLASSES).index(targets[neighbor])] += np.exp(similarity[row, neighbor] / 0.07)
    np.testing.assert_allclose(got.outputs, expected / expected.sum(1, keepdims=True), atol=1e-4)
    assert got.settings == {"k": 20}


def test_neighbors_by_distance_ignore_units_and_by_cosine_ignore_length():
    """Features without a direction are standardized; directions have no length."""
    train, targets = clusters(1)
    test, _ = clusters(2)
    units = np.array([1, 1000, 0.01, 1, 5, 1], np.float32)
    plain, scaled = (
        heads.nearest_neighbors(problem(train * u, targets, test * u, has_direction=False)) for u in (1, units)
    )
    np.testing.assert_allclose(plain.outputs, scaled.outputs, atol=1e-3)
    plain, scaled = (heads.nearest_neighbors(problem(train, targets, test * u)) for u in (1, np.float32(50)))
    np.testing.assert_allclose(plain.outputs, scaled.outputs, atol=1e-4)


def test_fewer_samples_than_neighbors():
    """All of them vote, and the settings say how many that were."""
    train, targets = clusters(1, n=7)
    got = heads.nearest_neighbors(problem(train, targets, train))
    assert got.settings == {"k": 7}
    np.testing.assert_allclose(got.outputs.sum(1), 1)


def test_linear_probe_is_logistic_regression_with_the_chosen_c():
    """Probabilities of a fit to convergence; a class that never occurs has none."""
    train, targets = clusters(1, n=200, spread=2)
    test, _ = clusters(2, spread=2)
    groups = np.arange(200) // 10
    got = heads.linear_probe(problem(train, targets, test, groups))
    scaler = StandardScaler().fit(train)
    reference = LogisticRegression(C=got.settings["C"], max_iter=5000, tol=1e-8)
    reference.fit(scaler.transform(train), targets)
    np.testing.assert_allclose(got.outputs[:, :3], reference.predict_proba(scaler.transform(test)), atol=5e-3)
    np.testing.assert_array_equal(got.outputs[:, 3], 0)
    assert got.settings["converged"]


@pytest.mark.parametrize("by_patient", [True, False])
def test_c_is_chosen_on_groups_that_the_fit_has_not_seen(by_patient):
    """The choice is that of grouped cross-validation, which samples of one patient would spoil."""
    # A faint feature of the class, and loud ones of the patient: fits that trust the loud ones do well on samples of
    # the same patients and badly on new ones.
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(24), 10)
    targets = CLASSES[:2][np.arange(24) // 12][patients]
    faint = (targets == 5)[:, None] + rng.normal(0, 1.5, (240, 1))
    features = np.hstack([faint, np.eye(24)[patients] * 10 + rng.normal(0, 0.8, (240, 24))])
    groups = patients if by_patient else rng.permutation(patients)
    got = heads.linear_probe(problem(features, targets, features, groups)).settings["C"]
    scores = []
    for candidate in heads.REGULARIZATION:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=candidate, max_iter=500))
        folds = GroupKFold(4).split(features, targets, groups)
        found = cross_val_score(model, features, targets, cv=folds, scoring="balanced_accuracy")
        scores.append(found.mean())
    assert got == heads.REGULARIZATION[int(np.argmax(scores))]
    assert (max(scores) > 0.95) != by_patient


def test_patients_of_one_class_each_leave_the_default():
    """Leaving one of two such patients out leaves nothing to tell apart."""
    train, targets = clusters(1)
    rows = targets != 7
    got = heads.linear_probe(problem(train[rows], targets[rows], train, targets[rows]))
    assert got.settings["C"] == heads.DEFAULT_C


def test_one_group_leaves_the_default():
    """Nothing can be left out of one patient."""
    train, targets = clusters(1)
    assert heads.linear_probe(problem(train, targets, train, np.zeros(60))).settings["C"] == heads.DEFAULT_C


@pytest.mark.parametrize("head", [heads.linear_probe, heads.nearest_neighbors])
def test_heads_repeat_to_the_bit_and_leave_the_threads_as_they_were(head):
    """One thread inside, so one order of sums; as many as before outside."""
    train, targets = clusters(1)
    before = [pool["num_threads"] for pool in threadpool_info()]
    asked = problem(train, targets, train, np.arange(60) // 6)
    np.testing.assert_array_equal(head(asked).outputs, head(asked).outputs)
    assert [pool["num_threads"] for pool in threadpool_info()] == before


@pytest.mark.parametrize("has_direction", [True, False])
@pytest.mark.parametrize("head", [heads.linear_probe, heads.nearest_neighbors])
def test_the_answer_to_a_sample_does_not_depend_on_the_other_test_samples(head, has_direction):
    """Nothing is fitted on the test split: not a scaler, not a neighbor."""
    train, targets = clusters(1, spread=2)
    test, _ = clusters(2, spread=2)
    far = np.concatenate([test, test[:20] * 40 + 500])
    groups = np.arange(60) // 6
    alone, among = (head(problem(train, targets, t, groups, has_direction)).outputs for t in (test, far))
    np.testing.assert_allclose(among[:60], alone, rtol=0, atol=1e-6)


def test_a_fold_without_a_class_is_scored_on_those_it_has():
    """Patients of one class each: left-out folds lack classes, no warning, and C is still chosen by mean recall."""
    train, targets = clusters(3, n=80, spread=2)
    groups = np.argsort(np.argsort(targets, kind="stable"), kind="stable") // 10
    got = heads.linear_probe(problem(train, targets, train, groups)).settings["C"]
    recalls = []
    for candidate in heads.REGULARIZATION:
        found = []
        for fit, left in GroupKFold(4).split(train, targets, groups):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=candidate, max_iter=500))
            right = model.fit(train[fit], targets[fit]).predict(train[left]) == targets[left]
            found.append(np.mean([right[targets[left] == label].mean() for label in np.unique(targets[left])]))
        recalls.append(np.mean(found))
    assert got == heads.REGULARIZATION[int(np.argmax(recalls))]


def test_neighbors_of_several_targets_are_a_weighted_mean():
    """By formula: the 20 most similar, each with exp(-(1 - cosine) / 0.07)."""
    rng = np.random.default_rng(0)
    train, test, targets = (rng.normal(size=shape) for shape in ((40, 5), (7, 5), (40, 3)))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    distance = 1 - unit(test) @ unit(train).T
    nearest = np.argsort(distance, axis=1)[:, :20]
    weight = np.exp(-np.take_along_axis(distance, nearest, 1) / 0.07)
    expected = np.einsum("mk,mkt->mt", weight, targets[nearest]) / weight.sum(1, keepdims=True)
    np.testing.assert_allclose(heads.neighbor_mean(problem(train, targets, test)).outputs, expected, rtol=1e-9)


def test_a_ridge_finds_a_linear_answer_and_shrinks_where_there_is_none():
    """The strength is chosen on left-out patients: weak for a clean line, strong for noise."""
    rng = np.random.default_rng(1)
    train, test, slope = rng.normal(size=(200, 6)), rng.normal(size=(50, 6)), rng.normal(size=6)
    groups = np.arange(200) // 10
    clean = heads.ridge_probe(problem(train, train @ slope, test, groups))
    np.testing.assert_allclose(clean.outputs, test @ slope, atol=0.1)
    noise = heads.ridge_probe(problem(train, rng.normal(size=200), test, groups))
    assert clean.settings["alpha"] == min(heads.RIDGE) < noise.settings["alpha"]
