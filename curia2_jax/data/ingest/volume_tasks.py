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

import numpy as np

from curia2_jax import files
from curia2_jax.data.corpus.planes import in_plane
from curia2_jax.data.ingest import benchmark, benchmark_schema, intensity, labels, slicing, tables
from curia2_jax.data.readers.archive import read_any
from curia2_jax.data.readers.volume import Refusal, Volume
from curia2_jax.errors import UserError

TABLE, NAMES = "labels.csv", "label_names.json"
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from RAS
ROLES = (benchmark_schema.TRAIN, benchmark_schema.VAL, benchmark_schema.TEST)


def write(scans: pathlib.Path, output: pathlib.Path, say: collections.abc.Callable[[str], None]) -> list[str]:
    """Writes a folder a kind of labels into `output`; returns their names. A sample is a volume and one label in it.

    Raises:
      UserError: a table is at fault, or a kind has no samples to train on or to test.
    """
    roles, patients = people(scans)
    names = label_names(scans)
    by_kind: dict[str, list[tuple[pathlib.Path, pathlib.Path]]] = {}
    for row in tables.read(scans / TABLE, "tasks", ("image", "label", "kind")):
        image, label = ((scans / row[key]).resolve() for key in ("image", "label"))
        if roles.get(image) in ROLES:
            by_kind.setdefault(row["kind"], []).append((image, label))
    for kind, pairs in by_kind.items():
        name = benchmark.slug(kind)
        with files.whole_folder(output / name) as folder:
            rows = _rows(folder, pairs, roles, patients, say)
            check_splits(kind, rows)
            _describe(folder, name, kind, rows, benchmark.names_of(names, kind))
        counts = {split: len(found) for split, found in rows.items()}
        say(f"{name}: " + ", ".join(f"{number} {split}" for split, number in counts.items()))
    return [benchmark.slug(kind) for kind in by_kind]


def people(scans: pathlib.Path) -> tuple[dict[pathlib.Path, str], dict[pathlib.Path, str]]:
    """The role and the patient of every file. Raises UserError: a table is at fault."""
    return _column(scans, "samples.csv", "role"), _column(scans, "patients.csv", "patient")


def label_names(scans: pathlib.Path) -> dict:
    """What label_names.json says, if it is there."""
    return benchmark.read_names(str(scans / NAMES)) if (scans / NAMES).is_file() else {}


def table_dtype(kind: benchmark_schema.Kind) -> np.dtype:
    """One row of a table of volumes."""
    return np.dtype(
        [
            (benchmark_schema.FILENAME, "U16"),
            (benchmark_schema.TARGET, kind.target),
            (benchmark_schema.SERIES, "U128"),
            (benchmark_schema.PATIENT, "U64"),
            (benchmark_schema.MODALITY, "U4"),
            (benchmark_schema.AFFINE, np.float64, (4, 4)),
        ]
    )


def check_splits(kind: str, rows: dict[str, list[tuple]]) -> None:
    """Raises UserError where there is nothing to learn from or nothing to test."""
    if not rows.get(benchmark_schema.TRAIN) or not rows.get(benchmark_schema.TEST):
        raise UserError(f"tasks: {kind!r} lacks samples of the role train or test; write roles in samples.csv")


def read_volume(image: pathlib.Path) -> tuple[Volume, str]:
    """A volume and the plane that it is cut in. Raises Refusal."""
    volume = intensity.settle(read_any(image))
    return volume, slicing.planes_of(volume.raw.shape, volume.spacing, ("axial",), volume.across)[0]


def oriented(array: np.ndarray, plane: str, dtype: type) -> np.ndarray:
    """(S, P, L) -> (H, W, slices) of a plane."""
    return np.ascontiguousarray(np.moveaxis(in_plane(array, plane), 0, 2), dtype)


def affine_in_lps(volume: Volume, plane: str) -> np.ndarray:
    """(4, 4): (slice, row, column, 1) of a plane -> millimeters in LPS."""
    return TO_LPS @ slicing.plane_affine(volume, plane)


def _column(scans: pathlib.Path, table: str, name: str) -> dict[pathlib.Path, str]:
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
            volume, plane = read_volume(image)
            found = labels.read(str(label), volume)
        except Refusal as refusal:
            say(f"warning: {image} is left out: {refusal}")
            continue
        mine = rows.setdefault(roles[image], [])
        about = (image.name, patients.get(image, image.name), volume.modality)
        mine += _samples(folder / roles[image], volume, found, plane, len(mine), about)
    return rows


def _describe(folder: pathlib.Path, name: str, kind: str, rows: dict[str, list[tuple]], names: dict[str, str]) -> None:
    """The tables, and task.json."""
    values = sorted({row[1] for found in rows.values() for row in found})
    for split, found in rows.items():
        dtype = table_dtype(benchmark_schema.CLASSIFICATION)
        table = np.array([(row[0], values.index(row[1]), *row[2:]) for row in found], dtype)
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


def _samples(
    folder: pathlib.Path, volume: Volume, found: np.ndarray, plane: str, start: int, about: tuple[str, str, str]
) -> list[tuple]:
    """Writes the volume once a label, and returns rows (filename, label, series, patient, modality, affine)."""
    (folder / benchmark_schema.IMAGES).mkdir(parents=True, exist_ok=True)
    maps, affine = oriented(found, plane, np.uint16), affine_in_lps(volume, plane)
    rows: list[tuple] = []
    for value in np.unique(maps[maps > 0]).tolist():
        path = benchmark_schema.image_path(folder, f"{start + len(rows):06d}")
        if rows:
            os.link(benchmark_schema.image_path(folder, rows[0][0]), path)  # takes its space once
        else:
            np.save(path, oriented(volume.voxels, plane, benchmark_schema.IMAGE_DTYPE))
        np.save(benchmark_schema.mask_path(path), np.ascontiguousarray(maps == value, benchmark_schema.MASK_DTYPE))
        rows.append((path.stem, value, *about, affine))
    return rows
