"""The two classifiers on frozen features: weighted nearest neighbours and a linear probe, both scikit-learn's.

Neither has anything to tune by hand: the neighbours follow DINO (k = 20, weight exp(similarity / 0.07)), and the
probe's only number, C, is chosen on patients of the training split. Both run on one thread: sums then have one order on
every machine, and the matrices are so small that waiting for each other costs threads ten times what they save.
"""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

NEIGHBOURS = 20
TEMPERATURE = 0.07
REGULARISATION = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
UNCHOSEN = 1e-2
FOLDS = 4
MAX_ITERATIONS = 500


class Prediction(NamedTuple):
    """Class probabilities (n, K) float64 in the order of the classes that were asked for, and how they came about."""

    probabilities: np.ndarray
    settings: dict


@threadpool_limits.wrap(limits=1)
def nearest_neighbours(
    train: np.ndarray, targets: np.ndarray, test: np.ndarray, classes: np.ndarray, direction: bool
) -> Prediction:
    """Weighted vote of the nearest training samples (DINO, appendix on k-NN evaluation).

    Tokens (`direction`) are compared by cosine, as DINO does. A handful of numbers with units, such as mean and spread
    of pixels, has no direction that means something: they are standardised and compared by Euclidean distance.
    """
    neighbours = min(NEIGHBOURS, len(train))
    if direction:
        model = KNeighborsClassifier(
            neighbours, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / TEMPERATURE)
        )
    else:
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
        model = KNeighborsClassifier(neighbours, weights="distance")
    probabilities = model.fit(train, targets).predict_proba(test)
    return Prediction(_aligned(probabilities, model.classes_, classes), {"k": neighbours})


@threadpool_limits.wrap(limits=1)
def linear_probe(
    train: np.ndarray, targets: np.ndarray, groups: np.ndarray, test: np.ndarray, classes: np.ndarray
) -> Prediction:
    """Multinomial logistic regression on standardised features.

    C is the value of `REGULARISATION` with the highest balanced accuracy on left-out `groups` (n,), the smallest one on
    a tie, and the probe is then fitted to all of train. Without a second group, or when leaving one out leaves a single
    class, there is nothing to choose on, and C is `UNCHOSEN`.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=UNCHOSEN, max_iter=MAX_ITERATIONS))
    folds = []
    if (num_groups := len(np.unique(groups))) > 1:
        folds = list(GroupKFold(min(FOLDS, num_groups)).split(train, targets, groups))
        folds = [fold for fold in folds if len(np.unique(targets[fold[0]])) > 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as `converged`
        if folds:
            grid = {"logisticregression__C": REGULARISATION}
            model = GridSearchCV(model, grid, scoring=_balanced_accuracy, cv=folds).fit(train, targets).best_estimator_
        else:
            model.fit(train, targets)
    probe = model[-1]
    probabilities = _aligned(model.predict_proba(test), probe.classes_, classes)
    return Prediction(probabilities, {"C": probe.C, "converged": bool(probe.n_iter_.max() < MAX_ITERATIONS)})


def _balanced_accuracy(model, features: np.ndarray, targets: np.ndarray) -> float:
    """Mean recall of the classes that occur; scikit-learn's scorer warns when a fold lacks one."""
    right = model.predict(features) == targets
    return float(np.mean([right[targets == label].mean() for label in np.unique(targets)]))


def _aligned(probabilities: np.ndarray, fitted: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Puts the columns of the classes that occur in train in their places among all; the others are 0."""
    aligned = np.zeros((len(probabilities), len(classes)))
    aligned[:, np.searchsorted(classes, fitted)] = probabilities
    return aligned
