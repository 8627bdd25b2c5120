"""The two classifiers on frozen features: weighted nearest neighbors and a linear probe, both scikit-learn's.

Neither has anything to tune by hand: the neighbors follow DINO (k = 20, weight exp(similarity / 0.07)), and the
probe's only number, C, is chosen on patients of the training split. Both run on one thread: sums then have one order on
every machine, and the matrices are so small that waiting for each other costs threads ten times what they save.
"""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

NEIGHBORS = 20
TEMPERATURE = 0.07
REGULARIZATION = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
DEFAULT_C = 1e-2
RIDGE = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
FOLDS = 4
MAX_ITERATIONS = 500


class Problem(NamedTuple):
    """What a head learns from, and what it is asked about: n training samples, m test samples.

    `classes` are all labels of the task, sorted, whether train has them or not. Tokens have a direction; a handful of
    numbers with units, such as mean and spread of pixels, has none that means something.
    """

    train: np.ndarray  # (n, D) float32
    targets: np.ndarray  # (n,), labels in kinds that have classes
    groups: np.ndarray  # (n,) int64, the patient of each training sample
    test: np.ndarray  # (m, D) float32
    classes: np.ndarray  # (K,) int64, empty in kinds without classes
    has_direction: bool


class Prediction(NamedTuple):
    """What a head answers: here class probabilities (m, K) float64, and how they came about."""

    outputs: np.ndarray
    settings: dict[str, float | int | bool]


@threadpool_limits.wrap(limits=1)
def nearest_neighbors(problem: Problem) -> Prediction:
    """Weighted vote of the nearest training samples (DINO, appendix on k-NN evaluation).

    Features with a direction are compared by cosine, as DINO does; the others are standardized by train and compared by
    Euclidean distance.
    """
    train, test = problem.train, problem.test
    neighbors = min(NEIGHBORS, len(train))
    if problem.has_direction:
        model = KNeighborsClassifier(
            neighbors, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / TEMPERATURE)
        )
    else:
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
        model = KNeighborsClassifier(neighbors, weights="distance")
    probabilities = model.fit(train, problem.targets).predict_proba(test)
    return Prediction(_aligned(probabilities, model.classes_, problem.classes), {"k": neighbors})


@threadpool_limits.wrap(limits=1)
def linear_probe(problem: Problem) -> Prediction:
    """Multinomial logistic regression on standardized features.

    C is the value of `REGULARIZATION` with the highest balanced accuracy on left-out groups, the smallest one on a tie,
    and the probe is then fitted to all of train. Without a second group, or when leaving one out leaves a single class,
    there is nothing to choose on, and C is `DEFAULT_C`.
    """
    train, targets, groups = problem.train, problem.targets, problem.groups
    model = make_pipeline(StandardScaler(), LogisticRegression(C=DEFAULT_C, max_iter=MAX_ITERATIONS))
    folds = []
    if (num_groups := len(np.unique(groups))) > 1:
        folds = list(GroupKFold(min(FOLDS, num_groups)).split(train, targets, groups))
        folds = [fold for fold in folds if len(np.unique(targets[fold[0]])) > 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as `converged`
        if folds:
            grid = {"logisticregression__C": REGULARIZATION}
            search = GridSearchCV(model, grid, scoring=_balanced_accuracy, cv=folds)
            model = search.fit(train, targets).best_estimator_
        else:
            model.fit(train, targets)
    probe = model[-1]
    probabilities = _aligned(model.predict_proba(problem.test), probe.classes_, problem.classes)
    return Prediction(probabilities, {"C": probe.C, "converged": bool(probe.n_iter_.max() < MAX_ITERATIONS)})


@threadpool_limits.wrap(limits=1)
def neighbor_mean(problem: Problem) -> Prediction:
    """Mean of the targets of the nearest training samples, weighted and compared as `nearest_neighbors` does."""
    neighbors = min(NEIGHBORS, len(problem.train))
    model = KNeighborsRegressor(
        neighbors, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / TEMPERATURE)
    )
    return Prediction(model.fit(problem.train, problem.targets).predict(problem.test), {"k": neighbors})


@threadpool_limits.wrap(limits=1)
def ridge_probe(problem: Problem) -> Prediction:
    """Ridge regression on standardized features, of one target or of several at once.

    Its strength is that of `RIDGE` with the highest R squared on left-out groups.
    """
    folds = GroupKFold(min(FOLDS, len(np.unique(problem.groups)))).split(problem.train, problem.targets, problem.groups)
    search = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": RIDGE}, cv=list(folds))
    model = search.fit(problem.train, problem.targets).best_estimator_
    return Prediction(model.predict(problem.test), {"alpha": model[-1].alpha})


def _balanced_accuracy(model, features: np.ndarray, targets: np.ndarray) -> float:
    """Mean recall of the classes that occur.

    The number of scikit-learn's balanced_accuracy_score, which warns in two ways of folds that lack a class.
    """
    right = model.predict(features) == targets
    return float(np.mean([right[targets == label].mean() for label in np.unique(targets)]))


def _aligned(probabilities: np.ndarray, fitted: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Puts the columns of the classes that occur in train in their places among all; the others are 0."""
    aligned = np.zeros((len(probabilities), len(classes)))
    aligned[:, np.searchsorted(classes, fitted)] = probabilities
    return aligned
