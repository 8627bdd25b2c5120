"""Tasks on disk, as `data/benchmark_schema.py` describes them, read and checked.

Tables of CuriaBench that name no patients are grouped by series, and without series by file.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curia2_jax.data.corpus.layout import BENCHMARK, CONTRACT
from curia2_jax.data.ingest import benchmark_schema
from curia2_jax.errors import UserError


class Split(NamedTuple):
    """One split of n samples; all arrays have shape (n,)."""

    images: list[Path]
    targets: np.ndarray  # of the dtype of the task's kind
    series: np.ndarray  # str
    patients: np.ndarray  # str
    modalities: np.ndarray  # str, "" = unknown
    masked: bool


class Task(NamedTuple):
    """A task, checked but for its images. `classes`: name of every target, empty in kinds without classes."""

    name: str
    kind: benchmark_schema.Kind
    classes: dict[int, str]
    train: Split
    test: Split


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
    """Names of the tasks in a benchmark folder, sorted; empty when it has none."""
    return sorted(path.parent.name for path in Path(folder).glob(f"*/{benchmark_schema.TASK}"))


def read_task(folder: str | Path, name: str) -> Task:
    """Reads a task's tables, not its images.

    Raises:
      UserError: no such task, or a file of it is at fault, which the message names.
    """
    path = Path(folder) / name / benchmark_schema.TASK
    if not path.is_file():
        known = ", ".join(task_names(folder)) or "none"
        raise UserError(f"--task: found {name!r}, but {path} does not exist; write one of: {known}")
    try:
        description: benchmark_schema.Description = json.loads(path.read_text())
        name_of_kind, masked = description["kind"], bool(description["mask"])
        modality = description.get("modality") or ""
        classes = {int(index): str(label) for index, label in description.get("classes", {}).items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: found {error!r}; write name, classes, kind, mask and modality as JSON") from None
    kind = _kind(path, name_of_kind)
    splits = (_read_split(path.parent / split, kind, masked, modality) for split in benchmark_schema.SPLITS)
    task = Task(name, kind, classes, *splits)
    if kind.has_classes:
        _check_classes(path, task)
    train, test = (set(split.patients.tolist()) for split in (task.train, task.test))
    if (shared := train & test) and len(train | test) > 1:
        raise UserError(
            f"{path.parent}: found {len(shared)} patients in both train and test; give each patient one split"
        )
    return task


def _kind(path: Path, name: str) -> benchmark_schema.Kind:
    """The row of `benchmark_schema.KINDS` with this name."""
    for kind in benchmark_schema.KINDS:
        if kind.name == name:
            return kind
    known = " or ".join(repr(kind.name) for kind in benchmark_schema.KINDS)
    raise UserError(f"{path}: found kind {name!r}; only {known} can be scored")


def _check_classes(path: Path, task: Task) -> None:
    """Refuses targets without a name, and a training split with nothing to tell apart."""
    for split, part in zip(benchmark_schema.SPLITS, (task.train, task.test), strict=True):
        if unknown := sorted(set(part.targets.tolist()) - set(task.classes)):
            raise UserError(f"{path}: found targets {unknown[:5]} in {split} without a name; add them to classes")
    if len(set(task.train.targets.tolist())) < 2:
        folder = path.parent / benchmark_schema.TRAIN
        raise UserError(f"{folder}: found samples of one class; a classifier needs at least two")


def _read_split(folder: Path, kind: benchmark_schema.Kind, masked: bool, modality: str) -> Split:
    path = folder / benchmark_schema.TABLE
    if not path.is_file():
        needed = " and ".join(f"{split}/{benchmark_schema.TABLE}" for split in benchmark_schema.SPLITS)
        raise UserError(f"{path}: not found; a task needs {needed}")
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a NumPy table ({error}); write a structured array") from None
    fields = table.dtype.names or ()
    missing = set(benchmark_schema.REQUIRED) - set(fields)
    if missing or not len(table):
        found = f"{len(table)} rows with fields {', '.join(fields)}" if fields else "no fields"
        required = " and ".join(benchmark_schema.REQUIRED)
        raise UserError(f"{path}: found {found}; write at least one row with {required}")
    # The best name for a group of samples that the table has.
    series = next(f for f in (benchmark_schema.SERIES, benchmark_schema.FILENAME) if f in fields)
    patient = benchmark_schema.PATIENT if benchmark_schema.PATIENT in fields else series
    known = benchmark_schema.MODALITY in fields
    return Split(
        images=[benchmark_schema.image_path(folder, str(name)) for name in table[benchmark_schema.FILENAME]],
        targets=table[benchmark_schema.TARGET].astype(kind.target),
        series=table[series].astype(str),
        patients=table[patient].astype(str),
        modalities=table[benchmark_schema.MODALITY].astype(str) if known else np.full(len(table), modality),
        masked=masked,
    )


def read_sample(split: Split, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Image (H, W) or (H, W, S) float32 and its mask, bool of the same shape, or None in a task without masks.

    Raises:
      UserError: a file is missing, unreadable, misshapen or not finite, or the mask is empty; the message names it.
    """
    path = split.images[index]
    image = _load(path).astype(benchmark_schema.IMAGE_DTYPE)
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise UserError(f"{path}: found shape {image.shape}; write (height, width) or (height, width, slices)")
    if not np.isfinite(image).all():
        raise UserError(f"{path}: found values that are not finite; write Hounsfield units or scanner units")
    if not split.masked:
        return image, None
    path = benchmark_schema.mask_path(path)
    mask = _load(path) != 0
    if mask.shape != image.shape:
        raise UserError(f"{path}: found shape {mask.shape}; write that of its image, {image.shape}")
    if not mask.any():
        raise UserError(f"{path}: found an empty mask; leave the sample out of the table")
    return image, mask


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: not found, but {benchmark_schema.TABLE} names it") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a NumPy array ({error})") from None
