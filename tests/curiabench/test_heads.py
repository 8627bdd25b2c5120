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
    centres = np.random.default_rng(0).normal(0, 2, (10, 6))
    return (centres[targets] + rng.normal(0, spread, (n, 6))).astype(np.float32), targets


def test_neighbours_vote_with_the_weights_of_dino():
    train, targets = clusters(1, spread=2)
    test, _ = clusters(2, spread=2)
    got = heads.nearest_neighbours(train, targets, test, CLASSES, direction=True)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train.astype(np.float64), test.astype(np.float64))]
    similarity = unit[1] @ unit[0].T
    expected = np.zeros((len(test), 4))
    for row, near in enumerate(np.argsort(-similarity, axis=1)[:, : heads.NEIGHBOURS]):
        for neighbour in near:
            expected[row, list(CLASSES).index(targets[neighbour])] += np.exp(similarity[row, neighbour] / 0.07)
    np.testing.assert_allclose(got.probabilities, expected / expected.sum(1, keepdims=True), atol=1e-4)
    assert got.settings == {"k": 20}


def test_neighbours_by_distance_ignore_units_and_by_cosine_ignore_length():
    train, targets = clusters(1)
    test, _ = clusters(2)
    units = np.array([1, 1000, 0.01, 1, 5, 1], np.float32)
    plain, scaled = (heads.nearest_neighbours(train * u, targets, test * u, CLASSES, False) for u in (1, units))
    np.testing.assert_allclose(plain.probabilities, scaled.probabilities, atol=1e-3)
    plain, scaled = (heads.nearest_neighbours(train, targets, test * u, CLASSES, True) for u in (1, np.float32(50)))
    np.testing.assert_allclose(plain.probabilities, scaled.probabilities, atol=1e-4)


def test_fewer_samples_than_neighbours():
    train, targets = clusters(1, n=7)
    got = heads.nearest_neighbours(train, targets, train, CLASSES, direction=True)
    assert got.settings == {"k": 7}
    np.testing.assert_allclose(got.probabilities.sum(1), 1)


def test_linear_probe_is_logistic_regression_with_the_chosen_c():
    train, targets = clusters(1, n=200, spread=2)
    test, _ = clusters(2, spread=2)
    groups = np.arange(200) // 10
    got = heads.linear_probe(train, targets, groups, test, CLASSES)
    scaler = StandardScaler().fit(train)
    reference = LogisticRegression(C=got.settings["C"], max_iter=5000, tol=1e-8)
    reference.fit(scaler.transform(train), targets)
    np.testing.assert_allclose(got.probabilities[:, :3], reference.predict_proba(scaler.transform(test)), atol=5e-3)
    np.testing.assert_array_equal(got.probabilities[:, 3], 0)
    assert got.settings["converged"]


@pytest.mark.parametrize("by_patient", [True, False])
def test_c_is_chosen_on_groups_that_the_fit_has_not_seen(by_patient):
    # A faint feature of the class, and loud ones of the patient: fits that trust the loud ones do well on samples of
    # the same patients and badly on new ones.
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(24), 10)
    targets = CLASSES[:2][np.arange(24) // 12][patients]
    faint = (targets == 5)[:, None] + rng.normal(0, 1.5, (240, 1))
    features = np.hstack([faint, np.eye(24)[patients] * 10 + rng.normal(0, 0.8, (240, 24))])
    groups = patients if by_patient else rng.permutation(patients)
    got = heads.linear_probe(features, targets, groups, features, CLASSES).settings["C"]
    scores = []
    for candidate in heads.REGULARISATION:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=candidate, max_iter=500))
        folds = GroupKFold(4).split(features, targets, groups)
        found = cross_val_score(model, features, targets, cv=folds, scoring="balanced_accuracy")
        scores.append(found.mean())
    assert got == heads.REGULARISATION[int(np.argmax(scores))]
    assert (max(scores) > 0.95) != by_patient


def test_patients_of_one_class_each_leave_the_default():
    train, targets = clusters(1)
    rows = targets != 7
    got = heads.linear_probe(train[rows], targets[rows], targets[rows], train, CLASSES)
    assert got.settings["C"] == heads.UNCHOSEN


def test_one_group_leaves_the_default():
    train, targets = clusters(1)
    assert heads.linear_probe(train, targets, np.zeros(60), train, CLASSES).settings["C"] == heads.UNCHOSEN


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_heads_repeat_to_the_bit_and_leave_the_threads_as_they_were(head):
    train, targets = clusters(1)
    before = [pool["num_threads"] for pool in threadpool_info()]

    def run():
        if head == "linear":
            return heads.linear_probe(train, targets, np.arange(60) // 6, train, CLASSES).probabilities
        return heads.nearest_neighbours(train, targets, train, CLASSES, True).probabilities

    np.testing.assert_array_equal(run(), run())
    assert [pool["num_threads"] for pool in threadpool_info()] == before
