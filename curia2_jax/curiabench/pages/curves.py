"""The numbers behind the curves of a task page, from targets and outputs alone; no picture is drawn here."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

BINS = 10  # of confidence
MOST_STEPS = 400  # of a curve: finer than a pixel


class Curve(NamedTuple):
    """Points (m,) of a curve, both axes from 0 to 1; `area`: AUROC, or average precision."""

    x: np.ndarray
    y: np.ndarray
    area: float


def roc(positive: np.ndarray, score: np.ndarray) -> Curve | None:
    """Share of negatives (x) and of positives (y) at or above each score; None where one of both is absent.

    positive: (n,) bool; score: (n,).
    """
    if positive.all() or not positive.any():
        return None
    x, y, _ = roc_curve(positive, score)
    return Curve(*_thinned(x, y), float(np.trapezoid(y, x)))


def precision_recall(positive: np.ndarray, score: np.ndarray) -> Curve | None:
    """Recall (x) and precision (y) at or above each score, from recall 0 on; None without a positive."""
    if not positive.any():
        return None
    precision, recall, _ = precision_recall_curve(positive, score, drop_intermediate=True)
    return Curve(*_thinned(recall[::-1], precision[::-1]), float(average_precision_score(positive, score)))


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first point of every cell of a fine grid, and the last point: none is moved."""
    cells = np.rint(np.stack([x, y]) * MOST_STEPS)
    keep = np.append(True, (np.diff(cells, axis=1) != 0).any(0))
    keep[-1] = True
    return x[keep], y[keep]


class Bin(NamedTuple):
    """Samples whose confidence lies in (low, high]: how many, their mean confidence, and the share that is right."""

    low: float
    high: float
    samples: int
    confidence: float
    right: float


def reliability(targets: np.ndarray, probabilities: np.ndarray) -> list[Bin]:
    """Confidence is the probability of the predicted class; bins without a sample are left out (Guo et al. 2017)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    number = np.clip(np.ceil(confidence * BINS - 1e-9).astype(int) - 1, 0, BINS - 1)
    found = []
    for index in np.unique(number).tolist():
        inside = number == index
        sure, share = (float(one[inside].mean()) for one in (confidence, right))
        found.append(Bin(index / BINS, (index + 1) / BINS, int(inside.sum()), sure, share))
    return found


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: |confidence - share right|, averaged over the samples."""
    return sum(one.samples * abs(one.confidence - one.right) for one in bins) / sum(one.samples for one in bins)


class Residuals(NamedTuple):
    """Of values and what was predicted for them: mean absolute error, its root mean square, and the mean of
    predicted minus true."""

    absolute: float
    root: float
    bias: float


def residuals(values: np.ndarray, predicted: np.ndarray) -> Residuals:
    """Both (n,), in the unit of the target."""
    off = predicted - values
    return Residuals(float(np.abs(off).mean()), float(np.sqrt((off**2).mean())), float(off.mean()))


def kaplan_meier(targets: np.ndarray) -> Curve:
    """Share that is alive (y) from each time (x) on, of targets (n,) that are times, negative where censored; `area`
    is the share at the end."""
    times, died = np.abs(targets), targets > 0
    x = np.unique(np.append(times, 0.0))
    deaths = np.array([np.sum(died & (times == one)) for one in x])
    there = np.array([np.sum(times >= one) for one in x])
    y = np.cumprod(1 - deaths / there)
    return Curve(x, y, float(y[-1]))
