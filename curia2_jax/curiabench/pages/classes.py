"""What is known of each class, label or structure of a task: counts, and scores with their intervals.

The intervals are those of `intervals.py`, with a t quantile of the patients who have what a line is about: of the
others there may be many, and they do not say how sure it is.
"""

from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench import intervals, label_scores, map_scores, scores
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.registration import pair_scores
from curia2_jax.curiabench.results import Score
from curia2_jax.data.ingest.benchmark_schema import SEGMENTATION


class ClassFacts(NamedTuple):
    """One class in the test split. Scores are [value, lower, upper], None where undefined; `precision` is None where
    nobody was given the class; `patients` are those who have it."""

    name: str
    samples: int
    patients: int
    recall: Score
    auroc: Score
    precision: float | None


class LabelFacts(NamedTuple):
    """One of several labels: of how many samples it is known, how many of these and which patients have it, AUROC and
    average precision."""

    name: str
    known: int
    positive: int
    patients: int
    auroc: Score
    precision: Score


class StructureFacts(NamedTuple):
    """One structure of segmentation or registration. Distances are in mm, or pixels where no spacing is known."""

    name: str
    patients: int
    dice: Score
    surface_dice: Score
    minus_hd95: Score


def per_class(one: Answers, row: str, head: str) -> list[ClassFacts]:
    """Every class of a task that the test split has, by the first seed of a row and head."""
    outputs, groups = one.outputs[row, head][0], _groups(one)
    patients = scores.patients_of_classes(one.targets, groups, len(one.classes)).tolist()
    said = outputs.argmax(1)
    found = []
    for k, name in enumerate(one.classes):
        if not patients[k]:
            continue
        given, has = said == k, one.targets == k
        precision = float(has[given].mean()) if given.any() else None
        # The output for class k, and whether k is the answer.
        sides = np.stack([outputs[:, k], given], axis=1)
        recall, area = (_share(score, has, sides, groups, patients[k]) for score in (_recall, _area))
        found.append(ClassFacts(name, int(has.sum()), patients[k], recall, area, precision))
    return found


def per_label(one: Answers, row: str, head: str) -> list[LabelFacts]:
    """Every label of which the test split has both answers, by the first seed of a row and head."""
    outputs, groups = one.outputs[row, head][0], _groups(one)
    patients = label_scores.auroc_parts(one.targets, outputs, groups)[1].tolist()
    found = []
    for k, name in enumerate(one.classes):
        own, answer = one.targets[:, [k]], outputs[:, [k]]
        area, precision = (
            _share(score, own, answer, groups, patients[k])
            for score in (label_scores.auroc, label_scores.average_precision)
        )
        if area[0] is not None:
            known, positive = int((~np.isnan(own)).sum()), int((own == 1).sum())
            found.append(LabelFacts(name, known, positive, patients[k], area, precision))
    return found


def per_structure(one: Answers, row: str, head: str) -> list[StructureFacts]:
    """Every structure that the test split has, by the first seed of a row and head, of slices or of pairs."""
    outputs, groups = one.outputs[row, head][0], _groups(one)
    of, last = (map_scores, 0) if one.kind == SEGMENTATION.name else (pair_scores, pair_scores.OF_FIELD)
    patients = of.dice_parts(one.targets, outputs, groups)[1].tolist()
    found = []
    for k, name in enumerate(one.classes):
        if patients[k]:
            columns = [*range(5 * k, 5 * k + 5), *range(outputs.shape[1] - last, outputs.shape[1])]
            own = outputs[:, columns]  # `segmentation.MEASURES`, and what `pair_scores` has behind them
            dice = _share(of.dice, one.targets, own, groups, patients[k])
            near, far = (
                intervals.interval(_estimate(score, one.targets, own, groups)._replace(patients=patients[k]))
                for score in (of.surface_dice, of.minus_hd95)
            )
            found.append(StructureFacts(name, patients[k], dice, near, far))
    return found


def _groups(one: Answers) -> np.ndarray:
    return np.unique(one.units, return_inverse=True)[1]


def _estimate(score, targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray) -> intervals.Estimate:
    numbers = np.arange(int(groups.max()) + 1)
    return intervals.estimate(score, targets, outputs, groups, numbers, len(numbers))


def _share(score, targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, patients: int) -> Score:
    """A score between 0 and 1, with an interval from `patients` who have what it is about."""
    got = _estimate(score, targets, outputs, groups)
    return intervals.interval(
        intervals.bounded(got, np.array([got.value]), np.array([patients]))._replace(patients=patients)
    )


def _recall(positive: np.ndarray, sides: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the samples of the class that are given it: (draws,)."""
    count = weights.shape[1]
    hits = np.bincount(groups, positive * sides[:, 1], count)
    return weights @ hits / (weights @ np.bincount(groups, positive, count))


def _area(positive: np.ndarray, sides: np.ndarray, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of the class against the rest: (draws,); NaN where the test split has no other class."""
    return scores.auroc(positive.astype(np.int64), np.stack([-sides[:, 0], sides[:, 0]], axis=1), groups, weights)
