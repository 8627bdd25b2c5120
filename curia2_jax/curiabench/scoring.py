"""What a kind of task is scored by: heads, metrics, and the one that counts. `protocol.py` has them all."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench import heads


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
    what it is the mean of and the patients behind each part, as in `scores.py`.
    """

    name: str
    phrase: str
    how: str
    score: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    in_brief: bool = True
    parts: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None

    @property
    def title(self) -> str:
        """The phrase with a capital letter."""
        return self.phrase[0].upper() + self.phrase[1:]


class Primary(NamedTuple):
    """The one score that a verdict is about."""

    head: Head
    metric: Metric


class Scoring(NamedTuple):
    """How tasks of a kind are scored. `settings`: the constants of its heads, for results.json."""

    kind: str
    heads: tuple[Head, ...]
    metrics: tuple[Metric, ...]
    primary: Primary
    settings: dict
