"""Labelled scans and which of them are to be brought onto each other -> tasks of registration.

    pairs.csv (fixed,moving)        two images that lie on one grid, as those of Learn2Reg do
    labels.csv (image,label,kind)   a label map of each image; a kind of labels becomes a task
    patients.csv (file,patient)

Paths are relative to the folder of the tables. What lies on two grids is left out and said: nothing is resampled.
"""

import collections.abc
import json
import pathlib
from typing import NamedTuple

import numpy as np

from curia2_jax import files
from curia2_jax.data.ingest import benchmark, benchmark_schema, labels, tables, volume_tasks
from curia2_jax.data.readers.volume import Refusal
from curia2_jax.errors import UserError

DTYPE = np.dtype(
    [
        (benchmark_schema.FILENAME, "U16"),
        (benchmark_schema.SERIES, "U128"),
        (benchmark_schema.PATIENT, "U64"),
        (benchmark_schema.MODALITY, "U4"),
        (benchmark_schema.AFFINE, np.float64, (4, 4)),
    ]
)
SAME = 0.01  # share of a spacing by which those of two volumes may differ


class _Written(NamedTuple):
    row: tuple
    shape: tuple[int, ...]
    spacing: np.ndarray
    labels: frozenset[int]


def write(scans: pathlib.Path, output: pathlib.Path, say: collections.abc.Callable[[str], None]) -> list[str]:
    """Writes a folder a kind of labels into `output`; returns their names.

    Raises:
      UserError: a table is at fault, or a kind of labels is left without pairs.
    """
    pairs = [
        ((scans / row["fixed"]).resolve(), (scans / row["moving"]).resolve())
        for row in tables.read(scans / benchmark_schema.PAIRS, "tasks", ("fixed", "moving"))
    ]
    patients = volume_tasks.column(scans, "patients.csv", "patient")
    names = volume_tasks.label_names(scans)
    by_kind: dict[str, dict[pathlib.Path, pathlib.Path]] = {}
    for row in tables.read(scans / volume_tasks.TABLE, "tasks", ("image", "label", "kind")):
        by_kind.setdefault(row["kind"], {})[(scans / row["image"]).resolve()] = (scans / row["label"]).resolve()
    made = []
    for kind, labelled in by_kind.items():
        name = f"{benchmark.slug(kind)}-registration"
        with files.whole_folder(output / name) as folder:
            count = _write(folder, kind, pairs, labelled, patients, benchmark.names_of(names, kind), say)
        say(f"{name}: {count} pairs")
        made.append(name)
    return made


def _write(
    folder: pathlib.Path,
    kind: str,
    pairs: list[tuple[pathlib.Path, pathlib.Path]],
    labelled: dict[pathlib.Path, pathlib.Path],
    patients: dict[pathlib.Path, str],
    names: dict[str, str],
    say: collections.abc.Callable[[str], None],
) -> int:
    """One task; returns how many pairs it has."""
    split = folder / benchmark_schema.TEST
    written: dict[pathlib.Path, _Written | None] = {}  # None = left out, and said
    lines: list[tuple[str, str]] = []
    for pair in pairs:
        for image in pair:
            if image not in written:
                written[image] = _volume(split, image, labelled.get(image), patients, len(written), say)
        fixed, moving = (written[image] for image in pair)
        if fixed is None or moving is None:
            continue
        if fixed.shape != moving.shape or not np.allclose(fixed.spacing, moving.spacing, rtol=SAME):
            say(f"warning: {pair[0]} and {pair[1].name} are left out: {_grid(fixed)} and {_grid(moving)}")
            continue
        lines.append((fixed.row[0], moving.row[0]))
    if not lines:
        raise UserError(
            f"tasks: no pair of {benchmark_schema.PAIRS} has label maps of {kind!r} on one grid; write some"
        )
    kept = [one for one in written.values() if one is not None]
    np.save(split / benchmark_schema.TABLE, np.array([one.row for one in kept], DTYPE))
    tables.write(split / benchmark_schema.PAIRS, ("fixed", "moving"), lines)
    values = sorted(frozenset[int]().union(*(one.labels for one in kept)))
    task: benchmark_schema.Description = {
        "name": folder.name,
        "kind": benchmark_schema.REGISTRATION.name,
        "mask": False,
        "axes": "HWS",
        "labels": kind,
        "classes": {str(value): names.get(str(value), f"label {value}") for value in values},
    }
    (folder / benchmark_schema.TASK).write_text(json.dumps(task, indent=2))
    return len(lines)


def _volume(
    split: pathlib.Path,
    image: pathlib.Path,
    label: pathlib.Path | None,
    patients: dict[pathlib.Path, str],
    number: int,
    say: collections.abc.Callable[[str], None],
) -> _Written | None:
    try:
        if label is None:
            raise Refusal("label_unpaired", "labels.csv names no label map of it")
        volume, plane = volume_tasks.read_volume(image)
        maps = volume_tasks.oriented(labels.read(str(label), volume), plane, np.uint16)
    except Refusal as refusal:
        say(f"warning: {image} is left out: {refusal}")
        return None
    path = benchmark_schema.image_path(split, f"{number:06d}")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, volume_tasks.oriented(volume.voxels, plane, benchmark_schema.IMAGE_DTYPE))
    np.save(benchmark_schema.mask_path(path), maps)
    affine = volume_tasks.affine_in_lps(volume, plane)
    row = (path.stem, image.name, patients.get(image, image.name), volume.modality, affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return _Written(row, maps.shape, spacing, frozenset(np.unique(maps).tolist()) - {0})


def _grid(one: _Written) -> str:
    """Slices, rows and columns, and millimeters between them."""
    height, width, slices = one.shape
    return f"{slices} x {height} x {width} voxels of " + " x ".join(f"{side:.3g}" for side in one.spacing) + " mm"
