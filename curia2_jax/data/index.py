"""The index of a corpus: one row a slice, as Parquet for people and as memory-mapped columns for loaders.

`index.parquet` can be queried with any tool. `columns/NAME.npy` holds the same numbers, uncompressed, so that every
process of a host shares one copy in the page cache; text columns are int32 codes into
`columns/NAME.vocabulary.parquet`.
"""

import collections.abc
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FILE = "index.parquet"
COLUMNS = "columns"

_TEXT = pa.dictionary(pa.int32(), pa.string())
# Keys are salted hashes. Positions count slices along the normal of the plane; distances are in millimetres; anatomy_*
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
        ("offset", pa.int64()),  # of the record in its shard, and the bytes it spans there: see curia2_jax.data.spans
        ("span", pa.int32()),
        ("label", _TEXT),  # "" or a file relative to the corpus
    ]
)
TEXT = tuple(field.name for field in SCHEMA if field.type == _TEXT)
NUMBERS = tuple(field.name for field in SCHEMA if field.type != _TEXT)


def table(rows: list[dict]) -> pa.Table:
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


def write(folder: pathlib.Path, parts: collections.abc.Iterable[pa.Table], total: int) -> None:
    """Index of `total` rows from the tables of the shards, in order, one in memory at a time."""
    columns = folder / COLUMNS
    columns.mkdir(exist_ok=True)
    maps = {
        name: np.lib.format.open_memmap(
            columns / f"{name}.npy", "w+", SCHEMA.field(name).type.to_pandas_dtype(), (total,)
        )
        if name in NUMBERS
        else np.lib.format.open_memmap(columns / f"{name}.npy", "w+", np.int32, (total,))
        for name in SCHEMA.names
    }
    vocabularies = {name: _Vocabulary() for name in TEXT}
    start = 0
    with pq.ParquetWriter(folder / FILE, SCHEMA, compression="zstd") as parquet:
        for part in parts:
            parquet.write_table(part)
            stop = start + part.num_rows
            for name in SCHEMA.names:
                column = part.column(name)
                values = vocabularies[name].encode(column) if name in TEXT else column.to_numpy()
                maps[name][start:stop] = values
            start = stop
    for name in SCHEMA.names:
        maps[name].flush()
    for name, vocabulary in vocabularies.items():
        pq.write_table(
            pa.table({name: pa.array(list(vocabulary.code), pa.string())}), columns / f"{name}.vocabulary.parquet"
        )
