"""What every head is asked and answers, and the one thread that makes its answer the same at every run."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits


class Problem(NamedTuple):
    """What a head learns from, and what it is asked about: n training samples, m test samples.

    `classes` are all labels of the task, sorted, whether train has them or not. Tokens have a direction; a handful of
    numbers with units, such as mean and spread of pixels, has none that means something. `val`, where a task has such a
    split, is for choosing only: nothing is ever fitted to it.
    """

    train: np.ndarray  # (n, D) float32
    targets: np.ndarray  # (n,), labels in kinds that have classes; (n, T) several numbers
    groups: np.ndarray  # (n,) int64, the patient of each training sample
    test: np.ndarray  # (m, D) float32
    classes: np.ndarray  # (K,) int64, empty in kinds without classes
    has_direction: bool
    val: np.ndarray | None = None  # (v, D) float32
    val_targets: np.ndarray | None = None  # as targets
    device: str = "cpu"


class Prediction(NamedTuple):
    """What a head answers, such as class probabilities (m, K) float64, and how they came about."""

    outputs: np.ndarray
    settings: dict[str, float | int | bool | str]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums have one order on every machine; and most matrices of heads are so small that threads would wait."""
    before = torch.get_num_threads()
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def aligned(probabilities: np.ndarray, fitted: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Puts the columns of the classes that occur in train in their places among all; the others are 0."""
    placed = np.zeros((len(probabilities), len(classes)))
    placed[:, np.searchsorted(classes, fitted)] = probabilities
    return placed
