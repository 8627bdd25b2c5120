"""Accuracy, balanced accuracy and AUROC of many weightings of the patients at once, exact for each.

All three scores depend on sums over patients only: confusion counts, and for the AUROC the number of pairs (positive
sample of patient p, negative sample of patient q) that are in the right order, which is w' U w for weights w of the
patients. So a weighting costs a product of small matrices instead of a sort.

Every score is a function of the same four arrays and returns (draws,) float64, larger for better and at most 1:

    targets (n,)            columns of the probabilities
    probabilities (n, K)    the predicted class is that of the largest one, the first on a tie
    groups (n,)             numbers of patients, 0..G-1
    weights (draws, G)      a row each, such as how often a patient was drawn; ones for the score itself

A score that is a mean over classes has a function of the first three beside it that gives its parts: the values (K,),
NaN where there is none, and the number of patients that each rests on.
"""

import numpy as np


def accuracy(targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the samples that are predicted right."""
    hits, total = _counts(targets, probabilities, groups, weights)
    return hits.sum(1) / total.sum(1)


def accuracy_parts(targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray):
    """The accuracy itself, and all patients."""
    patients = int(groups.max()) + 1
    return accuracy(targets, probabilities, groups, np.ones((1, patients))), np.array([patients])


def balanced_accuracy(
    targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Mean recall of the classes that occur in the resample."""
    hits, total = _counts(targets, probabilities, groups, weights)
    return mean_over_classes(hits / np.where(total > 0, total, np.nan))


def recalls(targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray):
    """Recall of each class, and the patients who have it."""
    hits, total = _counts(targets, probabilities, groups, np.ones((1, int(groups.max()) + 1)))
    return (hits / np.where(total > 0, total, np.nan))[0], patients_of_classes(targets, groups, probabilities.shape[1])


def patients_of_classes(targets: np.ndarray, groups: np.ndarray, num_classes: int) -> np.ndarray:
    """How many patients have each class: (K,) int64."""
    return np.array([len(np.unique(groups[targets == k])) for k in range(num_classes)])


def auroc(targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One class against the rest, averaged over the classes for which the resample has both; ties count half.

    NaN where there is no such class.
    """
    return mean_over_classes(_areas(targets, probabilities, groups, weights))


def areas(targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray):
    """AUROC of each class against the rest, and the patients who have the class."""
    found = _areas(targets, probabilities, groups, np.ones((1, int(groups.max()) + 1)))
    return found[0], patients_of_classes(targets, groups, probabilities.shape[1])


def _areas(targets: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws, K) float64."""
    num_groups, num_classes = weights.shape[1], probabilities.shape[1]
    found = np.full((len(weights), num_classes), np.nan)
    for k in range(num_classes):
        pairs, positives, negatives = _ordered_pairs(targets == k, probabilities[:, k], groups, num_groups)
        possible = (weights @ positives) * (weights @ negatives)
        ordered = np.einsum("dp,dp->d", weights @ pairs, weights)
        found[:, k] = np.divide(ordered, possible, out=found[:, k], where=possible > 0)
    return found


def presence_auroc(present: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of each of K questions of yes or no, averaged over those of which the resample has both answers.

    Here targets are (n, K) bool, and outputs (n, K) are larger where yes is likelier.
    """
    each = [
        auroc(yes.astype(np.int64), np.stack([-score, score], axis=1), groups, weights)
        for yes, score in zip(present.T, outputs.T, strict=True)
    ]
    return mean_over_classes(np.stack(each, axis=1))


def explained(values: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """R squared: the share of the variance of `values` (n,) that `outputs` (n,) explain; negative for what is worse
    than the mean."""
    weights = weights[:, groups] / weights[:, groups].sum(1, keepdims=True)
    spread = (weights * (values - (weights @ values)[:, None]) ** 2).sum(1)
    return 1 - weights @ (values - outputs) ** 2 / np.where(spread > 0, spread, np.nan)


def concordance(targets: np.ndarray, risks: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Harrell's C of risks (n,), for targets (n,) that are times, negative where censored: the share of the pairs in
    which it is known who died first, and whose risks say so; ties count half. NaN without such a pair."""
    times, count = np.abs(targets), weights.shape[1]
    right, pairs = np.zeros((count, count)), np.zeros((count, count))
    for i in np.flatnonzero(targets > 0):
        later = (times > times[i]) | ((times == times[i]) & (targets < 0))
        gain = (risks[i] > risks[later]) + 0.5 * (risks[i] == risks[later])
        right[groups[i]] += np.bincount(groups[later], gain, count)
        pairs[groups[i]] += np.bincount(groups[later], minlength=count)
    ordered, possible = (np.einsum("dp,dp->d", weights @ table, weights) for table in (right, pairs))
    return ordered / np.where(possible > 0, possible, np.nan)


def concordance_parts(targets: np.ndarray, risks: np.ndarray, groups: np.ndarray):
    """The concordance itself, and all patients."""
    patients = int(groups.max()) + 1
    return concordance(targets, risks, groups, np.ones((1, patients))), np.array([patients])


def recall_within(depth: int):
    """recall@depth, of outputs (n, K) that are one over the rank of the first sample of each class."""

    def recall(targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
        hit = outputs[np.arange(len(targets)), targets] * depth > 1 - 1e-9
        hits, samples = (np.bincount(groups, one, weights.shape[1]) for one in (hit, np.ones(len(hit))))
        return weights @ hits / (weights @ samples)

    return recall


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


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Mean over the second axis of (draws, K) without NaN; NaN where all of a row is."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)
