"""Tasks on disk, as `data/ingest/benchmark_schema.py` describes them, read and checked.

Tables of CuriaBench that name no patients are grouped by series, and without series by file.
"""

import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench import schema
from curia2_jax.curiabench.published import LEFT_OUT
from curia2_jax.curiabench.registration.table import read_split_of_pairs
from curia2_jax.curiabench.splits import AXES, MODALITIES, Facts, Split, read_split
from curia2_jax.data.corpus.layout import BENCHMARK, CONTRACT
from curia2_jax.data.ingest import benchmark_schema
from curia2_jax.errors import UserError


class Task(NamedTuple):
    """A task, checked but for its images. `classes`: name of every target, empty in kinds without classes; `val`: to
    choose on, where there is one; `warnings`: what is to be said before it is scored."""

    name: str
    kind: benchmark_schema.Kind
    classes: dict[int, str]
    train: Split
    test: Split
    val: Split | None = None
    warnings: tuple[str, ...] = ()
    landmarks: str = ""  # of pairs: their unit, "" where there are none

    @property
    def splits(self) -> dict[str, Split]:
        """All splits by name; of pairs, from which nothing is learned, the test split alone."""
        if self.kind.of_pairs:
            return {benchmark_schema.TEST: self.test}
        val = {} if self.val is None else {benchmark_schema.VAL: self.val}
        return {benchmark_schema.TRAIN: self.train, **val, benchmark_schema.TEST: self.test}


def benchmark_folder(data: str | Path) -> Path | None:
    """The folder whose subfolders are tasks: `data` itself, or `benchmark` in a corpus; None for a corpus without one.

    Raises:
      UserError: `data` is neither a benchmark nor a corpus.
    """
    data = Path(data)
    for folder in (data, data / BENCHMARK):
        if task_names(folder):
            return folder
    if not (data / CONTRACT).is_file():
        raise UserError(
            f"--data: {data} holds neither a task (NAME/{benchmark_schema.TASK}) nor a corpus ({CONTRACT}); "
            "write a folder made by launch/ingest.py --labels"
        )
    return None


def task_names(folder: str | Path) -> list[str]:
    """Names of the tasks in a benchmark folder, sorted; empty when it has none.

    A task has a task.json, or tables of both splits as CuriaBench is kept.
    """
    tables = (Path(folder).glob(f"*/{split}/{benchmark_schema.TABLE}") for split in benchmark_schema.SPLITS)
    both = set.intersection(*({path.parent.parent.name for path in found} for found in tables))
    return sorted({path.parent.name for path in Path(folder).glob(f"*/{benchmark_schema.TASK}")} | both)


def read_task(folder: str | Path, name: str) -> Task:
    """Reads a task's tables, not its images.

    Raises:
      UserError: no such task, or a file of it is at fault, which the message names.
    """
    path = Path(folder) / name / benchmark_schema.TASK
    if name not in (names := task_names(folder)):
        known = ", ".join(names) or "none"
        raise UserError(f"--task: found {name!r}, but {path} does not exist; write one of: {known}")
    facts = _facts(path) if path.is_file() else _known_facts(path)
    if facts.kind.of_pairs:
        return _of_pairs(path.parent, facts)
    val = path.parent / benchmark_schema.VAL / benchmark_schema.TABLE
    found = [*benchmark_schema.SPLITS, *([benchmark_schema.VAL] if val.is_file() else [])]
    read = {split: read_split(path.parent / split, facts, f"{name} {split}") for split in found}
    splits = {split: one for split, (one, _) in read.items()}
    warnings = list(dict.fromkeys(warning for _, said in read.values() for warning in said))
    if (left_out := path.parent / LEFT_OUT).is_file():
        warnings.append(f"{name}: {len(left_out.read_text().splitlines()) - 1} rows were left out, {left_out} says why")
    _check_patients(path.parent, splits)
    if facts.kind.has_classes:
        _check_classes(path, facts.classes, splits)
        warnings += _strangers(name, facts.classes, splits)
    return Task(
        name,
        facts.kind,
        facts.classes,
        splits[benchmark_schema.TRAIN],
        splits[benchmark_schema.TEST],
        splits.get(benchmark_schema.VAL),
        tuple(warnings),
    )


def _of_pairs(folder: Path, facts: Facts) -> Task:
    """A task of registration: there is nobody to learn from."""
    where = folder / benchmark_schema.TEST
    test, warnings = read_split_of_pairs(where, facts, f"{folder.name} {benchmark_schema.TEST}")
    nobody = test.taken(np.empty(0, np.int64))
    return Task(folder.name, facts.kind, facts.classes, nobody, test, None, tuple(warnings), facts.landmarks)


