"""Scores of registration, of the numbers of each pair that `measures.py` describes.

As those of `scores.py`: functions of targets (not read), outputs (n, 5 K + 3), groups and weights (draws, G) that give
(draws,) float64, larger for better. A pair belongs to the patients of both volumes: groups are (n, 2), and a pair
counts as much as the product of its patients' weights, once where they are one. To take a patient away is to take all
pairs of this patient away, and intervals are those of a statistic over pairs of independent patients. Where every
patient is in one pair with another they are wider than need be, by the root of two.
"""

import numpy as np

from curia2_jax.curiabench.scores import mean_over_classes

OF_FIELD = 3  # TRE, SD log J, folded; before them five numbers a structure


def dice(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the pairs whose fixed volume has the structure, then over structures."""
    return mean_over_classes(_means(_dices(outputs), groups, weights))


def dice_parts(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray):
    """Dice of each structure, and the patients of the pairs that have it."""
    return _parts(_dices(outputs), groups)


def surface_dice(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """As `dice`, of the share of both surfaces within the tolerance of the other."""
    return mean_over_classes(_means(_structures(outputs)[:, :, 4], groups, weights))


def surface_dice_parts(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray):
    """Surface Dice of each structure, and the patients of the pairs that have it."""
    return _parts(_structures(outputs)[:, :, 4], groups)


def minus_hd95(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """As `dice`, of minus the 95th percentile of the distances between surfaces."""
    return -mean_over_classes(_means(_structures(outputs)[:, :, 3], groups, weights))


def minus_tre(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Minus the mean over pairs of the mean distance of their landmarks; NaN without landmarks."""
    return -_means(outputs[:, [-3]], groups, weights)[:, 0]


def minus_sd_log_j(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Minus the mean over pairs of the standard deviation of the logarithm of the determinants."""
    return -_means(outputs[:, [-2]], groups, weights)[:, 0]


def minus_folded(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Minus the mean over pairs of the share of folded nodes."""
    return -_means(outputs[:, [-1]], groups, weights)[:, 0]


def weights_of_pairs(groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws, n) of groups (n, 2), or (n,) where pairs stand for themselves."""
    if groups.ndim == 1:
        return weights[:, groups]
    first, second = groups.T
    return weights[:, first] * np.where(first == second, 1, weights[:, second])


def _structures(outputs: np.ndarray) -> np.ndarray:
    """(n, K, 5)."""
    return outputs[:, :-OF_FIELD].reshape(len(outputs), -1, 5)


def _dices(outputs: np.ndarray) -> np.ndarray:
    """(n, K), NaN where the fixed volume has none of a structure."""
    both, found, truth = np.moveaxis(_structures(outputs)[:, :, :3], 2, 0)
    return np.where(truth > 0, 2 * both / np.maximum(found + truth, 1), np.nan)


def _means(values: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws, K): weighted means of (n, K) over the pairs that have a value."""
    known, counted = ~np.isnan(values), weights_of_pairs(groups, weights)
    total = counted @ known
    return counted @ np.where(known, values, 0) / np.where(total > 0, total, np.nan)


def _parts(values: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of (n, K) over the pairs that have a value, and how many patients these are of."""
    patients = [len(np.unique(groups[known])) for known in ~np.isnan(values).T]
    return _means(values, groups, np.ones((1, int(groups.max()) + 1)))[0], np.array(patients)
