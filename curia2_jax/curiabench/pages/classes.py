"""What is known of each class of a task: counts, recall and AUROC with intervals, precision."""

from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench import intervals, map_scores, scores
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.results import Score


class ClassFacts(NamedTuple):
    """One class in the test split. Scores are [value, lower, upper], None where undefined; `precision` is None where
    nobody was given the class; `patients` are those who have it."""

    name: str
    samples: int
    patients: int
    recall: Score
    auroc: Score
    precision: float | None


def per_class(one: Answers, row: str, head: str) -> list[ClassFacts]:
    """Every class of a task that the test split has, by the first seed of a row and head.

    The intervals are those of `intervals.py`, with a t quantile of the patients who have the class: of the others there
    may be many, and they do not say how sure a recall is.
    """
    outputs = one.outputs[row, head][0]
    groups = np.unique(one.units, return_inverse=True)[1]
    patients = scores.patients_of_classes(one.targets, groups, len(one.classes)).tolist()
    said = outputs.argmax(1)
    found = []
    for k, name in enumerate(one.classes):
        if not patients[k]:
            continue
        given = said == k
        precision = float((one.targets[given] == k).mean()) if given.any() else None
        recall, area = (_score(score, k, one.targets, outputs, groups, patients[k]) for score in (_recall, _area))
        found.append(ClassFacts(name, int((one.targets == k).sum()), patients[k], recall, area, precision))
    return found


class StructureFacts(NamedTuple):
    """One structure of a segmentation, as `ClassFacts`. Distances are in mm, or pixels where no spacing is known."""

    name: str
    patients: int
    dice: Score
    surface_dice: Score
    minus_hd95: Score


def per_structure(one: Answers, row: str, head: str) -> list[StructureFacts]:
    """Every structure that the test split has, by the first seed of a row and head."""
    outputs = one.outputs[row, head][0]
    groups = np.unique(one.units, return_inverse=True)[1]
    numbers = np.arange(int(groups.max()) + 1)
    patients = map_scores.dice_parts(one.targets, outputs, groups)[1].tolist()
    found = []
    for k, name in enumerate(one.classes):
        own = outputs[:, 5 * k : 5 * k + 5]  # `segmentation.MEASURES`
        if patients[k]:
            each = (
                intervals.estimate(score, one.targets, own, groups, numbers, len(numbers))._replace(
                    patients=patients[k]
                )
                for score in (map_scores.dice, map_scores.surface_dice, map_scores.minus_hd95)
            )
            dice, surface, far = map(intervals.interval, each)
            found.append(StructureFacts(name, patients[k], dice, surface, far))
    return found


def _score(score, k: int, targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, patients: int) -> Score:
    numbers = np.arange(int(groups.max()) + 1)
    got = intervals.estimate(score, (targets == k).astype(np.int64), _sides(outputs, k), groups, numbers, len(numbers))
    bounded = intervals.bounded(got, np.array([got.value]), np.array([patients]))
    return intervals.interval(bounded._replace(patients=patients))


def _sides(outputs: np.ndarray, k: int) -> np.ndarray:
    """(n, 2): the output of class k, and whether class k is the answer."""
    return np.stack([outputs[:, k], outputs.argmax(1) == k], axis=1)


def _recall(positive: np.ndarray, sides: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the samples of the class that are given it: (draws,)."""
    count = weights.shape[1]
    hits = np.bincount(groups, positive * sides[:, 1], count)
    return weights @ hits / (weights @ np.bincount(groups, positive, count))


def _area(positive: np.ndarray, sides: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of the class against the rest: (draws,); NaN where the test split has no other class."""
    return scores.auroc(positive, np.stack([-sides[:, 0], sides[:, 0]], axis=1), groups, weights)
