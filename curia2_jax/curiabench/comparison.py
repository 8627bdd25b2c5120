"""Rows compared on the same patients: their scores, differences and means over tasks, all from the answers alone."""

from collections.abc import Sequence

import numpy as np

from curia2_jax.curiabench import intervals
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.intervals import Estimate
from curia2_jax.curiabench.protocol import TRAINED, TRAINED_PATCHES, Metric, Scoring
from curia2_jax.curiabench.results import Comparison

Key = tuple[str, str, str]  # row, head, metric
Estimates = dict[Key, list[Estimate]]  # one a seed


def estimates(found: Sequence[Answers], scoring: Scoring) -> list[Estimates]:
    """Every score of every task, with the influence of every patient of the report: of all tasks, each once."""
    names = np.unique(np.concatenate([one.units for one in found]))
    return [_of_task(one, scoring, np.searchsorted(names, np.unique(one.units)), len(names)) for one in found]


def _of_task(one: Answers, scoring: Scoring, numbers: np.ndarray, size: int) -> Estimates:
    groups = np.unique(one.units, return_inverse=True)[1]
    return {
        (row, head, metric.name): [_estimate(one, metric, outputs, groups, numbers, size) for outputs in seeds]
        for (row, head), seeds in one.outputs.items()
        for metric in scoring.metrics
    }


def alone(one: Answers, metric: Metric, outputs: np.ndarray) -> Estimate:
    """A score of one task by itself, of outputs for its samples."""
    groups = np.unique(one.units, return_inverse=True)[1]
    count = int(groups.max()) + 1
    return _estimate(one, metric, outputs, groups, np.arange(count), count)


def _estimate(
    one: Answers, metric: Metric, outputs: np.ndarray, groups: np.ndarray, numbers: np.ndarray, size: int
) -> Estimate:
    score = intervals.estimate(metric.score, one.targets, outputs, groups, numbers, size)
    return intervals.bounded(score, *metric.parts(one.targets, outputs, groups)) if metric.parts else score


def mean(tasks: Sequence[Estimates]) -> Estimates:
    """Mean over tasks of what all of them have."""
    common = [key for key in tasks[0] if all(key in task for task in tasks)]
    return {
        key: [intervals.mean(seeds) for seeds in zip(*(task[key] for task in tasks), strict=True)] for key in common
    }


def compare(found: Estimates) -> Comparison:
    """Intervals of every row, of the trained row minus each other row, and the single values of rows with seeds."""
    rows: dict = {}
    trained_minus: dict = {}
    seeds: dict = {}
    for (row, head, metric), each in found.items():
        one = intervals.mean(each)
        rows.setdefault(row, {}).setdefault(head, {})[metric] = intervals.interval(one)
        if len(each) > 1:
            seeds.setdefault(row, {}).setdefault(head, {})[metric] = [score.value for score in each]
        if row not in (TRAINED.name, TRAINED_PATCHES.name):
            gain = intervals.minus(intervals.mean(found[TRAINED.name, head, metric]), one)
            trained_minus.setdefault(row, {}).setdefault(head, {})[metric] = intervals.interval(gain)
    out: Comparison = {"rows": rows, "trained_minus": trained_minus}
    return out | {"seeds": seeds} if seeds else out
