"""What every row and head answers to a task: features of all models and heads on these, or a layer on patch tokens."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from curia2_jax.curiabench import attention, features, few_shot, probing, segmentation, tasks
from curia2_jax.curiabench.model import Model
from curia2_jax.curiabench.others import Others
from curia2_jax.curiabench.protocol import Scoring
from curia2_jax.curiabench.registration.answers import register_all
from curia2_jax.data.ingest.benchmark_schema import TEST, TRAIN
from curia2_jax.errors import UserError

SETTINGS = FEW, CROSS, ATTENTION = "few-shot", "cross-modality", "attention"


class Asked(NamedTuple):
    """What the rows and heads of a task answered. `slices`: hashes of the images of every split."""

    outputs: dict[probing.Key, list[np.ndarray]]
    aside: dict[probing.Key, list[np.ndarray]]
    settings: dict[probing.Key, dict[str, Any]]
    slices: dict[str, np.ndarray]
    validated_on: str


def ask(
    chosen: list[tasks.Task],
    scoring: Scoring,
    model: Model,
    others: Others,
    settings: Sequence[str],
    say: Callable[[str], None],
) -> Iterator[Asked]:
    """Of every task; they are all of one kind.

    Raises:
      UserError: tasks of segmentation or registration, and other models or settings that these have not.
    """
    for warning in (warning for task in chosen for warning in task.warnings):
        say(f"warning: {warning}")
    name, kind = chosen[0].name, chosen[0].kind
    if kind.has_targets:
        found = _features(chosen, model, others, say)
        return (_probed(task, scoring, model, found[task.name], settings, say) for task in chosen)
    if wrong := {FEW, ATTENTION} & set(settings):
        raise UserError(f"--setting={min(wrong)}: {name} is {kind.name}, which has no such setting; leave it out")
    if kind.of_pairs:
        return (_registered(task, scoring, model, others, say) for task in chosen)
    if others.models:
        raise UserError(f"--against: {name} is segmentation, which scores --model alone; leave it out")
    return (_segmented(task, scoring, model, say) for task in chosen)


def _features(
    chosen: list[tasks.Task], model: Model, others: Others, say: Callable[[str], None]
) -> dict[str, dict[str, features.Features]]:
    """{task: {split: features}}, of all tasks by one backbone after another."""
    start = time.monotonic()
    keys = [(task.name, name) for task in chosen for name in task.splits]
    splits = [split for task in chosen for split in task.splits.values()]
    out: dict[str, dict[str, features.Features]] = {}
    for (task, name), found in zip(keys, features.extract(splits, model, others, say), strict=True):
        out.setdefault(task, {})[name] = found
    for task, by_split in out.items():
        say(f"{task}: " + ", ".join(f"{len(one.slices)} {name}" for name, one in by_split.items()) + " samples")
    say(f"features of all: {time.monotonic() - start:.1f} s")
    return out


def _probed(
    task: tasks.Task,
    scoring: Scoring,
    model: Model,
    found: dict[str, features.Features],
    settings: Sequence[str],
    say: Callable[[str], None],
) -> Asked:
    """One feature a sample, and heads on these. `found`: of each split."""
    start = time.monotonic()
    validated_on, groups = _groups(task.train.patients, found[TRAIN].slices)
    predictions = probing.predictions(task, found, groups, scoring.heads, model.device)
    outputs = {key: [one.outputs for one in seeds] for key, seeds in predictions.items()}
    aside = few_shot.predictions(task, scoring, found, groups, model.device) if FEW in settings else {}
    aside |= attention.predictions(task, model) if ATTENTION in settings else {}
    say(f"{task.name}: {_titles(scoring)}, {time.monotonic() - start:.1f} s")
    return Asked(
        outputs,
        aside,
        {key: seeds[0].settings for key, seeds in predictions.items()},
        {name: one.slices for name, one in found.items()},
        validated_on,
    )


def _segmented(task: tasks.Task, scoring: Scoring, model: Model, say: Callable[[str], None]) -> Asked:
    """Patch tokens of every slice, and a layer on these."""
    start = time.monotonic()
    outputs, chosen = segmentation.answers(task, model)
    say(f"{task.name}: {_titles(scoring)}, {time.monotonic() - start:.1f} s")
    slices = {name: segmentation.hashes(split) for name, split in task.splits.items()}
    return Asked(outputs, {}, chosen, slices, "patient")


def _registered(task: tasks.Task, scoring: Scoring, model: Model, others: Others, say: Callable[[str], None]) -> Asked:
    """Patch tokens of both volumes of every pair, brought onto each other."""
    start = time.monotonic()
    found = register_all(task, model, others, say)
    say(f"{task.name}: {_titles(scoring)}, {time.monotonic() - start:.1f} s")
    head = scoring.primary.head.name
    outputs = {(row, head): seeds for row, seeds in found.outputs.items()}
    told = {(row, head): one for row, one in found.settings.items()}
    return Asked(outputs, {}, told, {TEST: found.hashes}, "nothing")


def _titles(scoring: Scoring) -> str:
    return " and ".join(head.title.lower() for head in scoring.heads)


def _groups(patients: np.ndarray, slices: np.ndarray) -> tuple[str, np.ndarray]:
    """What is left out to choose C, and its number for each sample: patients, or slices where there is one patient."""
    unit, keys = ("patient", patients) if len(np.unique(patients)) > 1 else ("slice", slices)
    return unit, np.unique(keys, return_inverse=True)[1]
