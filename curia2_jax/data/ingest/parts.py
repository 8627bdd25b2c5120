"""The finished parts of a corpus in the making, and the step that turns them into the corpus.

While an ingest runs, `CORPUS/work/` holds for each shard its records, its index rows and a report. The report is
written last and every file is renamed into place whole, so that a part either exists or does not, whenever the
process dies. `publish` drops series that occur twice, moves the shards to their final names and writes the contract
last. It can be killed and called again at any point.
"""

import collections.abc
import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curia2_jax.data.corpus import index, records, shards, spans
from curia2_jax.data.corpus.corpus import CONTRACT, VERSION

WORK = "work"
# The columns that say something about the pixels; keys and places in files differ between equal corpora.
_CANONICAL = [
    n for n in index.SCHEMA.names if n not in ("study", "series", "patient", "shard", "row", "offset", "span", "label")
]


@dataclasses.dataclass
class Series:
    """What a part says of one series: its key, the hash of its stored voxels, a digest of records and index rows, the
    number of records, whether a label map belongs to it, where it came from (a local path, kept out of the index), and
    whether it broke off half-way, so that its records are left out."""

    key: str
    voxels: str
    digest: str
    records: int
    labelled: bool
    source: str
    broken: bool = False


class Part:
    """Writer of one part, with records of one of records.CODECS. `begin_series`, `add` each slice, `end_series`; then
    `finish`. Nothing is visible before."""

    def __init__(self, work: pathlib.Path, number: int, codec: str = "htj2k"):
        self._codec = codec
        self._stem = work / f"shard-{number:05d}"
        self._temporary = work / f"shard-{number:05d}.{os.getpid()}.tmp"
        self._writer = shards.writer(self._temporary)
        self._rows: list[dict] = []
        self._series: list[Series] = []
        self.bytes = 0

    def begin_series(self) -> None:
        self._voxels, self._digest, self._first = hashlib.sha256(), hashlib.sha256(), len(self._rows)

    def add(self, pixels: np.ndarray, row: dict) -> None:
        """Append one slice int16 (height, width); `row` has the index columns but shard, row, height and width."""
        record = records.encode(pixels, self._codec)
        row = row | {"height": pixels.shape[0], "width": pixels.shape[1], "shard": 0, "row": len(self._rows)}
        self._writer.write(shards.to_example(record))
        digest = hashlib.sha256(record).digest()  # one scan writes equal slices as equal records
        meaning = np.array([row["slope"], row["intercept"]], "<f4").tobytes() + row["modality"].encode()
        self._voxels.update(digest + meaning)
        self._digest.update(canonical(digest, row))
        self._rows.append(row)
        self.bytes += len(record)

    @property
    def added(self) -> int:
        """Slices added since `begin_series`."""
        return len(self._rows) - self._first

    def end_series(self, key: str, labelled: bool, source: str, broken: bool = False) -> None:
        """Close the series of the slices added since `begin_series`; a `broken` one will not be in the corpus."""
        voxels, digest = self._voxels.hexdigest(), self._digest.hexdigest()
        self._series.append(Series(key, voxels, digest, self.added, labelled, source, broken))

    def finish(self, report: dict) -> int:
        """Make the part visible and return its slices; `report` is any JSON that the end of the ingest wants to
        read."""
        _written(self._writer.close)
        _replace(self._temporary, self._stem.with_suffix(".array_record"))
        offsets, lengths = spans.locate(self._stem.with_suffix(".array_record"), len(self._rows))
        for row, offset, span in zip(self._rows, offsets.tolist(), lengths.tolist(), strict=True):
            row |= {"offset": offset, "span": span}
        pq.write_table(index.table(self._rows), self._temporary, compression="zstd")
        _replace(self._temporary, self._stem.with_suffix(".parquet"))
        report = report | {"series": [dataclasses.asdict(s) for s in self._series], "bytes": self.bytes}
        self._temporary.write_text(json.dumps(report))
        _replace(self._temporary, self._stem.with_suffix(".json"))
        return len(self._rows)

    def abandon(self) -> None:
        """Remove what is not finished."""
        with contextlib.suppress(RuntimeError):
            self._writer.close()
        self._temporary.unlink(missing_ok=True)


class CannotWrite(OSError):
    """A shard cannot be written, mostly because the disk is full."""


def _written(write: collections.abc.Callable, *values: bytes) -> None:
    try:
        write(*values)
    except RuntimeError as error:  # what ArrayRecord makes of every fault of the disk
        known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        code = next((code for code in known if os.strerror(code) in str(error)), errno.EIO)
        raise CannotWrite(code, os.strerror(code)) from None


