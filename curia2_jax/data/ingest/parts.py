"""The parts of a corpus in the making.

While an ingest runs, `CORPUS/work/` holds for each part its records, its index rows and a report. The report is written
last and every file appears whole, so that a part either exists or does not, whenever the process dies.
"""

import collections.abc
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curia2_jax import files
from curia2_jax.data.corpus import index, layout, records, shards, spans
from curia2_jax.data.ingest.tables import shown
from curia2_jax.data.readers.archive import Refused

# The columns that say something about the pixels; keys and places in files differ between equal corpora.
_CANONICAL = [
    n for n in index.SCHEMA.names if n not in ("study", "series", "patient", "shard", "row", "offset", "span", "label")
]


@dataclasses.dataclass
class Series:
    """What a part says of one series: its key, the hash of its stored voxels, a digest of records and index rows, the
    number of records, whether a label map belongs to it, where it came from (a local path, kept out of the index),
    whether it broke off half-way, so that its records are left out, and the files and bytes that it was read from."""

    key: str
    voxels: str
    digest: str
    records: int
    labelled: bool
    source: str
    broken: bool = False
    files: int = 1
    size: int = 0
    example: str = ""

    def refused(self, reason: str, detail: str) -> Refused:
        """This series as one that is not kept."""
        return Refused(self.source, reason, detail, self.files, self.size, self.example)


SERIES = pa.schema(
    [
        *((name, pa.string()) for name in ("series", "voxels", "digest", "source")),
        *((name, pa.int64()) for name in ("records", "files", "size")),
        ("labelled", pa.bool_()),
    ]
)


def series_table(found: collections.abc.Iterable[Series]) -> pa.Table:
    """What the local table of a corpus keeps of its series."""
    rows = [
        {name: getattr(one, name) for name in SERIES.names if name not in ("series", "source")}
        | {"series": one.key, "source": shown(one.source)}
        for one in found
    ]
    return pa.Table.from_pylist(rows, schema=SERIES)


class Part:
    """Writer of one part, with records of one of records.CODECS, as a context manager: `begin_series`, `add` each
    slice, `end_series`; then `finish`. The part does not exist before."""

    def __init__(self, work: pathlib.Path, number: int, codec: str = "htj2k"):
        self._work, self._number, self._codec = work, number, codec
        self._records = contextlib.ExitStack()
        self._rows: list[index.Row] = []
        self._series: list[Series] = []
        self.bytes = 0

    def __enter__(self) -> "Part":
        path = self._work / layout.part_records(self._number)
        self._writer = shards.writer(self._records.enter_context(files.whole_file(path)))
        return self

    def __exit__(self, *error) -> None:
        if self._writer.is_open():
            with contextlib.suppress(RuntimeError):
                self._writer.close()
        self._records.__exit__(*error)

    def begin_series(self) -> None:
        self._voxels, self._digest, self._first = hashlib.sha256(), hashlib.sha256(), len(self._rows)

    def add(self, pixels: np.ndarray, row: dict[str, Any]) -> None:
        """Append one slice int16 (height, width); `row` has the index columns but shard, row, height and width."""
        record = records.encode(pixels, self._codec)
        size = {"height": pixels.shape[0], "width": pixels.shape[1]}
        row = row | size | {"shard": 0, "row": len(self._rows)}
        written(self._writer.write, shards.to_example(record))
        digest = hashlib.sha256(record).digest()  # one scan writes equal slices as equal records
        meaning = np.array([row["slope"], row["intercept"]], "<f4").tobytes() + row["modality"].encode()
        self._voxels.update(digest + meaning)
        self._digest.update(canonical(digest, row))
        self._rows.append(cast(index.Row, row))  # whole, but for its place in the file
        self.bytes += len(record)

    @property
    def added(self) -> int:
        """Slices added since `begin_series`."""
        return len(self._rows) - self._first

    def end_series(self, key: str, labelled: bool, source: str, broken: bool = False, **origin: Any) -> None:
        """Close the series of the slices added since `begin_series`; a `broken` one will not be in the corpus. `origin`
        are the last fields of Series."""
        voxels, digest = self._voxels.hexdigest(), self._digest.hexdigest()
        self._series.append(Series(key, voxels, digest, self.added, labelled, source, broken, **origin))

    def finish(self, report: dict) -> int:
        """Make the part visible and return its slices; `report` is any JSON that the end of the ingest wants to
        read."""
        written(self._writer.close)
        self._records.close()
        offsets, lengths = spans.locate(self._work / layout.part_records(self._number), len(self._rows))
        for row, offset, span in zip(self._rows, offsets.tolist(), lengths.tolist(), strict=True):
            row["offset"], row["span"] = offset, span
        with files.whole_file(self._work / layout.part_rows(self._number)) as path:
            pq.write_table(index.table(self._rows), path, compression="zstd")
        report = report | {"series": [dataclasses.asdict(s) for s in self._series], "bytes": self.bytes}
        files.write_text(self._work / layout.part_report(self._number), json.dumps(report))
        return len(self._rows)


class CannotWrite(OSError):
    """A shard cannot be written, mostly because the disk is full."""


def written(write: collections.abc.Callable, *values: bytes) -> None:
    """Calls a method of ArrayRecord's writer.

    Raises:
      CannotWrite: the disk is full or cannot be written.
    """
    try:
        write(*values)
    except RuntimeError as error:  # what ArrayRecord makes of every fault of the disk
        known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        code = next((code for code in known if os.strerror(code) in str(error)), errno.EIO)
        raise CannotWrite(code, os.strerror(code)) from None


def canonical(digest: bytes, row: collections.abc.Mapping[str, Any]) -> bytes:
    """What two equal corpora share of a slice: its record, by its SHA-256, and the index columns that describe it."""
    values = [row[name] if name in index.TEXT else np.float32(row[name]).item() for name in _CANONICAL]
    return digest + json.dumps(values).encode()


def content_hash(digests: collections.abc.Iterable[str]) -> str:
    """Hash of a corpus from the digests of its series, in any order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def is_finished(work: pathlib.Path, number: int) -> bool:
    """Whether the part exists."""
    return (work / layout.part_report(number)).exists()


def report(work: pathlib.Path, number: int) -> dict:
    """Report of a finished part."""
    return json.loads((work / layout.part_report(number)).read_text())
