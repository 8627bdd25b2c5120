"""How many labelled patients a backbone needs: the primary head, learned from ever fewer patients of train.

Patients are taken in the order of a hash of draw and key, so that a draw of 5 % holds that of 1 %, and a new patient
moves nobody. The answers lie beside the others, their head called `linear@5%`, a draw and seed after the other.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from curia2_jax.curiabench import comparison, intervals, probing
from curia2_jax.curiabench.answers import ASIDE, Answers
from curia2_jax.curiabench.features import Features
from curia2_jax.curiabench.protocol import Scoring
from curia2_jax.curiabench.results import Shot
from curia2_jax.curiabench.tasks import Task

PERCENT = (1, 5, 10, 25, 50)  # of the patients of train; all of them is what every report has
DRAWS = 3


def fits(task: Task, percent: int, draw: int) -> np.ndarray:
    """(n,) bool, the samples of train of the patients who are drawn: at least one patient and, in kinds that have
    classes, as many as it takes for two of them."""
    patients = task.train.patients
    order = sorted(set(patients.tolist()), key=lambda name: hashlib.sha256(f"{draw} {name}".encode()).hexdigest())
    for count in range(max(1, round(len(order) * percent / 100)), len(order) + 1):
        fit = np.isin(patients, order[:count])
        if not task.kind.has_classes or len(np.unique(task.train.targets[fit])) > 1:
            break
    return fit


def draws(task: Task, head: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name of the head, `fits`) of every percentage and draw; one is left out if it has as few as the one before."""
    before = 0
    for percent in PERCENT:
        if (count := _patients(task, percent)) != before:
            before = count
            for draw in range(DRAWS):
                yield _name(head, percent), fits(task, percent, draw)


def predictions(
    task: Task, scoring: Scoring, found: dict[str, Features], groups: np.ndarray, device: str
) -> dict[probing.Key, list[np.ndarray]]:
    """Outputs on the test split of every row and percentage."""
    out: dict[probing.Key, list[np.ndarray]] = {}
    head = scoring.primary.head
    for name, fit in draws(task, head.name):
        for (row, _), each in probing.predictions(task, found, groups, (head,), device, fit).items():
            out.setdefault((row, name), []).extend(one.outputs for one in each)
    return out


def curve(one: Answers, task: Task, scoring: Scoring) -> dict[str, list[Shot]]:
    """Of every row, the primary score from ever more patients, up to all of them: the mean over draws and seeds, with
    its interval over test patients."""
    head, metric = scoring.primary
    patients = {percent: _patients(task, percent) for percent in PERCENT} | {100: len(np.unique(task.train.patients))}
    out: dict[str, list[Shot]] = {}
    for percent, count in patients.items():
        found = one.outputs if percent == 100 else one.aside
        name = head.name if percent == 100 else _name(head.name, percent)
        for (row, which), seeds in found.items():
            if which == name:
                each = [comparison.alone(one, metric, outputs) for outputs in seeds]
                score = intervals.interval(intervals.mean(each))
                out.setdefault(row, []).append({"percent": percent, "patients": count, "score": score})
    return out


def _name(head: str, percent: int) -> str:
    return f"{head}{ASIDE}{percent}%"


def _patients(task: Task, percent: int) -> int:
    """How many patients the first draw has."""
    return len(np.unique(task.train.patients[fits(task, percent, 0)]))
