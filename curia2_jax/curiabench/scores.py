"""Accuracy, balanced accuracy and AUROC with bootstrap intervals over patients, exact for every resample.

A resample of patients is a vector of multiplicities w (how often each patient was drawn). All three scores depend on
sums over patients only: confusion counts, and for the AUROC the number of pairs (positive sample of patient p, negative
sample of patient q) that are in the right order, which is w' U w. So a resample costs a product of small matrices
instead of a sort, and thousands are drawn in a moment.

Every score is a function of the same four arrays and returns (draws,) float64, larger for better and at most 1:

    targets (n,)            columns of the probabilities
    probabilities (n, K)    the predicted class is that of the largest one, the first on a tie
    groups (n,)             numbers of patients, 0..G-1
    weights (draws, G)      one row of multiplicities a resample; ones for the score itself
"""

import numpy as np

DRAWS = 2000
INTERVAL = (2.5, 97.5)


def resample(num_groups: int, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Multiplicities of `num_groups` groups drawn with replacement: (draws, num_groups) float64."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=draws).astype(np.float64)


def accuracy(targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the samples that are predicted right."""
    hits, total = _counts(targets, probabilities, groups, weights)
    return hits.sum(1) / total.sum(1)


def balanced_accuracy(
    targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Mean recall of the classes that occur in the resample."""
    hits, total = _counts(targets, probabilities, groups, weights)
    return _mean_over_classes(hits / np.where(total > 0, total, np.nan))


def auroc(targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One class against the rest, averaged over the classes for which the resample has both; ties count half.

    NaN where there is no such class.
    """
    num_groups, num_classes = weights.shape[1], probabilities.shape[1]
    areas = np.full((len(weights), num_classes), np.nan)
    for k in range(num_classes):
        pairs, positives, negatives = _ordered_pairs(targets == k, probabilities[:, k], groups, num_groups)
        possible = (weights @ positives) * (weights @ negatives)
        ordered = np.einsum("dp,dp->d", weights @ pairs, weights)
        areas[:, k] = np.where(possible > 0, ordered / np.maximum(possible, 1), np.nan)
    return _mean_over_classes(areas)


def presence_auroc(present: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of each of K questions of yes or no, averaged over those of which the resample has both answers.

    Here targets are (n, K) bool, and outputs (n, K) are larger where yes is likelier.
    """
    areas = [
        auroc(yes.astype(np.int64), np.stack([-score, score], axis=1), groups, weights)
        for yes, score in zip(present.T, outputs.T, strict=True)
    ]
    return _mean_over_classes(np.stack(areas, axis=1))


def explained(values: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """R squared: the share of the variance of `values` (n,) that `outputs` (n,) explain; negative for what is worse
    than the mean."""
    weights = weights[:, groups] / weights[:, groups].sum(1, keepdims=True)
    spread = (weights * (values - (weights @ values)[:, None]) ** 2).sum(1)
    return 1 - weights @ (values - outputs) ** 2 / np.where(spread > 0, spread, np.nan)


def _counts(targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, weights: np.ndarray):
    """Samples of each class that are right, and all of them: two arrays (draws, K) float64."""
    num_groups, num_classes = weights.shape[1], probabilities.shape[1]
    right = (probabilities.argmax(1) == targets).astype(np.float64)
    hits, total = np.zeros((num_groups, num_classes)), np.zeros((num_groups, num_classes))
    np.add.at(hits, (groups, targets), right)
    np.add.at(total, (groups, targets), 1)
    return weights @ hits, weights @ total


def _ordered_pairs(positive: np.ndarray, score: np.ndarray, groups: np.ndarray, num_groups: int):
    """U (G, G): pairs of a positive of group p above a negative of group q; and how many of both each group has."""
    pairs = np.zeros((num_groups, num_groups))
    for q in np.unique(groups[~positive]):
        others = np.sort(score[~positive & (groups == q)])
        below = np.searchsorted(others, score[positive], "left") + np.searchsorted(others, score[positive], "right")
        pairs[:, q] = np.bincount(groups[positive], below / 2, num_groups)
    counts = (np.bincount(groups[side], minlength=num_groups).astype(np.float64) for side in (positive, ~positive))
    return pairs, *counts


def _mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Mean over the second axis of (draws, K) without NaN; NaN where all of a row is."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def summary(point: float, draws: np.ndarray) -> list[float | None]:
    """[score, lower, upper]: the score and the 95 % percentile interval of its resamples; None where undefined."""
    known = draws[~np.isnan(draws)]
    low, high = np.percentile(known, INTERVAL) if len(known) else (np.nan, np.nan)
    return [None if np.isnan(value) else float(value) for value in (point, low, high)]