def across(task: Task) -> Task:
    """The same question from CT to MR: CT of train and val is learned from, MR of test is asked.

    Raises:
      UserError: one of them is missing.
    """
    if task.kind.of_pairs:
        raise UserError(f"--setting=cross-modality: {task.name} is {task.kind.name}, which has no such setting")
    wanted = {benchmark_schema.TRAIN: "CT", benchmark_schema.VAL: "CT", benchmark_schema.TEST: "MR"}
    splits = {name: split.of(split.modalities == wanted[name]) for name, split in task.splits.items()}
    for name in benchmark_schema.SPLITS:
        if not splits[name].images:
            raise UserError(
                f"--setting=cross-modality: found no {wanted[name]} in {name} of {task.name}; write a --task whose "
                "train has CT and whose test has MR, by the modality of its samples"
            )
    if splits.get(benchmark_schema.VAL) and not splits[benchmark_schema.VAL].images:
        del splits[benchmark_schema.VAL]
    name, warnings = f"{task.name}, CT to MR", list(task.warnings)
    if task.kind.has_classes:
        _check_classes(Path(task.name), task.classes, splits)
        warnings += _strangers(name, task.classes, splits)
    return task._replace(
        name=name,
        train=splits[benchmark_schema.TRAIN],
        test=splits[benchmark_schema.TEST],
        val=splits.get(benchmark_schema.VAL),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _facts(path: Path) -> Facts:
    """What task.json says."""
    try:
        description: benchmark_schema.Description = json.loads(path.read_text())
        name_of_kind, masked = description["kind"], bool(description.get("mask"))
        modality, axes = str(description.get("modality") or ""), str(description.get("axes") or "")
        classes = {int(index): str(label) for index, label in description.get("classes", {}).items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: found {error!r}; write name, classes, kind, mask and modality as JSON") from None
    kind, landmarks = _kind(path, name_of_kind), str(description.get("landmarks") or "")
    if kind.has_targets and not isinstance(description.get("mask"), bool):
        masked = description.get("mask")
        raise UserError(f"{path}: found mask {masked!r}; write true or false")
    if modality.upper() not in MODALITIES:
        raise UserError(f"{path}: found the modality {modality!r}; write CT, MR, or nothing where samples differ")
    if axes not in ("", *AXES):
        raise UserError(f"{path}: found axes {axes!r}; write {' or '.join(AXES)}")
    if kind.of_pairs:
        _check_truth(path, kind, classes, landmarks)
    return Facts(kind, classes, masked, modality, axes, landmarks)


def _check_truth(path: Path, kind: benchmark_schema.Kind, classes: dict[int, str], landmarks: str) -> None:
    """Refuses pairs without what they are scored by."""
    units = benchmark_schema.VOXELS, benchmark_schema.MILLIMETERS
    if landmarks not in ("", *units) or (kind == benchmark_schema.LANDMARKS and not landmarks):
        raise UserError(f"{path}: found landmarks {landmarks!r}; write {' or '.join(units)}")
    if (kind == benchmark_schema.LANDMARKS) == bool(classes) or 0 in classes:
        raise UserError(
            f"{path}: found {len(classes)} classes of kind {kind.name}; {benchmark_schema.REGISTRATION.name} needs "
            f"names of the labels of its maps, from 1 on, and {benchmark_schema.LANDMARKS.name} has none"
        )


def _known_facts(path: Path) -> Facts:
    """What is known of a task of CuriaBench, which comes without a task.json."""
    name = path.parent.name
    task = schema.known_task(name)
    if task is None or (task["classes"] is None and task["kind"] != benchmark_schema.REGRESSION.name):
        example = '{"kind": "classification", "mask": true, "modality": "CT", "classes": {"0": "name", "1": "name"}}'
        raise UserError(f"{path}: not found, and {name} is no task of CuriaBench that can be scored; write {example}")
    masked = task["mask"]
    if masked is None:
        masked = any((path.parent / benchmark_schema.TEST / benchmark_schema.IMAGES).glob("*.mask.npy"))
    classes = {number: str(number) for number in range(task["classes"] or 0)}
    return Facts(_kind(path, task["kind"]), classes, masked, task["modality"])


def _kind(path: Path, name: str) -> benchmark_schema.Kind:
    """The row of `benchmark_schema.KINDS` with this name."""
    for kind in benchmark_schema.KINDS:
        if kind.name == name:
            return kind
    known = " or ".join(repr(kind.name) for kind in benchmark_schema.KINDS)
    raise UserError(f"{path}: found kind {name!r}; only {known} can be scored")


def _check_patients(folder: Path, splits: dict[str, Split]) -> None:
    """Refuses a patient in two splits, unless there is no other."""
    patients = {name: set(split.patients.tolist()) for name, split in splits.items()}
    for one, other in itertools.combinations(patients, 2):
        shared = patients[one] & patients[other]
        if shared and len(set.union(*patients.values())) > 1:
            raise UserError(
                f"{folder}: found {len(shared)} patients in both {one} and {other}; give each patient one split"
            )


def _check_classes(path: Path, classes: dict[int, str], splits: dict[str, Split]) -> None:
    """Refuses targets without a name, and a training split with nothing to tell apart."""
    for name, split in splits.items():
        if unknown := sorted(set(split.targets.tolist()) - set(classes)):
            raise UserError(f"{path}: found targets {unknown[:5]} in {name} without a name; add them to classes")
    if len(set(splits[benchmark_schema.TRAIN].targets.tolist())) < 2:
        folder = path.parent / benchmark_schema.TRAIN
        raise UserError(f"{folder}: found samples of one class; a classifier needs at least two")


def _strangers(name: str, classes: dict[int, str], splits: dict[str, Split]) -> list[str]:
    """A line if test has classes that train lacks: no head can ever answer them."""
    train, test = (set(splits[split].targets.tolist()) for split in (benchmark_schema.TRAIN, benchmark_schema.TEST))
    if not test - train:
        return []
    names = ", ".join(classes[index] for index in sorted(test - train))
    return [f"{name}: {names}: in test and not in train, so its recall is 0 and lowers the mean over classes"]
