"""Retrieval: the training samples that are most similar to a test sample; nothing is fitted."""

import numpy as np

from curia2_jax.curiabench.heads.problem import Prediction, Problem, one_thread

DEPTHS = (1, 5, 10)  # the k of recall@k
ROWS = 1024  # of test at a time


@one_thread()
def nearest_labels(problem: Problem) -> Prediction:
    """Labels (m, 10) of the most similar training samples by cosine, nearest first; the first one on a tie.

    Fewer columns where train has fewer samples. Train is the gallery, so that no patient is found by a scan of his own.
    """
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (problem.train, problem.test)]
    depth = min(max(DEPTHS), len(problem.train))
    found = [
        np.argsort(-(unit[1][start : start + ROWS] @ unit[0].T), axis=1, kind="stable")[:, :depth]
        for start in range(0, len(unit[1]), ROWS)
    ]
    return Prediction(problem.targets[np.concatenate(found)], {"gallery": len(problem.train)})


def recalled(targets: np.ndarray, labels: np.ndarray, depth: int) -> np.ndarray:
    """Whether one of the `depth` nearest has the label of each query: (m,) bool, whose mean is recall@depth."""
    return (labels[:, :depth] == targets[:, None]).any(1)
