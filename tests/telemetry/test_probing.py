"""The heads that run beside a training, against scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from curia2_jax.telemetry import probing


def problem(n: int, dim: int, seed: int = 0):
    """Tokens with means, spreads and one constant column, and two targets that follow from them in part."""
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(n + 30, dim)) * np.linspace(0.1, 5, dim) + 3
    tokens[:, 0] = 7
    targets = tokens[:, 1:3] + rng.normal(size=(n + 30, 2))
    return tokens[:n].astype(np.float32), targets[:n], tokens[n:].astype(np.float32), targets[n:]


@pytest.mark.parametrize(("n", "dim"), [(60, 10), (25, 80)])
def test_ridge_is_scikit_learns(n, dim):
    train, targets, test, _ = problem(n, dim)
    penalties = (0.5, 300.0)
    found = probing.ridge(train, targets, test, penalties)
    for one, penalty in zip(found, penalties, strict=True):
        model = make_pipeline(StandardScaler(), Ridge(penalty)).fit(train.astype(np.float64), targets)
        np.testing.assert_allclose(one, model.predict(test.astype(np.float64)), rtol=1e-7, atol=1e-7)


def test_the_penalty_is_chosen_on_patients_left_out():
    train, targets, test, _ = problem(48, 30)
    groups = np.repeat(np.arange(6), 8)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpha": probing.RIDGE},
        scoring="neg_mean_squared_error",
        cv=PredefinedSplit(groups % probing.FOLDS),
    )
    # Folds of unequal size: scikit-learn averages over folds, so the chosen penalty is compared where it is the same.
    search.fit(train.astype(np.float64), targets)
    found = probing.ridge_probe(train, targets, groups, test)
    np.testing.assert_allclose(found, search.predict(test.astype(np.float64)), rtol=1e-7, atol=1e-7)


def test_neighbors_are_scikit_learns():
    train, targets, test, _ = problem(50, 6)
    model = KNeighborsRegressor(
        probing.NEIGHBORS, metric="cosine", weights=lambda d: np.exp((1 - d) / probing.TEMPERATURE)
    ).fit(train.astype(np.float64), targets)
    expected = model.predict(test.astype(np.float64))
    np.testing.assert_allclose(probing.neighbors(train, targets, test), expected, rtol=1e-6)


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(3)
    truth, found = rng.normal(size=(40, 1)), rng.normal(size=(40, 1))
    assert probing.explained(truth, found) == pytest.approx(r2_score(truth, found))
    labels, votes = rng.integers(0, 3, 40), rng.normal(size=(40, 3))
    expected = balanced_accuracy_score(labels, votes.argmax(1))
    assert probing.balanced_accuracy(np.eye(3)[labels], votes) == pytest.approx(expected)
    several, scores = rng.random((40, 3)) < 0.4, np.round(rng.normal(size=(40, 3)), 1)  # with ties
    assert probing.auroc(several, scores) == pytest.approx(roc_auc_score(several, scores))
    several[:, 1] = True  # says nothing
    assert probing.auroc(several, scores) == pytest.approx(roc_auc_score(several[:, [0, 2]], scores[:, [0, 2]]))
    assert np.isnan(probing.explained(np.ones((4, 1)), np.zeros((4, 1))))
