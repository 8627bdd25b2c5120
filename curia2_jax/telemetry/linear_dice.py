"""How well a linear head on patch tokens says where structures lie: ridge regression and Dice, from sums alone.

A head learns from one half of the slices, in closed form, which share of a patch each structure covers, and is scored
on the other half. Neither needs the tokens: second moments of both halves say it all, in NumPy and float64.
"""

from typing import NamedTuple

import numpy as np

PENALTY = 0.01  # of ridge regression, times the patches: a hundredth of the variance of a standardized dimension


class Moments(NamedTuple):
    """Of patch tokens and shares, D + K numbers a patch, in the half to learn from and in the half to test."""

    patches: np.ndarray  # (2,)
    mean: np.ndarray  # (2, D + K)
    second: np.ndarray  # (2, D + K, D + K): sums of products about the mean


def joined(one: Moments, other: Moments) -> Moments:
    """Those of both sets of patches, in float64 (Chan, Golub and LeVeque, 1983)."""
    a, b = (Moments(*(np.asarray(x, np.float64) for x in each)) for each in (one, other))
    count = a.patches + b.patches
    share = b.patches / np.maximum(count, 1)
    apart = b.mean - a.mean
    between = (a.patches * share)[:, None, None] * apart[:, :, None] * apart[:, None, :]
    return Moments(count, a.mean + share[:, None] * apart, a.second + b.second + between)


def linear_dice(found: Moments, dim: int) -> float:
    """Mean over structures of the Dice of what a ridge regression says of the patches of the second half.

    Of shares t and answers p, which are not clipped, Dice is 2 sum(p t) / (sum(p p) + sum(t t)), as in V-Net (Milletari
    et al., 2016); for patches that have all or nothing of a structure it is the usual one.

    Args:
      dim: D, of the tokens.
    Returns:
      At most 1; NaN where a sum is not finite.
    """
    fit, test = (Moments(*(np.asarray(x[half], np.float64) for x in found)) for half in (0, 1))
    if not all(np.isfinite(x).all() for x in found):
        return float("nan")
    weights, bias = _ridge(fit, dim)
    tokens, shares = test.mean[:dim], test.mean[dim:]
    answer = tokens @ weights + bias
    along = test.second[:dim, :dim] @ weights
    answers = (weights * along).sum(0) + test.patches * answer**2
    truths = test.second[dim:, dim:].diagonal() + test.patches * shares**2
    both = (weights * test.second[:dim, dim:]).sum(0) + test.patches * answer * shares
    some = answers + truths > 0  # not where every slice with the structure is damaged
    return float((2 * both[some] / (answers + truths)[some]).mean()) if some.any() else float("nan")


def _ridge(fit: Moments, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (D, K) and intercepts (K,) on tokens whose dimensions are standardized first; constant ones get none."""
    variance = fit.second.diagonal()[:dim] / fit.patches
    scale = np.where(variance > 1e-24, 1 / np.sqrt(np.maximum(variance, 1e-24)), 0.0)
    products = fit.second[:dim, :dim] * scale * scale[:, None] + PENALTY * fit.patches * np.eye(dim)
    weights = scale[:, None] * np.linalg.solve(products, scale[:, None] * fit.second[:dim, dim:])
    return weights, fit.mean[dim:] - fit.mean[:dim] @ weights
