"""Cox regression with a ridge penalty (Breslow's ties): the hazard of frozen features, by Newton's method."""

from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench import scores
from curia2_jax.curiabench.heads import choice
from curia2_jax.curiabench.heads.problem import Prediction, Problem, one_thread

PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
TOLERANCE, MAX_STEPS = 1e-10, 100  # of the Newton decrement per sample


class _Risks(NamedTuple):
    """n samples by increasing time. `first` (n,): the first sample of the same time, from which on all are at risk."""

    features: np.ndarray  # (n, r)
    event: np.ndarray  # (n,) bool
    first: np.ndarray


@one_thread()
def cox_probe(problem: Problem) -> Prediction:
    """Log risks (m,), larger for those who die sooner; targets (n,) are times, negative where censored (as XGBoost's).

    Minimizes the negative log partial likelihood + half of the penalty times the squared weights of standardized
    features, as scikit-survival does. The penalty has the highest concordance on val, or else on left-out patients.
    """
    chosen_on, trials = choice.trials(problem)
    penalty, edge = PENALTIES[len(PENALTIES) // 2], ""
    if trials:
        penalty, edge = choice.best(PENALTIES, np.array([_scores(problem, trial) for trial in trials]))
    risks, converged = fit(problem.train, problem.targets, problem.test, penalty)
    return Prediction(risks, {"penalty": penalty, "converged": converged, "chosen_on": chosen_on, "edge": edge})


def _scores(problem: Problem, trial: choice.Trial) -> list[float]:
    """Concordance at every penalty; one half where the judged samples have no pair to compare."""
    found = (fit(problem.train[trial.fit], problem.targets[trial.fit], trial.features, one)[0] for one in PENALTIES)
    same, one = np.zeros(len(trial.targets), np.int64), np.ones((1, 1))
    return [float(np.nan_to_num(scores.concordance(trial.targets, risks, same, one)[0], nan=0.5)) for risks in found]


def fit(train: np.ndarray, targets: np.ndarray, test: np.ndarray, penalty: float) -> tuple[np.ndarray, bool]:
    """Log risks of test (m, D) after a fit to train (n, D), and whether the fit converged."""
    times, events = np.abs(targets), targets > 0
    order = np.argsort(times, kind="stable")
    center, scale = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1)
    standard = (train[order] - center) / scale
    # The weights lie in the span of the samples: at most n numbers, however wide the features.
    left, spread, right = np.linalg.svd(standard, full_matrices=False)
    risks = _Risks(left * spread, events[order], np.searchsorted(times[order], times[order]))
    weights, converged = np.zeros(len(spread)), False
    value, gradient, hessian = _likelihood(weights, risks, penalty)
    for _ in range(MAX_STEPS):
        step = -np.linalg.solve(hessian, gradient)
        decrement = -float(gradient @ step)
        if converged := decrement <= TOLERANCE * len(train):
            weights = weights + step  # what is left of it is of second order
            break
        length = 1.0
        while (after := _likelihood(weights + length * step, risks, penalty))[0] > value - 1e-4 * length * decrement:
            length /= 2
            if length < 1e-9:
                return ((test - center) / scale) @ right.T @ weights, False
        weights, (value, gradient, hessian) = weights + length * step, after
    return ((test - center) / scale) @ right.T @ weights, converged


def _likelihood(weights: np.ndarray, risks: _Risks, penalty: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Negative log partial likelihood with its penalty, gradient (r,) and Hessian (r, r)."""
    features, event, first = risks
    log_risk = features @ weights
    top = log_risk.max()
    hazard = np.exp(log_risk - top)
    at_risk = np.cumsum(hazard[::-1])[::-1][first][event]
    mean = np.cumsum((hazard[:, None] * features)[::-1], 0)[::-1][first][event] / at_risk[:, None]
    # How much each sample weighs over the risk sets that hold it: those of all events up to its time.
    share = np.zeros(len(features) + 1)
    np.add.at(share, first[event], 1 / at_risk)
    share = hazard * np.cumsum(share[:-1])
    value = (np.log(at_risk) + top - log_risk[event]).sum() + 0.5 * penalty * weights @ weights
    gradient = (mean - features[event]).sum(0) + penalty * weights
    hessian = (features * share[:, None]).T @ features - mean.T @ mean + penalty * np.eye(len(weights))
    return float(value), gradient, hessian
