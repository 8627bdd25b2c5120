"""Scores of segmentation, of five numbers a slice and structure (`segmentation.MEASURES`).

As those of `scores.py`: functions of targets (not read), outputs (n, 5 K), groups (n,) and weights (draws, G) that give
(draws,) float64, larger for better. A patient has one value a structure, over all of their slices that show it; the
score is the mean over the patients who have the structure, and over structures.
"""

import numpy as np

from curia2_jax.curiabench.scores import mean_over_classes


def dice(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Twice the pixels that both have, over those of the one plus those of the other, of all slices of a patient."""
    return _mean(_dices(outputs, groups, weights.shape[1]), weights)


def dice_parts(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray):
    """Dice of each structure, and the patients who have it."""
    return _parts(_dices(outputs, groups, int(groups.max()) + 1))


def surface_dice(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The share of both surfaces that lies within the tolerance of the other, a mean over slices."""
    return _mean(_over_slices(outputs, 4, groups, weights.shape[1]), weights)


def surface_dice_parts(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray):
    """Surface Dice of each structure, and the patients who have it."""
    return _parts(_over_slices(outputs, 4, groups, int(groups.max()) + 1))


def minus_hd95(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Minus the 95th percentile of the distances between surfaces, a mean over slices."""
    return -_mean(_over_slices(outputs, 3, groups, weights.shape[1]), weights)


def _dices(outputs: np.ndarray, groups: np.ndarray, patients: int) -> np.ndarray:
    """(G, K), NaN where a patient has none of a structure."""
    pixels = outputs.reshape(len(outputs), -1, 5)[:, :, :3]
    sums = np.zeros((patients, *pixels.shape[1:]))
    np.add.at(sums, groups, pixels)
    both, found, truth = np.moveaxis(sums, 2, 0)
    return np.where(truth > 0, 2 * both / np.maximum(found + truth, 1), np.nan)


def _over_slices(outputs: np.ndarray, measure: int, groups: np.ndarray, patients: int) -> np.ndarray:
    """(G, K): means over the slices of each patient that have a value."""
    values = outputs.reshape(len(outputs), -1, 5)[:, :, measure]
    sums, counts = np.zeros((2, patients, values.shape[1]))
    np.add.at(sums, groups, np.nan_to_num(values))
    np.add.at(counts, groups, ~np.isnan(values))
    return sums / np.where(counts > 0, counts, np.nan)


def _parts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of (G, K) over the patients who have a value, and how many they are."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan), known.sum(0)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of (G, K) over the patients who have a value, then over structures."""
    known = ~np.isnan(values)
    total = weights @ known
    return mean_over_classes(weights @ np.where(known, values, 0) / np.where(total > 0, total, np.nan))
