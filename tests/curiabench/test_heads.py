"""Nearest neighbors, the linear probe and ridge against scikit-learn and against formulas written out."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from curia2_jax.curiabench import heads
from curia2_jax.curiabench.heads import logistic
from curia2_jax.curiabench.heads.problem import one_thread

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


@pytest.mark.parametrize("labels", [CLASSES[:2], CLASSES[:3]])
def test_linear_probe_is_logistic_regression_with_the_chosen_c(labels):
    """Probabilities of a fit to convergence, to 1e-6; a class that never occurs has none."""
    train, targets = clusters(1, n=200, spread=2)
    train, targets = train[np.isin(targets, labels)].astype(np.float64), targets[np.isin(targets, labels)]
    test, _ = clusters(2, spread=2)
    got = heads.linear_probe(problem(train, targets, test, np.arange(len(train)) // 10))
    scaler = StandardScaler().fit(train)
    reference = LogisticRegression(C=got.settings["C"], solver="newton-cholesky", tol=1e-10).fit(
        scaler.transform(train), targets
    )
    found = reference.predict_proba(scaler.transform(test.astype(np.float64)))
    np.testing.assert_allclose(got.outputs[:, : len(labels)], found, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(got.outputs[:, len(labels) :], 0)
    assert got.settings["converged"]


@pytest.mark.parametrize("classes", [2, 3, 5])
@one_thread()
def test_a_path_of_strengths_is_scikit_learns_one_by_one(classes):
    """To 1e-6 in probabilities: correlated features, a constant one, and rows that lack a class."""
    rng = np.random.default_rng(classes)
    targets = rng.integers(0, classes, 150)
    targets[:75] = np.where(targets[:75] == 2, 0, targets[:75])
    features = (rng.normal(size=(classes, 8))[targets] + rng.normal(size=(150, 8))) @ rng.normal(size=(8, 8))
    features[:, 3] = 4.0
    folds = np.stack([np.arange(150) < 75, np.arange(150) % 3 > 0])
    strengths = (1e-3, 1.0, 100.0)
    for fold in folds:
        fits = logistic.fit(
            *map(torch.from_numpy, (features[fold], np.eye(classes)[targets[fold]])), strengths, 1e-10, 100
        )
        for strength, one in zip(strengths, fits, strict=True):
            scaler = StandardScaler().fit(features[fold])
            reference = LogisticRegression(C=strength, solver="newton-cholesky", max_iter=100, tol=1e-10)
            reference.fit(scaler.transform(features[fold]), targets[fold])
            found = logistic.probabilities(torch.from_numpy(features), one).numpy()
            expected = reference.predict_proba(scaler.transform(features))
            np.testing.assert_allclose(found[:, reference.classes_], expected, rtol=0, atol=1e-6)
            assert one.converged


def test_soft_labels_are_weighted_hard_ones():
    """A row that is three quarters one class is three rows of it and one of the other."""
    rng = np.random.default_rng(0)
    features, shares = rng.normal(size=(40, 3)), rng.integers(0, 5, 40)
    soft = np.stack([4 - shares, shares], 1) / 4.0
    rows = np.repeat(np.arange(40), 4)
    hard = (np.arange(160) % 4 < shares[rows]).astype(int)
    fits = [
        logistic.fit(torch.from_numpy(x), torch.from_numpy(y), (c,), 1e-11, 100)[0]
        for x, y, c in ((features, soft, 4.0), (features[rows], np.eye(2)[hard], 1.0))
    ]
    np.testing.assert_allclose(fits[0].weights, fits[1].weights, rtol=0, atol=1e-7)


def test_c_is_chosen_on_val_where_there_is_one_and_the_edge_of_the_grid_is_said():
    """Noise in val wants the strongest penalty there is; nothing of val is fitted."""
    train, targets = clusters(1, n=90, spread=2)
    val, val_targets = clusters(5, n=400, spread=2)
    asked = problem(train, targets, train)
    got = heads.linear_probe(asked._replace(val=val, val_targets=val_targets))
    scaler, recalls = StandardScaler().fit(train), []
    for candidate in heads.REGULARIZATION:
        model = LogisticRegression(C=candidate, solver="newton-cholesky").fit(scaler.transform(train), targets)
        right = model.predict(scaler.transform(val)) == val_targets
        recalls.append(np.mean([right[val_targets == label].mean() for label in np.unique(val_targets)]))
    assert got.settings["C"] == heads.REGULARIZATION[int(np.argmax(recalls))]
    assert got.settings["chosen_on"] == "val"
    hopeless = asked._replace(val=np.zeros_like(train), val_targets=targets)
    assert heads.linear_probe(hopeless).settings["edge"] == "lowest"


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
        model = make_pipeline(StandardScaler(), LogisticRegression(C=candidate, solver="newton-cholesky"))
        folds = StratifiedGroupKFold(4).split(features, targets, groups)
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
        for fit, left in StratifiedGroupKFold(4).split(train, targets, groups):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=candidate, solver="newton-cholesky"))
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
    asked = problem(train, train @ slope, test, groups)._replace(classes=np.zeros(0, int))
    clean = heads.ridge_probe(asked)
    np.testing.assert_allclose(clean.outputs, test @ slope, atol=0.1)
    noise = heads.ridge_probe(asked._replace(targets=rng.normal(size=200)))
    assert clean.settings["alpha"] == min(heads.RIDGE) < noise.settings["alpha"]


@pytest.mark.parametrize("shape", [(200, 6), (30, 50)])
def test_the_ridge_is_scikit_learns_more_features_than_samples_or_fewer(shape):
    """Closed form, two targets, a constant feature; the choice is that of grouped cross-validation."""
    rng = np.random.default_rng(2)
    train, test, targets = rng.normal(size=shape), rng.normal(size=(9, shape[1])), rng.normal(size=(shape[0], 2))
    targets[:, 0] += train[:, 1] * 2
    train[:, 0] = 1.0
    groups = np.arange(shape[0]) // 3
    got = heads.ridge_probe(problem(train, targets, test, groups)._replace(classes=np.zeros(0, int)))
    models = [make_pipeline(StandardScaler(), Ridge(alpha)) for alpha in heads.RIDGE]
    scores = [cross_val_score(one, train, targets, cv=GroupKFold(4), groups=groups).mean() for one in models]
    chosen = int(np.argmax(scores))
    assert got.settings["alpha"] == heads.RIDGE[chosen] and got.settings["chosen_on"] == "folds"
    np.testing.assert_allclose(got.outputs, models[chosen].fit(train, targets).predict(test), rtol=0, atol=1e-9)
