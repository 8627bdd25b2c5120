"""Starts the loader on a made-up index of any size and tells what that costs; records are not read. Run by hand:

    python -m tests.data.simulate_scale FOLDER --slices 400_000_000

takes 60 bytes of disk a slice. FOLDER is used again when it is there.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import pathlib
import time

import numpy as np
import pyarrow as pa

from curia2_jax.data.corpus import index, layout
from curia2_jax.data.corpus.corpus import VERSION, Corpus
from curia2_jax.data.crops.batches import batches
from tests.data.crops.test_batches import CROPS, MASKS, config

SHARD = 16_384  # records
BLOCK = 256 * SHARD  # slices written at once
BATCH = 256


def make(folder: pathlib.Path, slices: int) -> None:
    """Every file of a corpus that the loader opens at its start, with series of 60 to 239 slices."""
    columns = folder / layout.COLUMNS
    columns.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = np.zeros(BLOCK, index.ROW)
    for name in ("spacing_y", "spacing_x", "foreground"):
        rows[name] = rng.uniform(0.4, 0.9, BLOCK)
    rows["span"] = 150_000
    rows["offset"] = np.arange(BLOCK) % SHARD * 150_000
    dtypes = {layout.ROWS: index.ROW} | dict.fromkeys(("series", "patient", "modality"), np.dtype(np.int32))
    files = {name: open(columns / f"{name}.npy", "wb") for name in dtypes}  # noqa: SIM115
    for name, file in files.items():
        header = {"descr": np.lib.format.dtype_to_descr(dtypes[name]), "fortran_order": False, "shape": (slices,)}
        np.lib.format.write_array_header_2_0(file, header)
    series, rest = 0, 0  # the last series of a block goes on in the next
    for start in range(0, slices, BLOCK):
        count = min(BLOCK, slices - start)
        lengths = np.concatenate([[rest], rng.integers(60, 240, BLOCK // 60)])
        codes = np.repeat(np.arange(series, series + len(lengths), dtype=np.int32), lengths)
        series = int(codes[count - 1])
        rest = int((codes == series).sum() - (codes[:count] == series).sum())
        codes = codes[:count]
        rows["shard"] = (start + np.arange(BLOCK)) // SHARD
        rows["height"][:count] = rows["width"][:count] = 256 + codes % 5 * 64
        rows["is_ct"][:count] = codes % 2 == 0
        for name in ("anatomy_y", "anatomy_x"):
            rows[name] = rows["height"] / 2
            rows[name.replace("_", "_std_")] = rows["height"] / 6
        values = {layout.ROWS: rows[:count], "series": codes, "patient": codes // 2, "modality": codes % 2}
        for name, file in files.items():
            file.write(np.ascontiguousarray(values[name]).data)
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())
        file.close()
    words = [f"{n * 0x9E3779B97F4A7C15 & (1 << 64) - 1:032x}" for n in range(series + 1)]
    for name, strings in (("series", words), ("patient", words[: series // 2 + 1]), ("modality", ["CT", "MR"])):
        index.write_vocabulary(folder, name, strings)
    lengths = [min(SHARD, slices - start) for start in range(0, slices, SHARD)]
    contract = {"version": VERSION, "slices": slices, "shard_lengths": lengths, "largest": [512, 512], "hash": ""}
    (folder / layout.CONTRACT).write_text(json.dumps(contract))


def forget(folder: pathlib.Path) -> None:
    """Take the index out of the page cache."""
    for path in (folder / layout.COLUMNS).iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def own_memory() -> float:
    """MiB of this process that are not in the page cache."""
    (line,) = (s for s in pathlib.Path("/proc/self/status").read_text().splitlines() if s.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def measure(folder: pathlib.Path, threads: int) -> None:
    Corpus.read = lambda self, i, out, reduce: out  # no records
    base = own_memory()

    def tell(what: str, since: float) -> None:
        print(f"{what:<58} {time.perf_counter() - since:9.4f} s {own_memory() - base:8.0f} MiB", flush=True)

    data = config(folder, global_batch=BATCH, group_size=32, canvas=512, num_threads=threads, prefetch=threads)
    narrow = dataclasses.replace(data, held_out=0.01, where="modality=CT", max_slices_per_series=64)
    for title, some in (("all slices", data), ("where, held out, cap", narrow)):
        forget(folder)
        start = time.perf_counter()
        corpus = Corpus(folder)
        tell(f"{title}: open", start)
        start = time.perf_counter()
        stream = batches(some, CROPS, MASKS, 4, seed=0, corpus=corpus)
        tell(f"{title}: sampler and start", start)
        with stream:
            next(stream)
            tell(f"{title}: first batch of {BATCH}, from the start", start)
            start = time.perf_counter()
            for _ in range(20):
                next(stream)
            tell(f"{title}: 20 more batches, {threads} threads", start)
    forget(folder)
    corpus = Corpus(folder)
    sampler, rng = corpus.sampler(), np.random.default_rng(1)
    positions = rng.integers(1 << 40, size=(4, BATCH))
    start = time.perf_counter()
    for position in positions:
        drawn = sampler.records(position, 0)
    tell(f"shuffle of 4 x {BATCH} positions", start)
    for what in ("cold", "the same again"):
        start = time.perf_counter()
        for position in positions:
            corpus.rows(sampler.records(position, 0))
        tell(f"shuffle and index rows of 4 x {BATCH} slices, {what}", start)
    start = time.perf_counter()
    corpus.take("series", drawn)
    tell(f"keys of {BATCH} slices, as for a report", start)
    print(
        f"{len(corpus):,} slices, {len(sampler.strata[0].start):,} series, {pa.total_allocated_bytes()} bytes in Arrow"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--slices", type=int, default=400_000_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if not (arguments.folder / layout.CONTRACT).exists():
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(arguments.folder, arguments.slices))
        maker.start()
        maker.join()
    measure(arguments.folder, arguments.threads)
