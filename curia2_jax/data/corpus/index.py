"""The index of a corpus: one row a slice, as Parquet for people and memory-mapped for loaders.

`index.parquet` can be queried with any tool. Beside it lie the same values uncompressed, so that every process of a
host shares one copy in the page cache: `columns/rows.npy` has side by side what a loader asks of each slice, since a
random read costs a page of the disk, and `columns/NAME.npy` any other column. Text columns are int32 codes into the
Arrow file `columns/NAME.vocabulary.arrow`.
"""

import collections
import collections.abc
import pathlib
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curia2_jax.data.corpus import layout

_TEXT = pa.dictionary(pa.int32(), pa.string())
# Keys are salted hashes. Positions count slices along the normal of the plane; distances are in millimeters; anatomy_*
# are in pixels of the stored slice, pixel i covering [i, i + 1); stored * slope + intercept is HU or the scanner's
# unit.
SCHEMA = pa.schema(
    [
        ("study", _TEXT),
        ("series", _TEXT),
        ("patient", _TEXT),
        ("modality", _TEXT),  # CT, MR
        ("plane", _TEXT),  # axial, coronal, sagittal
        ("position", pa.float32()),
        ("position_mm", pa.float32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("spacing_y", pa.float32()),
        ("spacing_x", pa.float32()),
        ("spacing_z", pa.float32()),
        ("obliquity", pa.float32()),  # largest angle between an axis of the volume and one of the patient, degrees
        ("slope", pa.float32()),
        ("intercept", pa.float32()),
        ("foreground", pa.float32()),  # fraction of the slice
        ("anatomy_y", pa.float32()),
        ("anatomy_x", pa.float32()),
        ("anatomy_std_y", pa.float32()),
        ("anatomy_std_x", pa.float32()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("offset", pa.int64()),  # of the record in its shard, and the bytes it spans there: see spans.py
        ("span", pa.int32()),
        ("label", _TEXT),  # "" or a file relative to the corpus
    ]
)
TEXT = tuple(field.name for field in SCHEMA if field.type == _TEXT)
NUMBERS = tuple(field.name for field in SCHEMA if field.type != _TEXT)


class Row(TypedDict, total=False):
    """A row of the index; without its place while it is made."""

    study: str
    series: str
    patient: str
    modality: str
    plane: str
    position: float
    position_mm: float
    height: int
    width: int
    spacing_y: float
    spacing_x: float
    spacing_z: float
    obliquity: float
    slope: float
    intercept: float
    foreground: float
    anatomy_y: float
    anatomy_x: float
    anatomy_std_y: float
    anatomy_std_x: float
    shard: int
    row: int
    offset: int
    span: int
    label: str


class Counts(TypedDict):
    """What the contract says of the rows; `largest` are the largest height and the largest width."""

    studies: int
    patients: int
    slices_by_modality: dict[str, int]
    slices_by_plane: dict[str, int]
    largest: list[int]


class Contract(Counts):
    """What was done to every slice of a corpus, and counts. Nothing in it names a place or a person.

    `record` says how pixels are kept, `options` how they were made, `orientation` where rows and columns of a plane
    point; `hash` is of all but the versions, `content_hash` of records and rows. `revision` counts from 1 how often the
    corpus was changed after it was made, and `replaces` are the hashes that it had before.
    """

    version: int
    code_version: str
    record: dict
    orientation: dict[str, str]
    options: dict
    slices: int
    series: int
    bytes: int
    shard_lengths: list[int]
    content_hash: str
    hash: str
    revision: NotRequired[int]  # how often the corpus was changed; absent in the first one
    replaces: NotRequired[list[str]]  # hashes of what it was before


class Mixture(TypedDict):
    """The contracts of the corpora of a mixture, their weights, and what is said of all of them."""

    corpora: list[Contract]
    weights: list[float]
    largest: list[int]
    hash: str


def _dtype(name: str) -> np.dtype:
    """NumPy's type of a column of numbers. Arrow's own answer, `to_pandas_dtype`, needs pandas before Arrow 26."""
    return pa.array([], SCHEMA.field(name).type).to_numpy().dtype


PACKED = (
    *("offset", "shard", "span", "height", "width", "spacing_y", "spacing_x"),
    *("anatomy_y", "anatomy_x", "anatomy_std_y", "anatomy_std_x", "foreground"),
)
# One element of rows.npy, 56 bytes: columns as in SCHEMA, and whether the modality is CT.
ROW = np.dtype([(name, _dtype(name)) for name in PACKED] + [("is_ct", np.bool_)], align=True)


def table(rows: collections.abc.Sequence[Row]) -> pa.Table:
    """Arrow table of index rows, one dict a row with every column of SCHEMA."""
    return pa.Table.from_pylist(rows, schema=SCHEMA)


class _Vocabulary:
    """Codes of the distinct values of a text column, in order of first appearance."""

    def __init__(self):
        self.code: dict[str, int] = {}

    def encode(self, column: pa.ChunkedArray) -> np.ndarray:
        part = column.cast(pa.string()).combine_chunks().dictionary_encode()  # only values that rows have
        values = part.dictionary.to_pylist()
        known = np.array([self.code.setdefault(value, len(self.code)) for value in values], np.int32)
        return known[part.indices.to_numpy(zero_copy_only=False)]


def write(folder: pathlib.Path, parts: collections.abc.Iterable[pa.Table], total: int) -> Counts:
    """Index of `total` rows from the tables of the shards, in order, one in memory at a time."""
    (folder / layout.COLUMNS).mkdir(exist_ok=True)

    def create(name: str, dtype: np.typing.DTypeLike) -> np.memmap:
        return np.lib.format.open_memmap(folder / layout.column(name), "w+", dtype, (total,))

    rows = create(layout.ROWS, ROW)
    single = {
        name: create(name, np.int32 if name in TEXT else _dtype(name)) for name in SCHEMA.names if name not in PACKED
    }
    vocabularies = {name: _Vocabulary() for name in TEXT}
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in ("modality", "plane")}
    largest, start = np.zeros(2, np.int64), 0
    with pq.ParquetWriter(folder / layout.INDEX, SCHEMA, compression="zstd") as parquet:
        for part in parts:
            parquet.write_table(part)
            stop = start + part.num_rows
            for name in SCHEMA.names:
                column = part.column(name)
                values = vocabularies[name].encode(column) if name in TEXT else column.to_numpy()
                (rows[name] if name in PACKED else single[name])[start:stop] = values
            rows["is_ct"][start:stop] = pc.equal(part.column("modality").cast(pa.string()), "CT").to_numpy()
            largest = np.maximum(largest, [rows[side][start:stop].max(initial=0) for side in ("height", "width")])
            for name, count in counts.items():
                for item in pc.value_counts(part.column(name)).to_pylist():
                    count[item["values"]] += item["counts"]
            start = stop
    for array in (rows, *single.values()):
        array.flush()
    for name, vocabulary in vocabularies.items():
        write_vocabulary(folder, name, list(vocabulary.code))
    return {
        "studies": len(vocabularies["study"].code),
        "patients": len(vocabularies["patient"].code),
        "slices_by_modality": dict(counts["modality"]),
        "slices_by_plane": dict(counts["plane"]),
        "largest": largest.tolist(),
    }


def write_vocabulary(folder: pathlib.Path, name: str, strings: list[str]) -> None:
    """Arrow file of the strings that the codes of a text column stand for."""
    batch = pa.record_batch([pa.array(strings, pa.string())], [name])
    with pa.ipc.new_file(str(folder / layout.vocabulary(name)), batch.schema) as file:
        file.write_batch(batch)


def read_vocabulary(folder: pathlib.Path, name: str) -> pa.StringArray:
    """The strings that the codes of a text column stand for, memory-mapped.

    Raises:
      OSError: the file cannot be read.
    """
    with pa.ipc.open_file(pa.memory_map(str(folder / layout.vocabulary(name)))) as file:
        return file.get_batch(0).column(0)
