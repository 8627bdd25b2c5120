"""Rows compared on the same resamples of the test patients: their scores, differences and means over tasks."""

from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench import heads, scores
from curia2_jax.curiabench.protocol import BASELINES, ROWS, TRAINED, Scoring
from curia2_jax.curiabench.results import Comparison

Predictions = dict[str, dict[str, heads.Prediction]]  # row -> head -> prediction
Arrays = dict[tuple[str, str, str], np.ndarray]  # row, head, metric -> (draws,) float64


class Distribution(NamedTuple):
    """Every score of every row: itself, as one draw, and on each resample."""

    points: Arrays
    draws: Arrays


def distribution(
    predictions: Predictions, scoring: Scoring, targets: np.ndarray, groups: np.ndarray, seed: int
) -> Distribution:
    """Every metric of every prediction, all on the same resamples of `groups` (n,), which `seed` draws."""
    num_groups = int(groups.max()) + 1

    def scored(weights: np.ndarray) -> Arrays:
        return {
            (row, head, metric.name): metric.score(targets, prediction.outputs, groups, weights)
            for row, by_head in predictions.items()
            for head, prediction in by_head.items()
            for metric in scoring.metrics
        }

    return Distribution(scored(np.ones((1, num_groups))), scored(scores.resample(num_groups, seed)))


def mean(distributions: list[Distribution]) -> Distribution:
    """Mean over tasks, draw by draw: the tasks are resampled independently of each other."""
    parts = zip(*distributions, strict=True)
    return Distribution(*({key: np.mean([one[key] for one in part], axis=0) for key in part[0]} for part in parts))


def compare(found: Distribution, scoring: Scoring) -> Comparison:
    """Intervals of every row, and of the trained row minus each other row on the same resamples."""
    rows: dict = {row.name: {head.name: {} for head in scoring.heads} for row in ROWS}
    trained_minus: dict = {row.name: {head.name: {} for head in scoring.heads} for row in BASELINES}
    for (row, head, metric), point in found.points.items():
        drawn = found.draws[row, head, metric]
        rows[row][head][metric] = scores.summary(point[0], drawn)
        if row in trained_minus:
            trained = TRAINED.name, head, metric
            gain = scores.summary(found.points[trained][0] - point[0], found.draws[trained] - drawn)
            trained_minus[row][head][metric] = gain
    return {"rows": rows, "trained_minus": trained_minus}
