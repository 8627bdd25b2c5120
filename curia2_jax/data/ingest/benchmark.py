"""Benchmark folders in the schema of CuriaBench, cut from labelled series: which organ is under the mask?

A sample is a slice in HU or the scanner's unit, the mask of one label in it, and the label as its class. Samples wait
in `CORPUS/work/` until every patient is known.
"""

import collections.abc
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil

import numpy as np

from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.planes import in_plane
from curia2_jax.data.corpus.structures import MIN_PIXELS
from curia2_jax.data.ingest import benchmark_schema
from curia2_jax.data.ingest.intensity import Quantizer
from curia2_jax.data.readers.volume import Volume
from curia2_jax.errors import UserError
from curia2_jax.files import whole_file, whole_folder

# Most samples from one label of one series, spread evenly along the slices that show it.
MAX_SAMPLES = 8
_BLOCKS = 8  # runs of slices that alternate between train and test where there is only one patient


def samples(volume: Volume, plane: str, label: np.ndarray) -> dict[str, np.ndarray]:
    """Benchmark samples of one label map as arrays: `images` float32 (n, H, W), `masks` uint16 label maps (n, H, W)
    of the slices used, `slices` (n,) their positions, `of` (m,) the slice of each sample (into n) and `target` (m,) its
    label."""
    view, maps = in_plane(volume.raw, plane), in_plane(label, plane)
    values = np.unique(label)
    chosen: list[tuple[int, int]] = []
    if len(values) > 1:
        counts = np.stack([np.bincount(one.ravel(), minlength=int(values[-1]) + 1) for one in maps])
        for value in values[values > 0].tolist():
            eligible = np.flatnonzero(counts[:, value] >= MIN_PIXELS)
            take = np.unique(np.linspace(0, len(eligible) - 1, min(len(eligible), MAX_SAMPLES)).round().astype(int))
            chosen += [(int(z), value) for z in eligible[take]]
    used = sorted({z for z, _ in chosen})
    quantize = Quantizer.from_volume(volume)
    images = (
        np.stack([quantize(np.ascontiguousarray(view[z])) for z in used]) if used else np.empty((0, 0, 0), np.int16)
    )
    return {
        "images": images.astype(np.float32) * np.float32(quantize.slope) + np.float32(quantize.intercept),
        "masks": maps[used] if used else np.empty((0, 0, 0), np.uint16),
        "slices": np.array(used, np.int32),
        "of": np.searchsorted(used, [z for z, _ in chosen]).astype(np.int32) if chosen else np.empty(0, np.int32),
        "target": np.array([value for _, value in chosen], np.int64),
        "depth": np.array(len(view), np.int32),
    }


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Where the samples of one label map wait: `file`, and whose they are. `rank` says on which side a patient is, by a
    hash that does not depend on the salt, so that the split does not either; it is not kept."""

    file: str
    kind: str
    modality: str
    plane: str
    series: str
    patient: str
    rank: str


def set_aside(
    work: pathlib.Path,
    volume: Volume,
    maps: list[tuple[str, np.ndarray]],
    ids: dict[str, str],
    plane: str,
    patient: str,
) -> list[dict]:
    """Keep the label maps of a series, and samples of each, in `work` until the corpus is published.

    The label maps become one .npz: an array (S, P, L) uint16 a kind, and `affine`, (s, p, l, 1) -> RAS+ millimeters.
    Returns the fields of one `Sampled` a kind.
    """
    series = ids["series"]
    by_kind: dict[str, list[np.ndarray]] = {}
    for kind, one in maps:
        by_kind.setdefault(kind, []).append(one)
    arrays = {f"{slug(kind)}-{i}": m for kind, found in by_kind.items() for i, m in enumerate(found)}
    _save(work / layout.part_label_maps(series), arrays | {"affine": volume.affine}, np.savez_compressed)
    out = []
    for kind, found in by_kind.items():
        for number, one in enumerate(found):
            file = layout.part_samples(series, slug(kind), number)
            _save(work / file, samples(volume, plane, one), np.savez)
            item = Sampled(file, kind, volume.modality, plane, series, ids["patient"], rank(patient))
            out.append(dataclasses.asdict(item))
    return out


def _save(path: pathlib.Path, arrays: dict[str, np.ndarray], save: collections.abc.Callable) -> None:
    with whole_file(path, sync=False) as partial, open(partial, "wb") as file:
        save(file, **arrays)


def keep(output: pathlib.Path, work: pathlib.Path, found: list[Sampled]) -> None:
    """Move the label maps of the series that stay to `CORPUS/labels/`."""
    (output / layout.LABELS).mkdir(exist_ok=True)
    for series in sorted({item.series for item in found}):
        source = work / layout.part_label_maps(series)
        if source.exists():
            os.replace(source, output / layout.label_maps(series))


def slug(text: str) -> str:
    """Name of a task from the kind of its labels, such as "totalsegmentator-total"."""
    words = re.sub(r"[^a-z0-9]+", "-", re.split(r"[,;(]", text.lower())[0]).strip("-")
    return words or "labels"


def write(
    folder: pathlib.Path, work: pathlib.Path, found: list[Sampled], names: dict
) -> list[benchmark_schema.Description]:
    """Benchmark folders, one a kind of label and modality, in CuriaBench's schema; returns each task.json.

    Patients whose hash lies in the lowest third of all hashes are the test set, so that a new patient moves nobody; if
    that leaves a side empty, the lowest one is tested. With one patient, runs of neighboring slices alternate, and
    task.json says so. Classes that one of the two splits lacks are left out; a task that is
    left with one class is returned but not written.
    """
    tasks: dict[str, list[Sampled]] = {}
    for item in sorted(found, key=lambda s: (s.kind, s.modality, s.series, s.file)):
        tasks.setdefault(f"{slug(item.kind)}-{item.modality.lower()}", []).append(item)
    out = []
    for name, items in tasks.items():
        rows, task = _task(work, name, items, names)
        if len(task["classes"]) > 1:
            _write_task(folder / name, work, rows, task)
        out.append(task)
    return out


def _task(
    work: pathlib.Path, name: str, items: list[Sampled], names: dict
) -> tuple[list[tuple], benchmark_schema.Description]:
    """Rows (split, item, sample, target) that stay, and what task.json says."""
    order = sorted({item.rank for item in items})
    alone = len(order) == 1
    test = {rank for rank in order if int(rank, 16) < 16 ** len(rank) // 3}
    test = test if 0 < len(test) < len(order) else set(order[:1])
    rows = []
    for item in items:
        with np.load(work / item.file) as arrays:
            target, z, depth = arrays["target"], arrays["slices"][arrays["of"]], int(arrays["depth"])
        for sample, value in enumerate(target.tolist()):
            aside = (z[sample] * _BLOCKS // depth) % 2 == 1 if alone else item.rank in test
            split = benchmark_schema.TEST if aside else benchmark_schema.TRAIN
            rows.append((split, item, sample, value))
    train, test = ({row[3] for row in rows if row[0] == split} for split in benchmark_schema.SPLITS)
    both = train & test
    classes = {value: index for index, value in enumerate(sorted(both))}
    known = names_of(names, items[0].kind)
    task: benchmark_schema.Description = {
        "name": name,
        "kind": benchmark_schema.CLASSIFICATION.name,
        "mask": True,
        "modality": items[0].modality,
        "plane": ",".join(sorted({item.plane for item in items})),
        "labels": items[0].kind,
        "split": "blocks of one patient" if alone else "patients",
        "patients": len(order),
        "classes": {str(index): known.get(str(value), f"label {value}") for value, index in classes.items()},
        "values": list(classes),
    }
    return [(split, item, sample, classes[v]) for split, item, sample, v in rows if v in classes], task


def names_of(names: dict, kind: str) -> dict[str, str]:
    """Table of names for a kind of label: the whole file, or the entry whose key is a word of the kind."""
    if all(isinstance(value, str) for value in names.values()):
        return names
    words = re.findall(r"\w+", kind.lower())
    return next((table for key, table in names.items() if key.lower() in words and isinstance(table, dict)), {})


def read_names(path: str) -> dict:
    """JSON of `--label-names`: {"1": name, ...} or {word of the kind: {"1": name, ...}, ...}.

    Raises:
      UserError: the file cannot be read, or is no such table.
    """
    try:
        names = json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--label-names {path}: cannot be read ({error}); write JSON such as {{'1': 'liver'}}"
        ) from None
    if not isinstance(names, dict):
        raise UserError(f"--label-names {path}: found a {type(names).__name__}; write JSON such as {{'1': 'liver'}}")
    return names


def _write_task(
    folder: pathlib.Path, work: pathlib.Path, rows: list[tuple], task: benchmark_schema.Description
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    table: dict[str, list[tuple]] = {split: [] for split in benchmark_schema.SPLITS}
    for split in table:
        (folder / split / benchmark_schema.IMAGES).mkdir(parents=True)
    arrays: dict[str, np.ndarray] = {}
    loaded: str | None = None
    written: dict[int, pathlib.Path] = {}
    for split, item, sample, target in rows:
        if loaded != item.file:
            with np.load(work / item.file) as file:
                arrays, loaded, written = dict(file), item.file, {}
        at = int(arrays["of"][sample])
        image = benchmark_schema.image_path(folder / split, f"{len(table[split]):06d}")
        if at in written:
            os.link(written[at], image)  # slices with several labels take their space once
        else:
            np.save(image, arrays["images"][at].astype(benchmark_schema.IMAGE_DTYPE, copy=False))
            written[at] = image
        mask = arrays["masks"][at] == arrays["target"][sample]
        np.save(benchmark_schema.mask_path(image), mask.astype(benchmark_schema.MASK_DTYPE))
        table[split].append((image.stem, target, item.series, item.patient, item.modality))
    dtype = benchmark_schema.table_dtype(benchmark_schema.CLASSIFICATION)
    for split, found in table.items():
        np.save(folder / split / benchmark_schema.TABLE, np.array(found, dtype))
    (folder / benchmark_schema.TASK).write_text(json.dumps(task, indent=2))


def without(folder: pathlib.Path, series: set[str]) -> None:
    """Take the samples of some series out of the benchmark folders below `folder`. Classes that one of the two splits
    lacks then go as well, and a task that is left with one class. Can be cut off and called again."""
    for left in folder.glob(".*"):  # of a call that was cut off: `.NAME.PID.old` is what a new folder replaces
        name, _, kind = left.name.rpartition(".")
        whole = folder / name.rpartition(".")[0].lstrip(".")
        if kind == "old" and not whole.exists():
            left.rename(whole)
        shutil.rmtree(left, ignore_errors=True)
    for path in sorted(folder.glob(f"*/{benchmark_schema.TASK}")):
        task: benchmark_schema.Description = json.loads(path.read_text())
        found = {split: np.load(path.parent / split / benchmark_schema.TABLE) for split in benchmark_schema.SPLITS}
        kept = {split: rows[~np.isin(rows[benchmark_schema.SERIES], sorted(series))] for split, rows in found.items()}
        if all(len(kept[split]) == len(found[split]) for split in found):
            continue
        target = benchmark_schema.TARGET
        both = sorted(set.intersection(*(set(rows[target].tolist()) for rows in kept.values())))
        if len(both) < 2:
            shutil.rmtree(path.parent)
            continue
        for split, rows in kept.items():
            kept[split] = rows = rows[np.isin(rows[target], both)]
            rows[target] = np.searchsorted(both, rows[target])
        patients = {name for rows in kept.values() for name in rows[benchmark_schema.PATIENT].tolist()}
        task |= {
            "patients": len(patients),
            "classes": {str(new): task["classes"][str(old)] for new, old in enumerate(both)},
            **({"values": [task["values"][old] for old in both]} if "values" in task else {}),
        }
        with whole_folder(path.parent) as partial:
            _copy_task(path.parent, partial, kept, task)


def _copy_task(
    source: pathlib.Path, target: pathlib.Path, kept: dict[str, np.ndarray], task: benchmark_schema.Description
) -> None:
    for split, rows in kept.items():
        (target / split / benchmark_schema.IMAGES).mkdir(parents=True)
        np.save(target / split / benchmark_schema.TABLE, rows)
        for name in rows[benchmark_schema.FILENAME].tolist():
            old, new = (benchmark_schema.image_path(folder / split, name) for folder in (source, target))
            os.link(old, new)
            os.link(benchmark_schema.mask_path(old), benchmark_schema.mask_path(new))
    (target / benchmark_schema.TASK).write_text(json.dumps(task, indent=2))


def rank(patient: str) -> str:
    """Order of a patient in the split, from the identifier as it is in the source."""
    return hashlib.sha256(f"benchmark {patient}".encode("utf-8", "surrogateescape")).hexdigest()
