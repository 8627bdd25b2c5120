"""Weighted nearest neighbors, as DINO has them: nothing to choose and nothing to fit."""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from curia2_jax.curiabench.heads.problem import Prediction, Problem, aligned, one_thread

NEIGHBORS = 20
TEMPERATURE = 0.07


@one_thread()
def nearest_neighbors(problem: Problem) -> Prediction:
    """Weighted vote of the nearest training samples (DINO, appendix on k-NN evaluation): probabilities (m, K).

    Features with a direction are compared by cosine, as DINO does; the others are standardized by train and compared by
    Euclidean distance.
    """
    train, test = problem.train, problem.test
    neighbors = min(NEIGHBORS, len(train))
    if problem.has_direction:
        model = KNeighborsClassifier(neighbors, metric="cosine", algorithm="brute", weights=_weights)
    else:
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
        model = KNeighborsClassifier(neighbors, weights="distance")
    probabilities = model.fit(train, problem.targets).predict_proba(test)
    return Prediction(aligned(probabilities, model.classes_, problem.classes), {"k": neighbors})


@one_thread()
def neighbor_mean(problem: Problem) -> Prediction:
    """Mean of the targets (n,) or (n, T) of the nearest training samples, weighted by cosine as `nearest_neighbors`."""
    neighbors = min(NEIGHBORS, len(problem.train))
    model = KNeighborsRegressor(neighbors, metric="cosine", algorithm="brute", weights=_weights)
    return Prediction(model.fit(problem.train, problem.targets).predict(problem.test), {"k": neighbors})


def _weights(distance: np.ndarray) -> np.ndarray:
    return np.exp(-distance / TEMPERATURE)
