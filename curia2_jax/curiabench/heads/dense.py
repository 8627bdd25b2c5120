"""A linear layer on patch tokens: how much of a patch each label covers, and from that label maps of slices.

The shares of labels in patches are fitted, which is convex and has one answer; the logits are then brought to the
pixels bilinearly, as DINOv3's linear head does, and the largest wins.
"""

import numpy as np
import torch
from torch.nn import functional

from curia2_jax.curiabench.heads import choice, logistic
from curia2_jax.curiabench.heads.problem import Problem, one_thread

SHARE_STRENGTHS = (1e-4, 1e-2, 1.0)  # scikit-learn's C
TOLERANCE, MAX_STEPS = 1e-5, 50
LEAST = 1e-12  # probability of a label that a fold lacks
NEVER = -1e30  # its logit, which can be averaged


@one_thread()
def fit_shares(problem: Problem) -> tuple[logistic.Fit, dict[str, float | bool | str]]:
    """The layer for tokens (n, D) and shares (n, K) that add up to 1, and how it came about.

    Its strength has the lowest cross-entropy on val, or else on left-out patients. `problem.classes` is empty: patients
    alone say what is left out.
    """
    put = lambda x: torch.from_numpy(np.asarray(x, np.float64)).to(problem.device)  # noqa: E731
    features, shares = put(problem.train), put(problem.targets)
    chosen_on, trials = choice.trials(problem)
    strength, edge = SHARE_STRENGTHS[len(SHARE_STRENGTHS) // 2], ""
    if trials:
        scores = []
        for trial in trials:
            rows, judged = torch.from_numpy(trial.fit).to(problem.device), (put(trial.features), put(trial.targets))
            fits = logistic.fit(features[rows], shares[rows], SHARE_STRENGTHS, TOLERANCE, MAX_STEPS)
            scores.append([_likelihood(one, *judged) for one in fits])
        strength, edge = choice.best(SHARE_STRENGTHS, np.array(scores))
    (last,) = logistic.fit(features, shares, (strength,), TOLERANCE, MAX_STEPS)
    return last, {"C": strength, "converged": last.converged, "chosen_on": chosen_on, "edge": edge}


def _likelihood(one: logistic.Fit, features: torch.Tensor, shares: torch.Tensor) -> float:
    return float((shares * logistic.probabilities(features, one).clamp(min=LEAST).log()).sum(1).mean())


def shares_of_patches(labels: np.ndarray, grid: int | tuple[int, int], classes: int) -> np.ndarray:
    """How much of each patch each label covers: (H, W) integers -> (g, h, K) float64, rows that add up to 1."""
    one_hot = torch.from_numpy((labels[None] == np.arange(classes)[:, None, None]).astype(np.float64))
    return functional.adaptive_avg_pool2d(one_hot, grid).permute(1, 2, 0).numpy()


def label_map(tokens: torch.Tensor, layer: logistic.Fit, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) int64 of patch tokens (g, h, D): their logits bilinearly at the pixels, and the largest."""
    logits = (tokens.double().to(layer.bias.device) @ layer.weights + layer.bias).clamp(min=NEVER)
    logits = functional.interpolate(logits.permute(2, 0, 1)[None], shape, mode="bilinear")
    return logits.argmax(1)[0].cpu().numpy()
