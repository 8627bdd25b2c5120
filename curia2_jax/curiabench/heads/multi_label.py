"""Several questions of yes or no at once: a probe of two classes for each, on the samples whose answer is known."""

from collections.abc import Callable

import numpy as np

from curia2_jax.curiabench.heads.knn import nearest_neighbors
from curia2_jax.curiabench.heads.linear import linear_probe
from curia2_jax.curiabench.heads.problem import Prediction, Problem

YES_OR_NO = np.array([0, 1])


def each_label(probe: Callable[[Problem], Prediction]) -> Callable[[Problem], Prediction]:
    """A head for targets (n, K) of 0, 1 and NaN, which answers (m, K): how likely each is.

    A label that train has always or never is given that. Each chooses for itself; the settings say how many did so at
    an edge of the grid.
    """

    def predict(problem: Problem) -> Prediction:
        outputs, found = np.zeros((len(problem.test), problem.targets.shape[1])), []
        for label in range(outputs.shape[1]):
            known = ~np.isnan(problem.targets[:, label])
            answers = problem.targets[known, label].astype(np.int64)
            if len(np.unique(answers)) < 2:
                outputs[:, label] = answers.mean() if len(answers) else np.nan
                continue
            asked = problem._replace(
                train=problem.train[known], targets=answers, groups=problem.groups[known], classes=YES_OR_NO
            )
            found.append(probe(_with_val(asked, label)))
            outputs[:, label] = found[-1].outputs[:, 1]
        return Prediction(
            outputs,
            {
                "fitted_labels": len(found),
                "labels_at_an_edge": sum(bool(one.settings.get("edge")) for one in found),
                "converged": all(bool(one.settings.get("converged", True)) for one in found),
            },
        )

    return predict


def _with_val(problem: Problem, label: int) -> Problem:
    """The val split with the answers to one label that are known; without val if that leaves one class."""
    if problem.val is None or problem.val_targets is None:
        return problem
    known = ~np.isnan(problem.val_targets[:, label])
    answers = problem.val_targets[known, label].astype(np.int64)
    if len(np.unique(answers)) < 2:
        return problem._replace(val=None, val_targets=None)
    return problem._replace(val=problem.val[known], val_targets=answers)


linear_labels, neighbor_labels = each_label(linear_probe), each_label(nearest_neighbors)
