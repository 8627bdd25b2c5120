"""Labelled scans whose split others have made -> tasks of volumes: which of the labels is under the mask?

    labels.csv (image,label,kind)   a label map of each image; a kind of labels becomes a task
    samples.csv (file,role)         `train`, `val` or `test` of each image; other roles are left out
    patients.csv (file,patient)

Paths are relative to the folder of the tables. `launch/ingest.py --labels` makes tasks of slices and splits by itself.
"""

import collections.abc
import json
import os
import pathlib
from typing import NamedTuple

import numpy as np

from curia2_jax import files
from curia2_jax.data.corpus.planes import in_plane
from curia2_jax.data.ingest import benchmark, benchmark_schema, intensity, labels, slicing, tables
from curia2_jax.data.readers.archive import read_any
from curia2_jax.data.readers.volume import Refusal
from curia2_jax.errors import UserError

NAMES = "label_names.json"
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from RAS
DTYPE = np.dtype(
    [
        (benchmark_schema.FILENAME, "U16"),
        (benchmark_schema.TARGET, np.int64),
        (benchmark_schema.SERIES, "U128"),
        (benchmark_schema.PATIENT, "U64"),
        (benchmark_schema.MODALITY, "U4"),
        (benchmark_schema.AFFINE, np.float64, (4, 4)),
    ]
)
ROLES = (benchmark_schema.TRAIN, benchmark_schema.VAL, benchmark_schema.TEST)


class Marked(NamedTuple):
    """A scan in the orientation of its slices: `voxels` (H, W, S) float32, `labels` of the same shape uint16, `affine`
    (slice, row, column, 1) -> mm in LPS."""

    voxels: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    modality: str


def write(scans: pathlib.Path, output: pathlib.Path, say: collections.abc.Callable[[str], None]) -> list[str]:
    """Writes a folder a kind of labels into `output`; returns their names. A sample is a volume and one label in it.

    Raises:
      UserError: a table is at fault, or a kind has no samples to train on or to test.
    """
    roles = column(scans, "samples.csv", "role")
    patients = column(scans, "patients.csv", "patient")
    names = names_of_labels(scans)
    by_kind: dict[str, list[tuple[pathlib.Path, pathlib.Path]]] = {}
    for row in tables.read(scans / "labels.csv", "tasks", ("image", "label", "kind")):
        image, label = ((scans / row[key]).resolve() for key in ("image", "label"))
        if roles.get(image) in ROLES:
            by_kind.setdefault(row["kind"], []).append((image, label))
    for kind, pairs in by_kind.items():
        name = benchmark.slug(kind)
        with files.whole_folder(output / name) as folder:
            rows = _rows(folder, pairs, roles, patients, say)
            if not rows.get(benchmark_schema.TRAIN) or not rows.get(benchmark_schema.TEST):
                raise UserError(f"tasks: {kind!r} lacks samples of the role train or test; write roles in samples.csv")
            _describe(folder, name, kind, rows, benchmark.names_of(names, kind))
        counts = {split: len(found) for split, found in rows.items()}
        say(f"{name}: " + ", ".join(f"{number} {split}" for split, number in counts.items()))
    return [benchmark.slug(kind) for kind in by_kind]


def names_of_labels(scans: pathlib.Path) -> dict:
    """What label_names.json says, if it is there."""
    return benchmark.read_names(str(scans / NAMES)) if (scans / NAMES).is_file() else {}


def column(scans: pathlib.Path, table: str, name: str) -> dict[pathlib.Path, str]:
    """What a table (file,`name`) says of each file. Raises UserError: it is at fault."""
    return {(scans / row["file"]).resolve(): row[name] for row in tables.read(scans / table, "tasks", ("file", name))}


def _rows(
    folder: pathlib.Path,
    pairs: list[tuple[pathlib.Path, pathlib.Path]],
    roles: dict[pathlib.Path, str],
    patients: dict[pathlib.Path, str],
    say: collections.abc.Callable[[str], None],
) -> dict[str, list[tuple]]:
    """Writes every sample; the rows of each split."""
    rows: dict[str, list[tuple]] = {}
    for image, label in pairs:
        try:
            found = read_marked(image, label)
        except Refusal as refusal:
            say(f"warning: {image} is left out: {refusal}")
            continue
        mine = rows.setdefault(roles[image], [])
        about = (image.name, patients.get(image, image.name), found.modality)
        mine += _samples(folder / roles[image], found, len(mine), about)
    return rows


def read_marked(image: pathlib.Path, label: pathlib.Path) -> Marked:
    """A scan and its label map. Raises Refusal: one of them is at fault."""
    volume = intensity.settle(read_any(image))
    found = labels.read(str(label), volume)
    plane = slicing.planes_of(volume.raw.shape, volume.spacing, ("axial",), volume.across)[0]
    voxels, maps = (np.moveaxis(in_plane(array, plane), 0, 2) for array in (volume.voxels, found))
    return Marked(voxels, maps, TO_LPS @ slicing.plane_affine(volume, plane), volume.modality)


def _describe(folder: pathlib.Path, name: str, kind: str, rows: dict[str, list[tuple]], names: dict[str, str]) -> None:
    """The tables, and task.json."""
    values = sorted({row[1] for found in rows.values() for row in found})
    for split, found in rows.items():
        table = np.array([(row[0], values.index(row[1]), *row[2:]) for row in found], DTYPE)
        np.save(folder / split / benchmark_schema.TABLE, table)
    task: benchmark_schema.Description = {
        "name": name,
        "kind": benchmark_schema.CLASSIFICATION.name,
        "mask": True,
        "axes": "HWS",
        "labels": kind,
        "split": "roles of samples.csv",
        "classes": {str(number): names.get(str(value), f"label {value}") for number, value in enumerate(values)},
    }
    (folder / benchmark_schema.TASK).write_text(json.dumps(task, indent=2))


def _samples(folder: pathlib.Path, found: Marked, start: int, about: tuple[str, str, str]) -> list[tuple]:
    """Writes the volume once a label, and returns rows (filename, label, series, patient, modality, affine)."""
    (folder / benchmark_schema.IMAGES).mkdir(parents=True, exist_ok=True)
    rows: list[tuple] = []
    for value in np.unique(found.labels[found.labels > 0]).tolist():
        path = benchmark_schema.image_path(folder, f"{start + len(rows):06d}")
        if rows:
            os.link(benchmark_schema.image_path(folder, rows[0][0]), path)  # takes its space once
        else:
            np.save(path, np.ascontiguousarray(found.voxels, benchmark_schema.IMAGE_DTYPE))
        mask = np.ascontiguousarray(found.labels == value, benchmark_schema.MASK_DTYPE)
        np.save(benchmark_schema.mask_path(path), mask)
        rows.append((path.stem, value, *about, found.affine))
    return rows
