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
from curia2_jax.data.ingest.benchmark_schema import SEGMENTATION, TEST, TRAIN
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
      UserError: the tasks have no such setting, or a model beside ours has not what they ask for.
    """
    for warning in (warning for task in chosen for warning in task.warnings):
        say(f"warning: {warning}")
    if chosen[0].kind.of_pairs:
        return _registered(chosen, scoring, model, others, settings, say)
    if chosen[0].kind == SEGMENTATION:
        return _segmented(chosen, scoring, model, others, settings, say)
    read: list[dict[probing.Key, list[np.ndarray]]] = [{} for _ in chosen]
    if ATTENTION in settings:  # first: what is no volume is told before everything is encoded
        attention.check(chosen, others)
        read = attention.predictions(chosen, model, others, say)
    found = _features(chosen, model, others, say)
    return (
        _probed(task, scoring, model, found[task.name], by_attention, settings, say)
        for task, by_attention in zip(chosen, read, strict=True)
    )


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
    by_attention: dict[probing.Key, list[np.ndarray]],
    settings: Sequence[str],
    say: Callable[[str], None],
) -> Asked:
    """One feature a sample, and heads on these. `found`: of each split; `by_attention`: answers to stand aside."""
    start = time.monotonic()
    validated_on, groups = _groups(task.train.patients, found[TRAIN].slices)
    predictions = probing.predictions(task, found, groups, scoring.heads, model.device)
    outputs = {key: [one.outputs for one in seeds] for key, seeds in predictions.items()}
    aside = few_shot.predictions(task, scoring, found, groups, model.device) if FEW in settings else {}
    say(f"{task.name}: {_titles(scoring)}, {time.monotonic() - start:.1f} s")
    return Asked(
        outputs,
        aside | by_attention,
        {key: seeds[0].settings for key, seeds in predictions.items()},
        {name: one.slices for name, one in found.items()},
        validated_on,
    )


def _segmented(
    chosen: list[tasks.Task],
    scoring: Scoring,
    model: Model,
    others: Others,
    settings: Sequence[str],
    say: Callable[[str], None],
) -> Iterator[Asked]:
    """Patch tokens of every slice, and a layer on these."""
    if ATTENTION in settings:
        raise UserError(
            f"--setting={ATTENTION}: {chosen[0].name} is segmentation, which has no such setting; leave it out"
        )
    others.of_slices(f"{chosen[0].name}, which is segmentation,")
    start = time.monotonic()
    found = segmentation.answers(chosen, model, others, FEW in settings, say)
    say(f"{_titles(scoring)} of all: {time.monotonic() - start:.1f} s")
    for task, one in zip(chosen, found, strict=True):
        slices = {name: segmentation.hashes(split) for name, split in task.splits.items()}
        yield Asked(one.outputs, one.aside, one.settings, slices, "patient")


def _registered(
    chosen: list[tasks.Task],
    scoring: Scoring,
    model: Model,
    others: Others,
    settings: Sequence[str],
    say: Callable[[str], None],
) -> Iterator[Asked]:
    """Patch tokens of both volumes of every pair, brought onto each other."""
    name, kind, head = chosen[0].name, chosen[0].kind.name, scoring.primary.head.name
    if wrong := {FEW, ATTENTION} & set(settings):
        raise UserError(f"--setting={min(wrong)}: {name} is {kind}, which has no such setting; leave it out")
    others.of_slices(f"{name}, which is {kind},")
    start = time.monotonic()
    found = register_all(chosen, model, others, say)
    say(f"{_titles(scoring)} of all: {time.monotonic() - start:.1f} s")
    for one in found:
        outputs = {(row, head): seeds for row, seeds in one.outputs.items()}
        told = {(row, head): each for row, each in one.settings.items()}
        yield Asked(outputs, {}, told, {TEST: one.hashes}, "nothing")


def _titles(scoring: Scoring) -> str:
    return " and ".join(head.title.lower() for head in scoring.heads)


def _groups(patients: np.ndarray, slices: np.ndarray) -> tuple[str, np.ndarray]:
    """What is left out to choose C, and its number for each sample: patients, or slices where there is one patient."""
    unit, keys = ("patient", patients) if len(np.unique(patients)) > 1 else ("slice", slices)
    return unit, np.unique(keys, return_inverse=True)[1]
