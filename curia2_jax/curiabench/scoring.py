"""What a kind of task is scored by: heads, metrics, and the one that counts. `protocol.py` has them all."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench import heads

HOW = (
    "The backbone is frozen. Each sample is one structure on one slice: its feature is the mean of the final-norm "
    "patch tokens under the structure's mask (without a mask, the class token); the features of a volume are averaged "
    "over its slices. Where a task has no masks, the mean of the patch tokens stands beside the class token. Raw "
    "pixels are the mean and the standard deviation of the native values under the same mask; the projection is that "
    "of a backbone whose blocks add nothing; the mask alone is which patches it covers, its size, middle and extent. "
    "Random weights are several draws, averaged; their spread is in no interval."
)


class Head(NamedTuple):
    """What learns from frozen features. `title` and `short` for people; `how` is a sentence of the report."""

    name: str
    title: str
    short: str
    how: str
    predict: Callable[[heads.Problem], heads.Prediction] | None  # None: `segmentation.py` and `registration/` do it


class Metric(NamedTuple):
    """A score, larger for better and at most 1. `phrase` in a sentence; `how` is a sentence of the report.

    `in_brief`: whether the table that a command prints has it; the page has all. `parts`: of a score between 0 and 1,
    what it is the mean of and the patients behind each part, as in `scores.py`. `drawn`: whether a bar from 0 to 1 says
    anything.
    """

    name: str
    phrase: str
    how: str
    score: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    in_brief: bool = True
    parts: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    drawn: bool = True

    @property
    def title(self) -> str:
        """The phrase with a capital letter."""
        return self.phrase[0].upper() + self.phrase[1:]


class Primary(NamedTuple):
    """The one score that a verdict is about."""

    head: Head
    metric: Metric


class Scoring(NamedTuple):
    """How tasks of a kind are scored. `settings`: the constants of its heads, for results.json; `how`: sentences of the
    report on what is asked of a backbone."""

    kind: str
    heads: tuple[Head, ...]
    metrics: tuple[Metric, ...]
    primary: Primary
    settings: dict
    how: str = HOW
