"""CuriaBench as it is downloaded: parquet files, or folders of `datasets`, unpacked into tasks of `.npy` files.

A task is a folder NAME of `SPLIT-*.parquet`, `SPLIT/*.parquet`, or `SPLIT/*.arrow` as `datasets` saves them. Columns:
`image`, nested numbers (H, W) or (H, W, S); `mask`, of the same shape or null; `target`, or several `target_...`; and
what else names series, patients and modalities. Rows that cannot be samples are left out and listed in `left_out.csv`:
a 1 x 1 image, which stands for a lost file; no target; no mask, or an empty one, where others have one.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from curia2_jax import files
from curia2_jax.curiabench import schema as known
from curia2_jax.data.ingest import benchmark_schema as schema
from curia2_jax.errors import UserError

SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
IMAGE, MASK = "image", "mask"
LEFT_OUT = "left_out.csv"
KEPT = (schema.SERIES, schema.PATIENT, schema.MODALITY)  # columns that tables have as well
BATCH = 8  # rows read at a time


class Row(NamedTuple):
    """A row as it is published; `target`: a number, a name, or several numbers; None = null."""

    image: np.ndarray
    mask: np.ndarray | None
    target: Any
    kept: dict[str, str]


def names(folder: Path) -> list[str]:
    """Published tasks of a folder, sorted: those with files of train and of test, and no table of ours."""
    found = []
    for path in sorted(one for one in folder.iterdir() if one.is_dir()):
        ours = any((path / split / schema.TABLE).is_file() for split in schema.SPLITS)
        if not ours and set(schema.SPLITS) <= set(_shards(path)):
            found.append(path.name)
    return found


def unpack(folder: Path, chosen: Sequence[str], output: Path, say: Callable[[str], None] = print) -> Path:
    """Writes the tasks `chosen` of `names` below `output`, which is returned; says what was guessed and left out.

    Raises:
      UserError: a file is damaged, or no such table; the message names it.
    """
    for name in chosen:
        if name not in (there := names(folder)):
            raise UserError(
                f"--task: found {name!r}, which is not published in {folder}; write one of {', '.join(there)}"
            )
        with files.whole_folder(output / name) as partial:
            for line in _unpack(folder / name, partial):
                say(f"{name}: {line}")
    return output


def _shards(folder: Path) -> dict[str, list[Path]]:
    """Files of each split."""
    found: dict[str, list[Path]] = {}
    for path in sorted([*folder.rglob("*.parquet"), *folder.rglob("*.arrow")]):
        for word in (*reversed(path.relative_to(folder).parts[:-1]), *re.split(r"[-_.]", path.name)):
            if word in SPLITS:
                found.setdefault(SPLITS[word], []).append(path)
                break
    return found


def _unpack(source: Path, folder: Path) -> list[str]:
    """Writes one task; returns what is to be said of it."""
    tables: dict[str, list[tuple[str, Row]]] = {}
    left, shards = [], _shards(source)
    first = _schema(shards[schema.TRAIN][0])
    masked = any(one.mask is not None for paths in shards.values() for path in paths for one in _rows(path, (MASK,)))
    for split, paths in shards.items():
        (folder / split / schema.IMAGES).mkdir(parents=True)
        tables[split] = []
        for number, row in enumerate(one for path in paths for one in _rows(path, (IMAGE, MASK))):
            if reason := _fault(row, masked):
                left.append(f"{split},{number},{reason}")
                continue
            image = schema.image_path(folder / split, f"{number:06d}")
            np.save(image, row.image.astype(schema.IMAGE_DTYPE, copy=False))
            if row.mask is not None:
                np.save(schema.mask_path(image), (row.mask != 0).astype(schema.MASK_DTYPE))
            tables[split].append((image.stem, row._replace(image=np.empty(0), mask=None)))
        if not tables[split]:
            raise UserError(f"{source}: found no sample in {split} that can be scored; the reasons: {left[-1]}")
    for split, found in tables.items():
        np.save(folder / split / schema.TABLE, _table(found))
    said = []
    if left:
        files.write_text(folder / LEFT_OUT, "\n".join(["split,row,reason", *left]) + "\n")
        said.append(f"{len(left)} rows are left out, {LEFT_OUT} of the unpacked task says why")
    if (source / schema.TASK).is_file():
        shutil.copy(source / schema.TASK, folder / schema.TASK)
        return said
    told = _description(source.name, tables, masked, _class_names(first))
    (folder / schema.TASK).write_text(json.dumps(told, indent=2))
    if known.known_task(source.name) is None:
        said.append(f"taken for {told['kind']} by its targets; write {source / schema.TASK} if that is wrong")
    return said


def _fault(row: Row, masked: bool) -> str:
    """Why a row is no sample, or ""."""
    targets = row.target if isinstance(row.target, list) else [row.target]
    unknown = [one is None or (isinstance(one, float) and one != one) for one in targets]
    if row.image.shape[:2] == (1, 1):
        return "the image is 1 x 1 and stands for a lost file"
    if all(unknown):
        return "no target"
    if masked and row.mask is None:
        return "no mask"
    return "an empty mask" if masked and row.mask is not None and not row.mask.any() else ""


def _table(found: list[tuple[str, Row]]) -> np.ndarray:
    """The table of a split: every name of a column that is there, and targets as they are."""
    columns: list[tuple[str, np.ndarray]] = [(schema.FILENAME, np.array([stem for stem, _ in found]))]
    targets = np.array([row.target for _, row in found])
    columns.append((schema.TARGET, targets.astype(np.float64) if targets.dtype.kind not in "USiu" else targets))
    columns += [(name, np.array([row.kept[name] for _, row in found])) for name in found[0][1].kept]
    table = np.empty(len(found), [(name, one.dtype, one.shape[1:]) for name, one in columns])
    for name, one in columns:
        table[name] = one
    return table


def _description(name: str, tables: dict, masked: bool, named: list[str]) -> schema.Description:
    """What task.json says: what is known of a task of CuriaBench, else what its targets look like."""
    targets = [row.target for found in tables.values() for _, row in found]
    task, modality = known.known_task(name), ""
    if isinstance(targets[0], list):
        kind, labels = schema.MULTI_LABEL.name, named or [str(number) for number in range(len(targets[0]))]
    elif any(isinstance(one, float) and one != round(one) for one in targets):
        kind, labels = schema.REGRESSION.name, []
    else:
        number = max((int(one) for one in targets if not isinstance(one, str)), default=-1) + 1
        texts = sorted({one for one in targets if isinstance(one, str)})
        kind, labels = schema.CLASSIFICATION.name, named or texts or [str(one) for one in range(number)]
    if task is not None:
        kind, modality = task["kind"], task["modality"]
        few = kind == schema.CLASSIFICATION.name and len(labels) < (task["classes"] or 0)
        labels = [str(one) for one in range(task["classes"] or 0)] if few and not named else labels
    classes = {str(one): label for one, label in enumerate(labels)}
    return {"name": name, "kind": kind, "mask": masked, "modality": modality, "classes": classes}


def _schema(path: Path) -> pa.Schema:
    try:
        if path.suffix == ".parquet":
            return parquet.read_schema(path)
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            return stream.schema
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); download the file again") from None


def _class_names(found: pa.Schema) -> list[str]:
    """Names of classes that `datasets` keeps beside a table."""
    told = json.loads((found.metadata or {}).get(b"huggingface", b"{}"))
    return list(told.get("info", {}).get("features", {}).get(schema.TARGET, {}).get("names", []))


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH, columns=columns)
    else:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                yield batch.select(columns)


def _rows(path: Path, arrays: tuple[str, ...]) -> Iterator[Row]:
    """Every row, with those of image and mask that are asked for; the image is else empty."""
    there = _schema(path).names
    several = sorted(name for name in there if name.startswith(f"{schema.TARGET}_"))
    targets = [schema.TARGET] if schema.TARGET in there else several
    if IMAGE not in there or not targets:
        raise UserError(f"{path}: found the columns {', '.join(there)}; a task needs {IMAGE} and {schema.TARGET}")
    kept = [name for name in KEPT if name in there]
    wanted = [name for name in arrays if name in there] + targets + kept
    try:
        for batch in _batches(path, wanted):
            for number in range(len(batch)):
                image, mask = (
                    _nested(path, name, batch.column(name), number) if name in batch.schema.names else None
                    for name in (IMAGE, MASK)
                )
                values = [batch.column(name)[number].as_py() for name in targets]
                target = [np.nan if one is None else float(one) for one in values] if len(values) > 1 else values[0]
                texts = {name: str(batch.column(name)[number].as_py()) for name in kept}
                yield Row(np.empty(0) if image is None else image, mask, target, texts)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); download the file again") from None


def _nested(path: Path, name: str, column: pa.Array, number: int) -> np.ndarray | None:
    """Nested lists of one row as an array; None = null."""
    one, shape = column.slice(number, 1), []
    if isinstance(one, pa.ExtensionArray):
        one = one.storage
    if not one[0].is_valid:
        return None
    while isinstance(one, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        fixed = isinstance(one, pa.FixedSizeListArray)
        lengths = np.unique([one.type.list_size] if fixed else one.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) > 1:
            raise UserError(
                f"{path}: found rows of {lengths[0]} and {lengths[1]} numbers in one {name}; write them alike"
            )
        shape.append(int(lengths[0]) if len(lengths) else 0)
        one = one.flatten()
    if not (pa.types.is_floating(one.type) or pa.types.is_integer(one.type) or pa.types.is_boolean(one.type)):
        raise UserError(f"{path}: found {name} as {column.type}; read are nested numbers, not PNG or blosc2 bytes")
    return one.to_numpy(zero_copy_only=False).reshape(shape)
