"""A table of values -> tasks of volumes: which value has a scan, or what a label map marks in it?

    values.csv (image,kind,value[,label])   a kind becomes a task; `label`, where there is one, is a label map, and the
                                            value is of what it marks: a nodule, say, of several in a scan
    samples.csv, patients.csv, label_names.json   as in volume_tasks.py

Words are classes, and so are whole numbers, CLASSES different ones at most; other numbers are predicted as numbers. The
value of a slice is that of a file with one slice.
"""

import collections.abc
import itertools
import json
import math
import os
import pathlib
from typing import NamedTuple

import numpy as np

from curia2_jax import files
from curia2_jax.data.ingest import benchmark, benchmark_schema, labels, tables, volume_tasks
from curia2_jax.data.readers.volume import Refusal, Volume
from curia2_jax.errors import UserError

Say = collections.abc.Callable[[str], None]
TABLE = "values.csv"
CLASSES = 10


class Row(NamedTuple):
    """A value of an image, or of what `label` marks in it."""

    image: pathlib.Path
    value: str
    label: pathlib.Path | None


def write(scans: pathlib.Path, output: pathlib.Path, say: Say) -> list[str]:
    """Writes a folder a kind of values into `output`; returns their names. Where a kind has values with a label map and
    values without, those without are a task NAME-whole.

    Raises:
      UserError: a table is at fault, or a kind has no samples to train on or to test.
    """
    roles, patients = volume_tasks.people(scans)
    names = volume_tasks.label_names(scans)
    made = []
    for (kind, whole), rows in _by_task(scans, roles, say).items():
        name = benchmark.slug(kind) + ("-whole" if whole else "")
        table = benchmark.names_of(names, kind)
        with files.whole_folder(output / name) as folder:
            target = _targets(kind, [row.value for row in rows])
            found = _samples(folder, rows, roles, patients, target, say)
            volume_tasks.check_splits(kind, found)
            if target.classes and len({row[1] for row in found[benchmark_schema.TRAIN]}) < 2:
                raise UserError(f"{TABLE}: every scan to train on has one value of {kind!r}; write some of another")
            for split, samples in found.items():
                dtype = volume_tasks.table_dtype(target.kind)
                np.save(folder / split / benchmark_schema.TABLE, np.array(samples, dtype))
            task: benchmark_schema.Description = {
                "name": name,
                "kind": target.kind.name,
                "mask": rows[0].label is not None,
                "axes": "HWS",
                "labels": kind,
                "split": "roles of samples.csv",
                "classes": {str(number): table.get(value, value) for number, value in enumerate(target.classes)},
            }
            (folder / benchmark_schema.TASK).write_text(json.dumps(task, indent=2))
        counts = ", ".join(f"{len(samples)} {split}" for split, samples in found.items())
        say(f"{name}: {target.kind.name}, {counts}")
        made.append(name)
    return made


def _by_task(scans: pathlib.Path, roles: dict[pathlib.Path, str], say: Say) -> dict[tuple[str, bool], list[Row]]:
    """Rows of each kind, those without a label map apart (True) where others have one. In order of the images."""
    found: dict[str, list[Row]] = {}
    strangers = []
    for line in tables.read(scans / TABLE, "tasks", ("image", "kind", "value")):
        image = (scans / line["image"]).resolve()
        label = (scans / line["label"]).resolve() if line.get("label") else None
        if image not in roles:
            strangers.append(line["image"])
        elif roles[image] in volume_tasks.ROLES:
            found.setdefault(line["kind"], []).append(Row(image, line["value"], label))
    if strangers:
        say(f"warning: {len(strangers)} rows of {TABLE} are left out: samples.csv has no {strangers[0]}")
    out: dict[tuple[str, bool], list[Row]] = {}
    for kind, rows in found.items():
        some = any(row.label for row in rows)
        for row in sorted(rows, key=lambda row: (row.label is None, row.image, str(row.label))):
            out.setdefault((kind, some and not row.label), []).append(row)
    _check(scans, out)
    return out


