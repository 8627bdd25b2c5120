"""A linear layer on patch tokens: segmentation of slices, from the tokens of the input at its size or at twice that.

What is fitted is the share of each label in each patch, which is convex and has one answer; at test the logits are
brought to the pixels bilinearly, as DINOv3's linear head does, and the largest wins.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from curia2_jax.curiabench import overlap
from curia2_jax.curiabench.heads import logistic
from curia2_jax.curiabench.heads.problem import Prediction, one_thread

STRENGTHS = (1e-4, 1e-2, 1.0)  # scikit-learn's C
TOLERANCE, MAX_STEPS = 1e-5, 50
HELD_OUT = 4  # without a val split, one patient of so many judges


class Maps(NamedTuple):
    """n slices with their label maps. `tokens` (n, g, g, D) float32; `labels`: (H, W) integers each, 0 = background."""

    tokens: torch.Tensor
    labels: list[np.ndarray]


@one_thread()
def linear_segmentation(
    train: Maps, groups: np.ndarray, test: torch.Tensor, shapes: list[tuple[int, int]], classes: int, val: Maps | None
) -> tuple[list[np.ndarray], Prediction]:
    """Label maps of the test slices at their `shapes`, and how they came about.

    The strength has the highest mean Dice on val, or else on the slices of every fourth patient of `groups` (n,).
    """
    judged, fit = val, np.ones(len(train.labels), bool)
    number = np.unique(groups, return_inverse=True)[1]
    if val is None and number.max() > 0:
        fit = number % HELD_OUT != HELD_OUT - 1 if number.max() >= HELD_OUT - 1 else number > 0
        judged = Maps(train.tokens[~fit], [one for one, used in zip(train.labels, fit, strict=True) if not used])
    shares = torch.stack([shares_of_patches(one, train.tokens.shape[1], classes) for one in train.labels])
    features, targets = train.tokens.double().flatten(0, 2), shares.to(train.tokens.device).flatten(0, 2)
    chosen, edge = STRENGTHS[len(STRENGTHS) // 2], ""
    if judged is not None:
        rows = torch.from_numpy(fit).to(features.device).repeat_interleave(train.tokens.shape[1] ** 2)
        fits = logistic.fit(features, targets, rows[None], STRENGTHS, TOLERANCE, MAX_STEPS)
        shapes_judged = [one.shape for one in judged.labels]
        found = [_maps(judged.tokens, shapes_judged, fits, number) for number in range(len(STRENGTHS))]
        scores = [mean_dice(one, judged.labels, classes) for one in found]
        best = int(np.argmax(scores))
        chosen, edge = STRENGTHS[best], {0: "lowest", len(STRENGTHS) - 1: "highest"}.get(best, "")
    everything = torch.ones((1, len(features)), dtype=torch.bool, device=features.device)
    fits = logistic.fit(features, targets, everything, (chosen,), TOLERANCE, MAX_STEPS)
    chosen_on = "val" if val is not None else "nothing" if judged is None else "folds"
    converged = bool(fits.converged[0])
    return _maps(test, shapes, fits, 0), Prediction(
        np.empty(0), {"C": chosen, "converged": converged, "chosen_on": chosen_on, "edge": edge}
    )


def shares_of_patches(labels: np.ndarray, grid: int, classes: int) -> torch.Tensor:
    """How much of each patch each label covers: (H, W) integers -> (g, g, K) float64, rows that add up to 1."""
    one_hot = torch.from_numpy((labels[None] == np.arange(classes)[:, None, None]).astype(np.float64))
    return functional.adaptive_avg_pool2d(one_hot, grid).permute(1, 2, 0)


def _maps(tokens: torch.Tensor, shapes: list, fits: logistic.Fits, which: int) -> list[np.ndarray]:
    """Logits of patches (n, g, g, D), bilinearly at the pixels of each shape, and their largest."""
    found = []
    for one, shape in zip(tokens, shapes, strict=True):
        logits = one.double() @ fits.weights[which] + fits.bias[which]
        logits = logits.masked_fill(~fits.present[which], -1e30).permute(2, 0, 1)[None]
        found.append(functional.interpolate(logits, shape, mode="bilinear").argmax(1)[0].cpu().numpy())
    return found


def mean_dice(found: list[np.ndarray], truth: list[np.ndarray], classes: int) -> float:
    """Mean over structures of Dice over all pixels of all slices; a structure that is nowhere does not count."""
    dice = []
    for label in range(1, classes):
        both = [(one == label, other == label) for one, other in zip(found, truth, strict=True)]
        size = sum(int(a.sum() + b.sum()) for a, b in both)
        dice.append(2 * sum(int((a & b).sum()) for a, b in both) / size if size else np.nan)
    return float(np.nanmean(dice)) if not np.isnan(dice).all() else 0.0


def agreements(
    found: np.ndarray, truth: np.ndarray, classes: int, spacing: tuple[float, ...], tolerance: float
) -> list[overlap.Agreement]:
    """Agreement of each structure, background left out, of one slice or one volume."""
    return [overlap.agreement(found == one, truth == one, spacing, tolerance) for one in range(1, classes)]
