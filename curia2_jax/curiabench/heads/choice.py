"""How a head chooses its one number: on the val split, or on left-out patients of train; never on test."""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from curia2_jax.curiabench.heads.problem import Problem

FOLDS = 4


class Trial(NamedTuple):
    """The rows of train to fit, and the samples to judge by: left-out rows of train, or the val split."""

    fit: np.ndarray  # (n,) bool
    features: np.ndarray  # (j, D)
    targets: np.ndarray  # (j, ...)


def trials(problem: Problem) -> tuple[str, list[Trial]]:
    """What is chosen on ("val", "folds" or "nothing"), and the trials; a trial that fits one class only is left out.

    Folds keep every patient whole and, in kinds that have classes, spread each class over them.
    """
    if problem.val is not None and problem.val_targets is not None and len(problem.val):
        return "val", [Trial(np.ones(len(problem.train), bool), problem.val, problem.val_targets)]
    found = []
    for judged in _folds(problem):
        fit = np.ones(len(problem.train), bool)
        fit[judged] = False
        if not len(problem.classes) or len(np.unique(problem.targets[fit])) > 1:
            found.append(Trial(fit, problem.train[judged], problem.targets[judged]))
    return ("folds" if found else "nothing"), found


def _folds(problem: Problem) -> list[np.ndarray]:
    """Row numbers of each left-out part."""
    number = min(FOLDS, len(np.unique(problem.groups)))
    if number < 2:
        return []
    if not len(problem.classes):
        return [left for _, left in GroupKFold(number).split(problem.train, None, problem.groups)]
    # The splitter wants one class with as many samples as there are folds.
    number = min(number, int(np.unique(problem.targets, return_counts=True)[1].max()))
    if number < 2:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        parts = StratifiedGroupKFold(number).split(problem.train, problem.targets, problem.groups)
        return [left for _, left in parts if len(left)]


def best(grid: tuple[float, ...], scores: np.ndarray) -> tuple[float, str]:
    """The first value of `grid` with the highest mean of `scores` (trials, values), and at which edge of it that lies.

    The second is "", "lowest" or "highest": there the grid was too short, which a report has to say.
    """
    chosen = int(np.argmax(scores.mean(0)))
    return grid[chosen], {0: "lowest", len(grid) - 1: "highest"}.get(chosen, "")
