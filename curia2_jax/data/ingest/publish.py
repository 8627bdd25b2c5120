"""The step that turns the finished parts into the corpus.

Series that occur twice are dropped, the shards get their final names, and the contract is written last. It can be
killed and called again at any point.
"""

import collections.abc
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curia2_jax import files
from curia2_jax.data.corpus import index, layout, shards, spans
from curia2_jax.data.corpus.corpus import VERSION
from curia2_jax.data.ingest.parts import Series, content_hash, report, written


def duplicates(found: collections.abc.Iterable[Series]) -> dict[str, str]:
    """Key of each series to drop -> key of the equal one that stays: a labelled one, else the first by source."""
    keep: dict[bytes, tuple[bool, str, str]] = {}
    lost = []
    for series in found:
        voxels, this = bytes.fromhex(series.voxels), (not series.labelled, series.source, series.key)
        first = keep.setdefault(voxels, this)
        if first is not this:
            keep[voxels], (*_, loser) = sorted((first, this))
            lost.append((loser, voxels))
    return {key: keep[voxels][-1] for key, voxels in lost}


def publish(folder: pathlib.Path, count: int, drop: collections.abc.Container[str], contract: dict) -> index.Contract:
    """Corpus in `folder` from its parts 0 to count - 1 without the series in `drop`; returns the contract as written.

    `contract` holds the options; counts and the hash are added here.
    """
    work = folder / layout.WORK
    records_of, stays_of, digests = [], [], []  # one number a series: there are millions
    for number in range(count):
        series = [Series(**one) for one in report(work, number)["series"]]
        stays = [one.key not in drop and not one.broken for one in series]
        records_of.append(np.array([one.records for one in series], np.int64))
        stays_of.append(np.array(stays, bool))
        digests += [one.digest for one in itertools.compress(series, stays)]

    def keep(number: int) -> np.ndarray:
        return np.repeat(stays_of[number], records_of[number])

    lengths_of = [int(records[stays].sum()) for records, stays in zip(records_of, stays_of, strict=True)]
    used = [number for number in range(count) if lengths_of[number]]
    lengths = [lengths_of[number] for number in used]
    names = [layout.shard(shard, len(used)) for shard in range(len(used))]
    for name, number in zip(names, used, strict=True):
        _publish_records(work / layout.part_records(number), folder / name, keep(number))
    tables = (
        _index_rows(work / layout.part_rows(number), folder / names[shard], shard, keep(number))
        for shard, number in enumerate(used)
    )
    counts = index.write(folder, tables, sum(lengths))
    total = sum((folder / name).stat().st_size for name in names)
    shards.write_metadata(folder, lengths, total)
    made = {
        "version": VERSION,
        **contract,
        "slices": sum(lengths),
        "series": len(digests),
        **counts,
        "bytes": total,
        "shard_lengths": lengths,
        "content_hash": content_hash(digests),
    }
    whole = sealed(made)
    files.write_text(folder / layout.CONTRACT, json.dumps(whole, indent=2))
    shutil.rmtree(work)
    return whole


def sealed(contract: Mapping[str, Any]) -> index.Contract:
    """The contract with the hash of what it says, but for the versions."""
    hashed = {k: v for k, v in contract.items() if k not in ("version", "code_version", "hash")}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
    return cast(index.Contract, {**contract, "hash": digest})


def _publish_records(source: pathlib.Path, target: pathlib.Path, keep: np.ndarray) -> None:
    """Makes the shard `target` of the records of a part that are kept, bytes unchanged, unless it is there."""
    if not target.exists():
        if keep.all():
            os.replace(source, target)
        else:
            copy_records(source, target, keep)
    source.unlink(missing_ok=True)


def copy_records(source: pathlib.Path, target: pathlib.Path, keep: np.ndarray) -> None:
    """Makes the shard `target` of the records of `source` that are kept, bool (n,), bytes unchanged."""
    reader = shards.ShardReader([source])
    with files.whole_file(target) as partial:
        writer = shards.writer(partial)
        for row in np.flatnonzero(keep):
            written(writer.write, shards.to_example(bytes(reader.read(0, int(row)))))
        written(writer.close)


def _index_rows(source: pathlib.Path, shard_file: pathlib.Path, shard: int, keep: np.ndarray) -> pa.Table:
    """Index rows of a part as those of a shard."""
    return as_shard(pq.read_table(source, schema=index.SCHEMA), shard_file, shard, keep)


def as_shard(table: pa.Table, shard_file: pathlib.Path, shard: int, keep: np.ndarray) -> pa.Table:
    """Index rows (n,) as those of shard number `shard`, whose records are those that are kept, bool (n,)."""
    new = {}
    if not keep.all():
        table = table.filter(pa.array(keep))
        new["offset"], new["span"] = spans.locate(shard_file, len(table))
    new |= {"shard": np.full(len(table), shard, np.int32), "row": np.arange(len(table), dtype=np.int32)}
    for name, values in new.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    return table