def canonical(digest: bytes, row: dict) -> bytes:
    """What two equal corpora share of a slice: its record, by its SHA-256, and the index columns that describe it."""
    values = [row[name] if name in index.TEXT else np.float32(row[name]).item() for name in _CANONICAL]
    return digest + json.dumps(values).encode()


def content_hash(digests: collections.abc.Iterable[str]) -> str:
    """Hash of a corpus from the digests of its series, in any order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def is_finished(work: pathlib.Path, number: int) -> bool:
    """Whether the part exists."""
    return (work / f"shard-{number:05d}.json").exists()


def report(work: pathlib.Path, number: int) -> dict:
    """Report of a finished part."""
    return json.loads((work / f"shard-{number:05d}.json").read_text())


def duplicates(found: collections.abc.Iterable[Series]) -> dict[str, str]:
    """Key of each series to drop -> key of the equal one that stays: a labelled one, else the first by source."""
    keep: dict[bytes, tuple[bool, str, str]] = {}
    lost = []
    for series in found:
        voxels, mine = bytes.fromhex(series.voxels), (not series.labelled, series.source, series.key)
        first = keep.setdefault(voxels, mine)
        if first is not mine:
            keep[voxels], (*_, loser) = sorted((first, mine))
            lost.append((loser, voxels))
    return {key: keep[voxels][-1] for key, voxels in lost}


def publish(folder: pathlib.Path, count: int, drop: collections.abc.Container[str], contract: dict) -> dict:
    """Corpus in `folder` from its parts 0 to count - 1 without the series in `drop`; returns the contract as written.

    `contract` holds the options; counts and the hash are added here.
    """
    work = folder / WORK
    records_of, keep_of, digests = [], [], []  # one number a series: there are millions
    for number in range(count):
        series = [Series(**one) for one in report(work, number)["series"]]
        keep = [one.key not in drop and not one.broken for one in series]
        records_of.append(np.array([one.records for one in series], np.int64))
        keep_of.append(np.array(keep, bool))
        digests += [one.digest for one in itertools.compress(series, keep)]
    lengths_of = [int(some[keep].sum()) for some, keep in zip(records_of, keep_of, strict=True)]
    used = [n for n in range(count) if lengths_of[n]]
    lengths = [lengths_of[n] for n in used]
    for shard, number in enumerate(used):
        target, source = folder / shards.file_name(shard, len(used)), work / f"shard-{number:05d}.array_record"
        if not target.exists():
            if keep_of[number].all():
                _replace(source, target)
            else:
                _copy(source, target, np.repeat(keep_of[number], records_of[number]))
        source.unlink(missing_ok=True)

    def tables() -> collections.abc.Iterator[pa.Table]:
        for shard, number in enumerate(used):
            table = pq.read_table(work / f"shard-{number:05d}.parquet", schema=index.SCHEMA)
            new = {}
            if not keep_of[number].all():
                table = table.filter(pa.array(np.repeat(keep_of[number], records_of[number])))
                new["offset"], new["span"] = spans.locate(folder / shards.file_name(shard, len(used)), len(table))
            new |= {"shard": np.full(len(table), shard, np.int32), "row": np.arange(len(table), dtype=np.int32)}
            for name, values in new.items():
                table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
            yield table

    counts = index.write(folder, tables(), sum(lengths))
    total = sum((folder / shards.file_name(i, len(used))).stat().st_size for i in range(len(used)))
    shards.write_metadata(folder, lengths, total)
    contract = {
        "version": VERSION,
        **contract,
        "slices": sum(lengths),
        "series": len(digests),
        **counts,
        "bytes": total,
        "shard_lengths": lengths,
        "content_hash": content_hash(digests),
    }
    options = {k: v for k, v in contract.items() if k not in ("version", "code_version")}
    contract["hash"] = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    temporary = folder / f"{CONTRACT}.tmp"
    temporary.write_text(json.dumps(contract, indent=2))
    _replace(temporary, folder / CONTRACT)
    shutil.rmtree(work)
    return contract


def _copy(source: pathlib.Path, target: pathlib.Path, keep: np.ndarray) -> None:
    """Shard `target` with those records of `source` that are kept, bytes unchanged."""
    reader, temporary = shards.ShardReader([source]), target.with_name(target.name + ".tmp")
    writer = shards.writer(temporary)
    for row in np.flatnonzero(keep):
        _written(writer.write, shards.to_example(bytes(reader.read(0, int(row)))))
    _written(writer.close)
    _replace(temporary, target)


def _replace(source: pathlib.Path, target: pathlib.Path) -> None:
    """Rename after the bytes have reached the disk."""
    with open(source, "rb") as file:
        os.fsync(file.fileno())
    os.replace(source, target)
