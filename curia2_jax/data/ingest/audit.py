"""Questions to a finished corpus: is every record as it was written, and what is in it."""

import collections
import hashlib
import pathlib
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curia2_jax.data.corpus import index, layout, records, shards, spans
from curia2_jax.data.corpus.corpus import BLOCK, Corpus
from curia2_jax.data.ingest import parts
from curia2_jax.data.ingest.plan import Progress
from curia2_jax.data.ingest.runners import Pool
from curia2_jax.errors import UserError

_SIDES = ("height", "width")


def verify(folder: pathlib.Path, workers: int, progress: Progress) -> list[str]:
    """Read, decode and check every record, the index, its memory-mapped columns and the content hash.

    Returns what is wrong, one line each; an empty list means that every byte is as ingest wrote it.

    Raises:
      UserError: the folder is not a corpus.
    """
    (contract,) = Corpus(folder).contracts
    lengths = contract["shard_lengths"]
    problems, done = _index_problems(folder, contract), 0
    digests: list[str] = []
    with Pool(workers) as pool:
        for shard, (found, mine) in pool.each(
            _check_shard, [(str(folder), n, len(lengths)) for n in range(len(lengths))]
        ):
            problems += found
            digests += mine.values()
            done += 1
            progress("checking shards", done, len(lengths), done and sum(lengths[: shard + 1]))
    if not problems and parts.content_hash(digests) != contract["content_hash"]:
        problems.append(f"content hash {parts.content_hash(digests)}, the contract says {contract['content_hash']}")
    return problems


def _index_problems(folder: pathlib.Path, contract: index.Contract) -> list[str]:
    table = pq.ParquetFile(folder / layout.INDEX)
    if table.metadata.num_rows != contract["slices"] or sum(contract["shard_lengths"]) != contract["slices"]:
        return [f"{layout.INDEX}: {table.metadata.num_rows} rows, the contract says {contract['slices']} slices"]
    problems, start, corpus, largest = [], 0, Corpus(folder), [0, 0]
    for batch in table.iter_batches():
        rows = np.arange(start, start + batch.num_rows)
        for name in index.SCHEMA.names:
            column = batch.column(name)
            values = np.array(column.to_pylist(), str) if name in index.TEXT else column.to_numpy()
            if not np.array_equal(values, corpus.take(name, rows), equal_nan=name in index.NUMBERS):
                file = layout.ROWS if name in index.PACKED else name
                problems.append(
                    f"{layout.column(file)}: {name} differs from {layout.INDEX} in rows {start} to {rows[-1]}"
                )
        if not np.array_equal(corpus.take("modality", rows) == "CT", corpus.rows(rows)["is_ct"]):
            problems.append(f"{layout.column(layout.ROWS)}: is_ct is not the modality in rows {start} to {rows[-1]}")
        largest = [max(old, pc.max(batch.column(side)).as_py()) for old, side in zip(largest, _SIDES, strict=True)]
        start += batch.num_rows
    if largest != contract["largest"]:
        problems.append(f"{layout.INDEX}: slices of up to {largest} pixels, the contract says {contract['largest']}")
    return problems


def series_digests(folder: pathlib.Path) -> dict[str, str]:
    """Digest of each series of a corpus: as ingest noted it, else from its records."""
    known = folder / layout.LOCAL / layout.SERIES
    if known.exists():
        return dict(zip(*pq.read_table(known, columns=["series", "digest"]).to_pydict().values(), strict=True))
    count = len(Corpus(folder).contracts[0]["shard_lengths"])
    out: dict[str, str] = {}
    for shard in range(count):
        out |= _check_shard(str(folder), shard, count)[1]
    return out


def _check_shard(folder: str, shard: int, count: int) -> tuple[list[str], dict[str, str]]:
    """Problems of a shard and the digests of its series."""
    path = pathlib.Path(folder, layout.shard(shard, count))
    rows = pq.read_table(pathlib.Path(folder, layout.INDEX), filters=[("shard", "=", shard)]).to_pylist()
    try:
        found = shards.count(path)
    except records.CorruptRecord as error:
        return [str(error)], {}
    if found != len(rows):
        return [f"{path.name}: {found} records, the index has {len(rows)}"], {}
    reader, direct = shards.ShardReader([path]), spans.SpanReader([path])
    problems: list[str] = []
    digests: dict[str, Any] = {}  # series -> a running SHA-256
    for number, row in enumerate(rows):
        try:
            record = reader.read(0, number)
            if direct.read(0, row["offset"], row["span"]) != record:
                raise records.CorruptRecord("not at the place that the index gives")
            pixels = records.decode(record)
            if pixels.shape != (row["height"], row["width"]):
                problems.append(f"{path.name}, record {number}: {pixels.shape}, the index says otherwise")
            digests.setdefault(row["series"], hashlib.sha256()).update(
                parts.canonical(hashlib.sha256(record).digest(), row)
            )
        except (records.CorruptRecord, UserError) as error:
            problems.append(f"{path.name}, record {number}: {error}")
    return problems, {series: digest.hexdigest() for series, digest in digests.items()}


def statistics(folder: pathlib.Path) -> dict[str, object]:
    """What is in a corpus: counts, and quantiles (0, 25, 50, 75, 100 %) of what varies.

    Memory: a column of four bytes a slice at a time.

    Raises:
      UserError: the folder is not a corpus.
    """
    corpus = Corpus(folder)
    (contract,) = corpus.contracts
    out: dict[str, object] = {
        "slices": contract["slices"],
        "series": contract["series"],
        "studies": contract["studies"],
        "patients": contract["patients"],
    }
    out |= {f"slices of {name}": n for name, n in contract["slices_by_modality"].items()}
    out |= {f"{name} slices": n for name, n in contract["slices_by_plane"].items()}
    out["labelled slices"] = contract["slices"] - corpus.counts("label").get("", 0)
    out["bytes"] = contract["bytes"]
    sizes: collections.Counter[tuple[int, int]] = collections.Counter()
    for start in range(0, len(corpus), BLOCK):
        height, width = (corpus.column(side)[start : start + BLOCK].astype(np.int64) for side in _SIDES)
        pairs, count = np.unique(height << 32 | width, return_counts=True)
        sizes.update(
            {(pair >> 32, pair & 0xFFFFFFFF): n for pair, n in zip(pairs.tolist(), count.tolist(), strict=True)}
        )
    out["bits per pixel"] = round(8 * contract["bytes"] / sum(h * w * n for (h, w), n in sizes.items()), 2)
    out["slices a series"] = _quantiles(corpus.series()[1])
    out["slices a patient"] = _quantiles(np.array(list(corpus.counts("patient").values())))
    for name in ("height", "width", "spacing_y", "spacing_z", "obliquity", "foreground"):
        out[name] = _quantiles(corpus.column(name))
    out["commonest sizes"] = ", ".join(f"{h} x {w}: {n}" for (h, w), n in sizes.most_common(5))
    return out


def _quantiles(values: np.ndarray) -> str:
    """Five quantiles as text; cast to float32 once, because columns are large."""
    copy = np.array(values, np.float32)
    return " ".join(f"{q:.4g}" for q in np.nanquantile(copy, [0, 0.25, 0.5, 0.75, 1], overwrite_input=True))
