"""Scores of several questions of yes or no, as those of `scores.py`, of targets (n, K) that are 0, 1 or NaN = unknown.

Outputs (n, K) are larger where yes is likelier. A score is the mean over the questions of which a weighting has both
answers; `..._parts` has them one by one.
"""

from collections.abc import Callable

import numpy as np

from curia2_jax.curiabench import scores


def auroc(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each question; ties count half."""
    return scores.mean_over_classes(_each(_area, targets, outputs, groups, weights))


def average_precision(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Precision at every threshold, weighted by the recall that it adds, as scikit-learn has it."""
    return scores.mean_over_classes(_each(_precision, targets, outputs, groups, weights))


def auroc_parts(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray):
    """AUROC of each question, and the patients who say yes to it."""
    ones = np.ones((1, int(groups.max()) + 1))
    return _each(_area, targets, outputs, groups, ones)[0], _patients(targets, groups)


def average_precision_parts(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray):
    """Average precision of each question, and the patients who say yes to it."""
    ones = np.ones((1, int(groups.max()) + 1))
    return _each(_precision, targets, outputs, groups, ones)[0], _patients(targets, groups)


def _patients(targets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return np.array([len(np.unique(groups[column == 1])) for column in targets.T])


def _each(one: Callable, targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray):
    """(draws, K) float64."""
    found = np.full((len(weights), targets.shape[1]), np.nan)
    for label in range(targets.shape[1]):
        known = ~np.isnan(targets[:, label])
        found[:, label] = one(targets[known, label] == 1, outputs[known, label], groups[known], weights)
    return found


def _area(yes: np.ndarray, output: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return scores.auroc(yes.astype(np.int64), np.stack([-output, output], axis=1), groups, weights)


def _precision(yes: np.ndarray, output: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(-output, kind="stable")
    weight = weights[:, groups[order]]
    right, above = np.cumsum(weight * yes[order], axis=1), np.cumsum(weight, axis=1)
    ends = np.flatnonzero(np.diff(output[order], append=np.nan))  # the last of those with one output
    right, above = right[:, ends], above[:, ends]
    gained = np.diff(right, axis=1, prepend=0)
    precision = right / np.where(above > 0, above, 1)
    total = right[:, -1] if right.shape[1] else np.zeros(len(weights))
    both = (total > 0) & (total < above[:, -1]) if right.shape[1] else np.zeros(len(weights), bool)
    return np.where(both, (gained * precision).sum(1) / np.where(total > 0, total, 1), np.nan)
