"""Ridge regression in closed form: one decomposition of a fold gives every strength."""

import numpy as np

from curia2_jax.curiabench.heads import choice
from curia2_jax.curiabench.heads.problem import Prediction, Problem, one_thread

RIDGE = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


@one_thread()
def ridge_probe(problem: Problem) -> Prediction:
    """Ridge regression on standardized features, of one target or of several at once: (m,) or (m, T).

    Its strength is that of `RIDGE` with the highest R squared on the val split, or else on left-out patients; the
    middle of the grid where there is nothing to choose on.
    """
    chosen_on, trials = choice.trials(problem)
    strength, edge = RIDGE[len(RIDGE) // 2], ""
    if trials:
        scores = np.array([_scores(problem, trial) for trial in trials])
        strength, edge = choice.best(RIDGE, scores)
    outputs = _predictions(problem.train, problem.targets, problem.test, (strength,))[0]
    return Prediction(outputs, {"alpha": strength, "chosen_on": chosen_on, "edge": edge})


def _scores(problem: Problem, trial: choice.Trial) -> list[float]:
    found = _predictions(problem.train[trial.fit], problem.targets[trial.fit], trial.features, RIDGE)
    return [_r_squared(trial.targets, one) for one in found]


def _predictions(train, targets, test, strengths) -> np.ndarray:
    """Answers (A, m) or (A, m, T) of the A strengths, fitted to train (n, D) after standardizing it."""
    train, test, targets = (np.asarray(x, np.float64) for x in (train, test, targets))
    center, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 0, scale, 1)
    # Left and right singular vectors, the directions without spread left out: they have no weight.
    left, spread, right = np.linalg.svd((train - center) / scale, full_matrices=False)
    asked = left.T @ (targets - targets.mean(0)).reshape(len(targets), -1)
    shown = ((test - center) / scale) @ right.T
    shrunk = [shown @ (asked * (spread / (spread**2 + strength))[:, None]) for strength in strengths]
    return np.stack(shrunk).reshape(len(strengths), len(test), *targets.shape[1:]) + targets.mean(0)


def _r_squared(targets: np.ndarray, found: np.ndarray) -> float:
    """Mean over targets of the share of the variance that is explained; a target without variance has none."""
    rest, spread = ((targets - found) ** 2).sum(0), ((targets - targets.mean(0)) ** 2).sum(0)
    return float(np.mean(1 - rest / np.where(spread > 0, spread, np.inf)))
