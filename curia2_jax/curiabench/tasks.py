"""Tasks on disk, in CuriaBench's layout, one folder a task:

    <task>/task.json                        name, classes {index: name}, kind "classification", mask, modality
    <task>/<split>/extra_data.npy           structured array: filename, target, patient_id, series_id, modality
    <task>/<split>/images/<filename>.npy    (H, W) or, for a volume, (H, W, S): raw intensities (HU or scanner units)
    <task>/<split>/images/<stem>.mask.npy   same shape, nonzero under the structure that is asked about

Splits are `train` and `test`. Tables without `patient_id` are grouped by `series_id`, without that by `filename`.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curia2_jax.errors import UserError

CONTRACT = "contract.json"  # what makes a folder a corpus
BENCHMARK = "benchmark"


class Split(NamedTuple):
    """One split of n samples; all arrays have shape (n,)."""

    images: list[Path]
    targets: np.ndarray  # int64
    series: np.ndarray  # str
    patients: np.ndarray  # str
    modalities: np.ndarray  # str, "" = unknown
    masked: bool


class Task(NamedTuple):
    name: str
    classes: dict[int, str]
    train: Split
    test: Split


def benchmark_folder(data: str | Path) -> Path | None:
    """The folder whose subfolders are tasks: `data` itself, or `benchmark` in a corpus; None for a corpus without one.

    Raises UserError when `data` is neither a benchmark nor a corpus.
    """
    data = Path(data)
    for folder in (data, data / BENCHMARK):
        if task_names(folder):
            return folder
    if not (data / CONTRACT).is_file():
        raise UserError(
            f"--data: {data} holds neither a task (NAME/task.json) nor a corpus ({CONTRACT}); "
            "write a folder made by launch/ingest.py --labels"
        )
    return None


def task_names(folder: str | Path) -> list[str]:
    """Names of the tasks in a benchmark folder, sorted; empty when it has none."""
    return sorted(path.parent.name for path in Path(folder).glob("*/task.json"))


def read_task(folder: str | Path, name: str) -> Task:
    """Reads a task's tables, not its images. Raises UserError that names the file at fault."""
    path = Path(folder) / name / "task.json"
    if not path.is_file():
        known = ", ".join(task_names(folder)) or "none"
        raise UserError(f"--task: found {name!r}, but {path} does not exist; write one of: {known}")
    try:
        description = json.loads(path.read_text())
        classes = {int(index): str(label) for index, label in description["classes"].items()}
        kind, masked, modality = description["kind"], bool(description["mask"]), description.get("modality") or ""
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: found {error!r}; write name, classes, kind, mask and modality as JSON") from None
    if kind != "classification":
        raise UserError(f"{path}: found kind {kind!r}; only 'classification' can be scored")
    train, test = (_read_split(Path(folder) / name / split, masked, modality) for split in ("train", "test"))
    for split, part in (("train", train), ("test", test)):
        unknown = sorted(set(part.targets.tolist()) - set(classes))
        if unknown:
            raise UserError(f"{path}: found targets {unknown[:5]} in {split} without a name; add them to classes")
    if len(set(train.targets.tolist())) < 2:
        raise UserError(f"{path.parent / 'train'}: found samples of one class; a classifier needs at least two")
    shared = set(train.patients.tolist()) & set(test.patients.tolist())
    if shared and len(set(train.patients.tolist()) | set(test.patients.tolist())) > 1:
        raise UserError(
            f"{path.parent}: found {len(shared)} patients in both train and test; give each patient one split"
        )
    return Task(name, classes, train, test)


def _read_split(folder: Path, masked: bool, modality: str) -> Split:
    path = folder / "extra_data.npy"
    if not path.is_file():
        raise UserError(f"{path}: not found; a task needs train/extra_data.npy and test/extra_data.npy")
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a NumPy table ({error}); write a structured array") from None
    fields = table.dtype.names or ()
    missing = {"filename", "target"} - set(fields)
    if missing or not len(table):
        found = f"{len(table)} rows with fields {', '.join(fields)}" if fields else "no fields"
        raise UserError(f"{path}: found {found}; write at least one row with filename and target")
    files = [str(name).removesuffix(".npy") + ".npy" for name in table["filename"]]
    series = next(field for field in ("series_id", "filename") if field in fields)
    patient = "patient_id" if "patient_id" in fields else series
    modalities = table["modality"].astype(str) if "modality" in fields else np.full(len(table), modality)
    images = [folder / "images" / file for file in files]
    groups = (table[field].astype(str) for field in (series, patient))
    return Split(images, table["target"].astype(np.int64), *groups, modalities, masked)


def read_sample(split: Split, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Image (H, W) or (H, W, S) float32 and its mask, bool of the same shape, or None in a task without masks.

    Raises UserError that names the file when it is missing, unreadable, misshapen, not finite, or the mask is empty.
    """
    path = split.images[index]
    image = _load(path).astype(np.float32)
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise UserError(f"{path}: found shape {image.shape}; write (height, width) or (height, width, slices)")
    if not np.isfinite(image).all():
        raise UserError(f"{path}: found values that are not finite; write Hounsfield units or scanner units")
    if not split.masked:
        return image, None
    path = path.with_name(path.name.removesuffix(".npy") + ".mask.npy")
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
        raise UserError(f"{path}: not found, but extra_data.npy names it") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a NumPy array ({error})") from None
