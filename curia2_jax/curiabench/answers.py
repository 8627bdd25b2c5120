"""What every model and head answered on the test samples of a task, in memory and as predictions.parquet.

All scores, intervals, tables and pages are computed from this and from nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from curia2_jax import files
from curia2_jax.errors import UserError

FILE = "predictions.parquet"
ASIDE = "@"  # in the name of a head that is not in the tables: linear@5%, attentive@slices
COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("task", pa.string()),
        ("head", pa.string()),
        ("seed", pa.int32()),
        ("sample", pa.string()),
        ("patient", pa.string()),
        ("slice", pa.string()),
        ("target", pa.float64()),
        ("probabilities", pa.list_(pa.float64())),
    ]
)


class Answers(NamedTuple):
    """One task with n test samples. `outputs`: (n, K) probabilities or (n,) values of every (row, head), one a seed.

    `targets`: (n,) columns of the probabilities, or values; (n, K) float64 of 0, 1 and NaN in tasks of several labels.
    `patients`: keys that mean the same in every task, (n, 2) where samples are pairs of volumes; `slices`: hashes of
    images. `classes`: names of the K classes, none in kinds without classes or label maps. `aside`: as outputs, of
    heads that are not in the tables.
    """

    task: str
    kind: str
    classes: list[str]
    samples: np.ndarray
    patients: np.ndarray
    slices: np.ndarray
    targets: np.ndarray
    outputs: dict[tuple[str, str], list[np.ndarray]]
    aside: Mapping[tuple[str, str], list[np.ndarray]] = {}

    @property
    def unit(self) -> str:
        """What intervals go over: "patient", or "slice" where there is one patient only."""
        return "patient" if len(np.unique(self.patients)) > 1 else "slice"

    @property
    def units(self) -> np.ndarray:
        """(n,) the patient of each sample, or its slice."""
        return self.patients if self.unit == "patient" else self.slices


def write(path: Path, found: Sequence[Answers]) -> None:
    """predictions.parquet: a row a model, head, seed and sample; kinds and classes of the tasks are its metadata."""
    tables = [
        _table(one, *key, seed, outputs)
        for one in found
        for key, seeds in (*one.outputs.items(), *one.aside.items())
        for seed, outputs in enumerate(seeds)
    ]
    about = {one.task: {"kind": one.kind, "classes": one.classes} for one in found}
    table = pa.concat_tables(tables).replace_schema_metadata({"tasks": json.dumps(about)})
    with files.whole_file(path) as partial:
        parquet.write_table(table, partial, compression="zstd")


def _table(one: Answers, row: str, head: str, seed: int, outputs: np.ndarray) -> pa.Table:
    count = len(one.samples)
    outputs = np.asarray(outputs, np.float64).reshape(count, -1)
    columns = {
        "model": pa.array([row] * count),
        "task": pa.array([one.task] * count),
        "head": pa.array([head] * count),
        "seed": pa.array(np.full(count, seed, np.int32)),
        "sample": pa.array(one.samples.tolist()),
        "patient": pa.array(one.patients.tolist()),  # a list where samples are pairs
        "slice": pa.array(one.slices.tolist()),
        "target": _listed(one.targets) if one.targets.ndim == 2 else pa.array(one.targets.astype(np.float64)),
        "probabilities": _listed(outputs),
    }
    return pa.table(columns, _columns(columns["target"].type, columns["patient"].type))


def _columns(target: pa.DataType, patient: pa.DataType) -> pa.Schema:
    """`COLUMNS`, whose target is a list in tasks of several labels, and whose patient where samples are pairs."""
    found = COLUMNS.set(COLUMNS.get_field_index("target"), pa.field("target", target))
    return found.set(found.get_field_index("patient"), pa.field("patient", patient))


def _listed(values: np.ndarray) -> pa.ListArray:
    """(n, K) float64 as a column."""
    offsets = pa.array(np.arange(len(values) + 1) * values.shape[1], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))


def read(report: Path) -> list[Answers]:
    """predictions.parquet of the folder of a report.

    Raises:
      UserError: the file is not there, or is no such table.
    """
    path = Path(report) / FILE
    try:
        table = parquet.read_table(path)
        about = json.loads(table.schema.metadata[b"tasks"])
        target, patient = (table.schema.field(name).type for name in ("target", "patient"))
        target = target if pa.types.is_list(target) else pa.float64()
        patient = patient if pa.types.is_list(patient) else pa.string()
        table = table.cast(_columns(target, patient).with_metadata(table.schema.metadata))
    except FileNotFoundError:
        raise UserError(f"{path}: not there; write the folder of a report by launch/evaluate.py") from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{path}: no predictions ({str(error).splitlines()[0]}); score the model anew") from None
    return [_answers(table.filter(compute.field("task") == name), name, **facts) for name, facts in about.items()]


def _answers(table: pa.Table, task: str, kind: str, classes: list[str]) -> Answers:
    """The answers of one task. Samples of every model come in one order: that of the file."""
    keys = list(zip(*(table[name].to_pylist() for name in ("model", "head", "seed")), strict=True))
    starts = [0] + [i for i in range(1, len(keys)) if keys[i] != keys[i - 1]]
    outputs: dict[tuple[str, str], list[np.ndarray]] = {}
    for start, stop in zip(starts, [*starts[1:], len(keys)], strict=True):
        part = table["probabilities"].slice(start, stop - start).combine_chunks()
        values = part.flatten().to_numpy().reshape(stop - start, -1)
        outputs.setdefault(keys[start][:2], []).append(values if classes or values.shape[1] > 1 else values[:, 0])
    first = table.slice(0, [*starts, len(keys)][1])
    samples, patients, slices = (np.array(first[name].to_pylist(), np.str_) for name in ("sample", "patient", "slice"))
    if pa.types.is_list(first["target"].type):
        targets = first["target"].combine_chunks().flatten().to_numpy().reshape(len(samples), -1)
    else:
        targets = first["target"].to_numpy()
        targets = targets.astype(np.int64) if classes else targets
    aside = {key: outputs.pop(key) for key in list(outputs) if ASIDE in key[1]}
    return Answers(task, kind, classes, samples, patients, slices, targets, outputs, aside)