def _check(scans: pathlib.Path, by_task: dict[tuple[str, bool], list[Row]]) -> None:
    """Raises UserError where two values contradict each other, or a kind of label maps has the same name."""
    maps = scans / volume_tasks.TABLE
    taken = {benchmark.slug(row["kind"]) for row in tables.read(maps, "tasks", ("kind",))} if maps.is_file() else set()
    for (kind, _), rows in by_task.items():
        if benchmark.slug(kind) in taken:
            raise UserError(f"{TABLE}: found the kind {kind!r}, which {maps.name} has as well; write another name")
        for one, other in itertools.pairwise(rows):
            if (one.image, one.label) == (other.image, other.label):
                what = one.label or one.image
                raise UserError(
                    f"{TABLE}: found two values of {kind!r} for {what}, {one.value!r} and {other.value!r}; write one, "
                    "or a label map for each in the column label"
                )


class _Targets(NamedTuple):
    kind: benchmark_schema.Kind
    classes: list[str]  # by their numbers; of numbers that are predicted as such none
    of: dict[str, float]  # value -> target


def _targets(kind: str, values: list[str]) -> _Targets:
    """What the values of a kind are: classes or numbers, whose decimals may stand behind a comma."""
    numbers = {value: number for value in set(values) if (number := _number(value)) is not None}
    words = sorted(set(values) - set(numbers))
    if words and len(numbers) > CLASSES:
        raise UserError(f"{TABLE}: found {words[0]!r} among numbers of {kind!r}; leave the line out, or write a number")
    whole = all(number == round(number) for number in numbers.values())
    if numbers and not words and not (whole and len(set(numbers.values())) <= CLASSES):
        return _Targets(benchmark_schema.REGRESSION, [], numbers)
    names = {value: f"{numbers[value]:g}" if value in numbers else value for value in values}
    classes = sorted(set(names.values()), key=lambda name: (_number(name) is None, _number(name) or 0.0, name))
    of = {value: float(classes.index(name)) for value, name in names.items()}
    return _Targets(benchmark_schema.CLASSIFICATION, classes, of)


def _number(value: str) -> float | None:
    try:
        number = float(value.replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _samples(
    folder: pathlib.Path,
    rows: list[Row],
    roles: dict[pathlib.Path, str],
    patients: dict[pathlib.Path, str],
    target: _Targets,
    say: Say,
) -> dict[str, list[tuple]]:
    """Writes a sample a row; returns the rows of each split, (filename, target, series, patient, modality, affine)."""
    out: dict[str, list[tuple]] = {}
    for image, group in itertools.groupby(rows, key=lambda row: row.image):
        mine = out.setdefault(roles[image], [])
        try:
            volume, plane = volume_tasks.read_volume(image)
        except Refusal as refusal:
            say(f"warning: {image} is left out: {refusal}")
            continue
        about = (image.name, patients.get(image, image.name), volume.modality)
        affine, written = volume_tasks.affine_in_lps(volume, plane), len(mine)
        for row in group:
            path = benchmark_schema.image_path(folder / roles[image], f"{len(mine):06d}")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                if row.label:
                    marked = volume_tasks.oriented(_marked(row.label, volume), plane, benchmark_schema.MASK_DTYPE)
                    np.save(benchmark_schema.mask_path(path), marked)
            except Refusal as refusal:
                say(f"warning: {row.label} is left out: {refusal}")
                continue
            if len(mine) > written:
                os.link(benchmark_schema.image_path(path.parent.parent, mine[written][0]), path)  # space once
            else:
                np.save(path, volume_tasks.oriented(volume.voxels, plane, benchmark_schema.IMAGE_DTYPE))
            mine.append((path.stem, target.of[row.value], *about, affine))
    return {split: out[split] for split in volume_tasks.ROLES if out.get(split)}


def _marked(label: pathlib.Path, volume: Volume) -> np.ndarray:
    """(S, P, L) bool. Raises Refusal: as `labels.read`, or nothing is marked."""
    marked = labels.read(str(label), volume) > 0
    if not marked.any():
        raise Refusal("label_values", "nothing is marked")
    return marked
