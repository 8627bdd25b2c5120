"""Heads on frozen features: every head of a kind, on every row and seed."""

import numpy as np

from curia2_jax.curiabench import heads
from curia2_jax.curiabench.features import Features
from curia2_jax.curiabench.protocol import Head, Row, rows_of
from curia2_jax.curiabench.tasks import Task
from curia2_jax.data.ingest.benchmark_schema import TEST, TRAIN, VAL

Key = tuple[str, str]  # row, head
Predictions = dict[Key, list[heads.Prediction]]  # one a seed


def predictions(
    task: Task,
    found: dict[str, Features],
    groups: np.ndarray,
    asked: tuple[Head, ...],
    device: str,
    fit: np.ndarray | None = None,
) -> Predictions:
    """Answers on the test split.

    Args:
      found: features of every split of the task.
      groups: (n,) what is left out together to choose on, of each training sample.
      fit: (n,) bool, the training samples that are learned from; None = all.
    """
    used = np.ones(len(groups), bool) if fit is None else fit
    out: Predictions = {}
    for row in rows_of(found[TRAIN].rows):
        for seed in range(len(found[TRAIN].rows[row.name])):
            problem = _problem(task, found, groups, row, seed, device, used)
            for head in asked:
                assert head.predict is not None
                out.setdefault((row.name, head.name), []).append(head.predict(problem))
    return out


def _problem(
    task: Task, found: dict[str, Features], groups: np.ndarray, row: Row, seed: int, device: str, used: np.ndarray
) -> heads.Problem:
    train, test, val = (found[name].rows[row.name][seed] if name in found else None for name in (TRAIN, TEST, VAL))
    assert train is not None and test is not None
    return heads.Problem(
        train[used],
        task.train.targets[used],
        groups[used],
        test,
        np.array(sorted(task.classes), np.int64) if task.kind.has_classes else np.empty(0, np.int64),
        row.has_direction,
        val,
        None if task.val is None else task.val.targets,
        device,
    )
