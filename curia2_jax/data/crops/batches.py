"""Batches made ahead of their consumer: `loader` makes them, Grain's threads or processes run it.

No state is saved: a batch is a function of the seed and the number of its step, so a host makes just the rows that its
devices hold, and a run that resumes at step k starts here with `start_step=k`.
"""

import collections
import functools
import gc
import logging
import signal
import sys
import weakref
from collections.abc import Callable, Sequence

import grain
import numpy as np
from absl import flags

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.corpus.excluded import patients_of_tests
from curia2_jax.data.crops.boxes import CropsConfig
from curia2_jax.data.crops.canvases import Canvases
from curia2_jax.data.crops.loader import DataConfig, StepLoader, fitted, locate
from curia2_jax.data.crops.masks import MasksConfig
from curia2_jax.errors import UserError

_MIN_ROWS_FOR_RATE = 10_000  # rows; the corrupt rate is not taken over fewer

log = logging.getLogger(__name__)


class Batches:
    """Iterator over batches; close it (or use it as a context manager) to end its threads and processes."""

    def __init__(
        self,
        loader: StepLoader,
        iterator: grain.DatasetIterator,
        seen: int = 0,
        replaced: int = 0,
        number: Callable[[int], int] = int,
    ):
        """`number` is which batch of the stream a step takes."""
        self.loader, self._iterator, self._number = loader, [iterator], number
        self._finalizer = weakref.finalize(self, _close, self._iterator)  # at exit too, while Grain can still clean up
        self.seen, self.replaced = seen, replaced  # rows delivered and, of them, replaced, in all lives of a run
        self.replaced_before = replaced  # without the newest batch
        self.corrupt: collections.Counter[int] = collections.Counter()  # times that a record had to be replaced

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._iterator:
            raise StopIteration
        batch = next(self._iterator[0])
        data = self.loader.data
        if data.num_workers:  # out of shared memory, which must not outlive the processes
            batch = {name: np.array(values, subok=False) for name, values in batch.items()}
        corrupt = batch.pop("corrupt")
        self.seen += len(corrupt)
        for record in corrupt[corrupt >= 0].tolist():
            if record not in self.corrupt:
                log.warning("replaced a record that cannot be read: %s", locate(self.loader.corpus, record))
            self.corrupt[record] += 1
        self.replaced_before = self.replaced
        self.replaced += int(np.count_nonzero(corrupt >= 0))
        if self.replaced > data.max_corrupt_rate * max(self.seen, _MIN_ROWS_FOR_RATE):
            self.close()
            raise UserError(
                f"data.corpus {data.corpus}: {self.replaced} of {self.seen} slices cannot be read, more than "
                f"data.max_corrupt_rate {data.max_corrupt_rate:g} allows; run launch/ingest.py --verify on it"
            )
        return batch

    def records_of_step(self, step: int) -> list[str]:
        """What the rows of a step hold, in order: corpus position, series and place in it, for a report."""
        loader = self.loader
        records = loader.sampler.records(self._number(step) * loader.data.global_batch + loader.rows, loader.seed)
        columns = [loader.corpus.take(name, records) for name in ("series", "plane", "position")]
        return [
            f"record {record}, series {series}, {plane} slice {position:g}"
            + (" (replaced: cannot be read)" if record in self.corrupt else "")
            for record, series, plane, position in zip(records.tolist(), *columns, strict=True)
        ]

    def close(self) -> None:
        self._finalizer()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _close(iterator: list[grain.DatasetIterator]) -> None:
    iterator.pop().close()
    gc.collect()  # Grain's iterators hold each other, and complain when they are first found at exit


def batches(
    data: DataConfig,
    crops_config: CropsConfig,
    masks_config: MasksConfig,
    patch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    stop_step: int | None = None,
    rows: np.ndarray | None = None,
    corpus: Corpus | None = None,
    replaced: int = 0,
    passed_over: Sequence[tuple[int, int]] = (),
) -> Batches:
    """Batches of the steps from `start_step` on (to before `stop_step`), dicts of NumPy arrays.

    Args:
      rows: numbers in [0, global_batch) of the rows that this process delivers, in that order; all by default. They
        need not be neighbors: with parameters sharded over hosts a host may own interleaved blocks.
      corpus: an open one, instead of `data.corpus`.
      replaced: rows of the steps before that were replaced; data.max_corrupt_rate is of all together.
      passed_over: (step, n): from that step on, n batches of the stream further, for each of these.
    Returns:
      an iterator, where n = len(rows), S = the canvas (of `fitted`), L = num_local, N = patches of a global crop:
        `slices` (n, S, S) int16, padded below and right with zeros, read-only;
        `extent` (n, 2) int32, true height and width;
        `global_boxes` (n, 2, 4), `local_boxes` (n, L, 4) float32 y0, x0, y1, x1 in continuous pixel coordinates;
        `flips` (n, 2 + L) bool, columns reversed; `masks` (n, 2, N) bool; `is_ct` (n,) bool.

    Raises:
      UserError: a value that does not fit, or the corpus; later, from the iterator, too many unreadable records.
    """
    rows = np.arange(data.global_batch) if rows is None else np.asarray(rows)
    _check(data)
    if corpus is None:
        if not data.corpus:
            raise UserError("data.corpus: no corpus given; write --config.data.corpus=FOLDER, made by launch/ingest.py")
        corpus = Corpus(data.corpus)
    corpus.check_shards()
    data = fitted(data, corpus)
    sampler = corpus.sampler(
        temperature=None if data.modality_temperature == 1 else data.modality_temperature,
        cap=data.max_slices_per_series or None,
        where=data.where,
        split="train" if data.held_out else "all",
        held_out=data.held_out,
        exclude=_excluded(data.exclude, corpus),
    )
    sections, grid = (data, crops_config, masks_config), crops_config.global_size // patch_size
    canvases = Canvases(len(rows), data.canvas, data.held)
    loader = StepLoader(corpus, sampler, *sections, grid, seed, rows.astype(np.int64), canvases)
    number = functools.partial(number_of, passed_over=tuple(passed_over))
    steps = grain.MapDataset.range(start_step, sys.maxsize if stop_step is None else stop_step).map(number).map(loader)
    buffer = data.num_threads if data.num_workers else max(data.prefetch, data.num_threads)
    ahead = steps.to_iter_dataset(grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=buffer))
    if data.num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own flags when it starts a process
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.num_workers), _start_worker)
    return Batches(loader, iter(ahead), start_step * len(rows), replaced, number)


def number_of(step: int, passed_over: Sequence[tuple[int, int]]) -> int:
    """Which batch of the stream a step takes. See `batches`."""
    return step + sum(n for first, n in passed_over if step >= first)


def _excluded(benchmarks: str, corpus: Corpus) -> frozenset[str]:
    """Keys of `data.exclude`; says so when none of them is in the corpus, as with another salt."""
    keys = patients_of_tests(benchmarks)
    if keys and keys.isdisjoint(corpus.counts("patient")):
        logging.warning(
            "data.exclude: none of the %d patients of %s is in the corpus; were both ingested with one --salt?",
            len(keys),
            benchmarks,
        )
    return keys


def _check(data: DataConfig) -> None:
    """Raises UserError for a value that does not fit."""
    if data.group_size < 1 or data.global_batch % data.group_size:
        raise UserError(f"data.group_size: {data.group_size} does not divide data.global_batch {data.global_batch}")
    for key in ("num_threads", "prefetch"):
        if getattr(data, key) < 1:
            raise UserError(f"data.{key}: found {getattr(data, key)}; write 1 or more")


def _start_worker(worker: int, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the consumer's, who closes the workers
