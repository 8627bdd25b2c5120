"""Intervals over patients: how much each patient moves a score, and what follows for scores, differences and means.

A score is a function of one weight a patient. Taking half of a patient away and looking at what the score does gives
the influence of that patient (a jackknife; half, so that no class is ever lost, not even one that a single patient
has). Influences of shared patients add up over tasks and subtract between models, so that one table of patients stands
behind everything a report says. Nothing is drawn at random.

The interval is that of a t distribution with one degree of freedom fewer than patients, on the logit scale where a
score is a share. Where every part of a score is at 0 or 1 there is nothing to see in the influences, and the exact
interval of Clopper and Pearson takes their place. `tests/curiabench/test_coverage.py` measures how often it all holds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
TAKEN = 0.5  # of a patient's weight
FEWEST_PATIENTS = 10  # below, no verdict
RARE = 5  # patients of a class, below which the influences do not show how unsure its part of the score is
_FLIPS = 20_000
_ROWS = 256  # deletions that are scored at a time


class Estimate(NamedTuple):
    """A score or a difference of scores.

    `influence` (P,) float64 over the patients of the report: the standard error is the root of the sum of its squares.
    `weight` (P,) sums to 1: what part of the patients each one is. `patients`: of the smallest task behind it.
    `below`, `above`: how far an interval reaches at least, where parts of the score are at 1 or at 0.
    """

    value: float
    influence: np.ndarray
    weight: np.ndarray
    patients: int
    below: float = 0.0
    above: float = 0.0
    share: bool = False  # between 0 and 1

    @property
    def error(self) -> float:
        """Standard error."""
        return float(np.sqrt(np.sum(self.influence**2)))


def estimate(
    score, targets: np.ndarray, outputs: np.ndarray, groups: np.ndarray, numbers: np.ndarray, size: int
) -> Estimate:
    """A score and its influences. `score` is a function of `scores.py`.

    Args:
      groups: (n,) the patient of each sample, 0..G-1; `numbers` (G,) are their places among the `size` of the report.
    """
    count = len(numbers)
    value = float(score(targets, outputs, groups, np.ones((1, count)))[0])
    influence, weight = np.zeros(size), np.zeros(size)
    weight[numbers] = 1 / count
    if count > 1 and np.isfinite(value):
        left = [_without(score, targets, outputs, groups, rows) for rows in _blocks(count)]
        moved = (count - TAKEN) / (TAKEN * count) * (value - np.concatenate(left))
        influence[numbers] = (moved - moved.mean()) * np.sqrt(count / (count - 1))
    return Estimate(value, influence, weight, count)


def _without(score, targets, outputs, groups, rows: np.ndarray) -> np.ndarray:
    weights = np.ones((len(rows), int(groups.max()) + 1))
    weights[np.arange(len(rows)), rows] -= TAKEN
    return score(targets, outputs, groups, weights)


def _blocks(count: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS)]


def bounded(found: Estimate, parts: np.ndarray, patients: np.ndarray) -> Estimate:
    """A share that is the mean of `parts` (K,), each measured on `patients` (K,): knows how sure 0 and 1 are.

    Counted are the parts of fewer than `RARE` patients and, where no patient moves the score, all of them.
    """
    known = np.isfinite(parts) & (patients > 0)
    parts, patients = parts[known], patients[known]
    # Influences of a score that nothing moves are rounding errors.
    counted = (patients < RARE) | (found.error < 1e-9)
    miss = 1 - ((1 - LEVEL) / 2) ** (1 / patients)
    below, above = (
        float(np.sqrt(np.sum(miss[counted & (parts == end)] ** 2)) / max(len(parts), 1)) for end in (1.0, 0.0)
    )
    return found._replace(below=below, above=above, share=True)


def mean(found: Sequence[Estimate]) -> Estimate:
    """Mean of scores of several tasks or seeds: patients whom they share are counted together."""
    return Estimate(
        float(np.mean([one.value for one in found])),
        np.mean([one.influence for one in found], axis=0),
        np.mean([one.weight for one in found], axis=0),
        min(one.patients for one in found),
        float(np.mean([one.below for one in found])),
        float(np.mean([one.above for one in found])),
        all(one.share for one in found),
    )


def minus(one: Estimate, other: Estimate) -> Estimate:
    """Difference of two scores of the same patients.

    Where no patient moves it, but the scores differ, the reach of both at 0 and 1 is all that is known.
    """
    influence, patients = one.influence - other.influence, min(one.patients, other.patients)
    value = one.value - other.value
    if value == 0 or np.sqrt(np.sum(influence**2)) > 1e-9:
        return Estimate(value, influence, one.weight, patients)
    below, above = np.hypot(one.below, other.above), np.hypot(one.above, other.below)
    return Estimate(value, influence, one.weight, patients, float(below), float(above))


def interval(found: Estimate) -> list[float | None]:
    """[value, lower, upper] of the 95 % interval; None where undefined: no score, or one patient."""
    value, error = found.value, found.error
    if not np.isfinite(value):
        return [None, None, None]
    if found.patients < 2 or not np.isfinite(error):
        return [value, None, None]
    reach = float(stats.t.ppf((1 + LEVEL) / 2, found.patients - 1)) * error
    low, high = value - reach, value + reach
    if found.share and 0 < value < 1:
        slope = value * (1 - value)
        odds = np.log(value / (1 - value))
        low, high = (float(1 / (1 + np.exp(-(odds + side * reach / slope)))) for side in (-1, 1))
    low = value - float(np.hypot(value - low, found.below))
    high = value + float(np.hypot(high - value, found.above))
    return [value, max(low, 0.0), min(high, 1.0)] if found.share else [value, low, high]


def sign_flips(found: Estimate, seed: int = 0) -> float:
    """Two-sided p of a difference: how often it is as large when each patient's part of it has a random sign.

    A patient's part is the share of the difference and the influence. All signs are tried up to 14 patients.
    """
    counted = found.weight > 0
    parts, count = (found.value * found.weight + found.influence)[counted], int(counted.sum())
    if count <= 14:
        signs = 1.0 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
    else:
        signs = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), (_FLIPS, count))
        signs[0] = 1.0  # what was observed is one of the draws (Phipson and Smyth 2010)
    return float(np.mean(np.abs(signs @ parts) >= abs(parts.sum()) - 1e-12))


def holm(p: Sequence[float]) -> list[float]:
    """p adjusted for the number of comparisons (Holm 1979), in the same order."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, np.float64)[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()
