"""From (corpus, seed) to the batch of step k, for any number of threads, processes and hosts.

Row r of the global batch of step k is draw number k * global_batch + r of an endless shuffled stream. Everything
random about it (which slice, boxes, flips, masks, what replaces a record that cannot be read) is a function of the
seed and that number alone, and the ladder of mask targets one of the seed and the number of its group. So whoever
makes a row makes the same row, a host makes just the rows that its devices hold, and no state is saved: a run that
resumes at step k starts here with `start_step=k`.

Grain runs it: a `MapDataset` of steps, whose elements its threads (or its processes) make ahead of the consumer.
"""

import collections
import contextlib
import dataclasses
import gc
import logging
import random
import signal
import sys
import weakref
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from curia2_jax.data import crops, masks
from curia2_jax.data.corpus import Corpus
from curia2_jax.data.crops import CropsConfig
from curia2_jax.data.masks import MasksConfig
from curia2_jax.data.records import CorruptRecord
from curia2_jax.data.sampling import SamplingPlan
from curia2_jax.errors import UserError

# Streams of random numbers that share a seed and an index.
_ROW, _GROUP, _REPLACEMENT = range(3)
_REPLACEMENTS = 16  # draws for one row before the corpus is given up
_GRACE = 10_000  # rows; the corrupt rate is taken over at least that many

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how.

    A process holds at most max(prefetch, num_threads) + 2 batches, each of 2 * canvas**2 bytes for every row it
    delivers. With processes each one holds as many, and hands them over through /dev/shm.
    """

    corpus: str  # folder, or several with weights: "A:2,B:1"
    where: str  # conditions on index columns, such as "modality=CT,spacing_z<=5"; "" for all slices
    held_out: float  # share of the patients kept out of the stream, chosen by a hash of the patient
    global_batch: int  # images a step over all devices
    group_size: int  # images that share a ladder of mask ratios
    canvas: int  # pixels; every slice is padded below and right to this square
    modality_temperature: float  # 1: modalities as often as they occur; the larger, the more evenly
    max_slices_per_series: int  # drawn in an epoch; 0: all
    max_corrupt_rate: float  # share of rows that had to be replaced above which the run stops
    num_threads: int  # in every process that makes batches
    num_workers: int  # processes; 0: threads of this one
    prefetch: int  # batches made ahead


def _generator(seed: int, index: int, use: int) -> np.random.Generator:
    """Random numbers that belong to one row (or group) of the endless stream; Philox costs no set-up."""
    key = np.array([seed & (1 << 64) - 1, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, use]))


@dataclasses.dataclass(frozen=True)
class StepLoader:
    """Makes the rows `rows` of the batch of any step; pickles, so that processes can do it."""

    corpus: Corpus
    plan: SamplingPlan
    data: DataConfig
    crops: CropsConfig
    masks: MasksConfig
    grid: int  # patches along a side of a global crop
    seed: int
    rows: np.ndarray  # int64 (n,), numbers in the global batch

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch, as `batches` describes it, plus `corrupt` int64 (n,): the record a row was to hold, or -1."""
        positions = step * self.data.global_batch + self.rows
        drawn = self.plan.records(positions, self.seed)
        index = self.corpus.rows(drawn)
        # Zeros cost nothing before they are written; fresh memory, since a consumer may keep what it was given.
        slices = np.zeros((len(positions), self.data.canvas, self.data.canvas), np.int16)
        found = drawn.copy()
        for row in range(len(positions)):
            found[row] = self._read(int(positions[row]), int(drawn[row]), index[row : row + 1], slices[row])

        uniform = np.empty((len(positions), 2 + self.crops.num_local, crops.DRAWS))
        mask_rngs = []
        for row, position in enumerate(positions):
            generator = _generator(self.seed, int(position), _ROW)
            generator.random(out=uniform[row])
            mask_rngs.append(random.Random(int(generator.integers(1 << 63))))
        geometry = geometry_of(index)
        global_boxes, local_boxes, flips = crops.draw(uniform, geometry, self.crops)
        return {
            "slices": slices,
            "extent": geometry.extent,
            "global_boxes": global_boxes,
            "local_boxes": local_boxes,
            "flips": flips,
            "masks": self._masks(mask_rngs, positions, geometry, global_boxes, flips[:, :2]),
            "is_ct": index["is_ct"].copy(),
            "corrupt": np.where(found == drawn, -1, drawn),
        }

    def _read(self, position: int, record: int, index: np.ndarray, canvas: np.ndarray) -> int:
        """Reads `record`, or the first readable one of a sequence that belongs to this row; returns which.

        `index` (1,) is the index row of `record` and becomes that of what was read.
        """
        candidates = self._candidates(position, record)
        for candidate in candidates:
            if candidate != record:
                index[:] = self.corpus.rows(np.array([candidate]))
            height, width = index["height"][0], index["width"][0]
            with contextlib.suppress(CorruptRecord):
                self.corpus.read(candidate, out=canvas[:height, :width])
                return candidate
        raise UserError(
            f"data.corpus {self.data.corpus}: {_REPLACEMENTS} records in a row cannot be read, the last one is "
            f"{locate(self.corpus, candidate)}; run launch/ingest.py --verify on it"
        )

    def _candidates(self, position: int, record: int) -> Iterator[int]:
        yield record
        others = _generator(self.seed, position, _REPLACEMENT).integers(len(self.plan), size=_REPLACEMENTS)
        yield from (int(other) for other in self.plan.records(others, self.seed) if other != record)

    def _masks(
        self,
        rngs: list[random.Random],
        positions: np.ndarray,
        geometry: crops.Geometry,
        boxes: np.ndarray,
        flips: np.ndarray,
    ) -> np.ndarray:
        """(n, 2, grid * grid) bool; every whole group holds masks.masked_per_group patches."""
        shape = (self.grid, self.grid)
        mean, std = masks.into_crop(*crops.anatomy(geometry, self.masks.placement), boxes, flips, shape)
        out = np.zeros((len(positions), 2, self.grid**2), bool)
        size = self.data.group_size
        targets = {int(g): self._targets(int(g)) for g in np.unique(positions // size)}
        for row, (rng, position) in enumerate(zip(rngs, positions, strict=True)):
            for view, target in enumerate(targets[int(position) // size][int(position) % size]):
                if target:
                    known = np.isfinite(std[row, view, 0])
                    prior = masks.Prior(mean[row, view], std[row, view], shape) if known else None
                    out[row, view] = masks.draw(rng, *shape, int(target), prior)
        return out

    def _targets(self, group: int) -> np.ndarray:
        """Masked patches of the views of a group, (group_size, 2): its ladder, shuffled."""
        ladder = masks.ladder(self.data.group_size, self.grid**2, self.masks)
        return _generator(self.seed, group, _GROUP).permutation(ladder).reshape(-1, 2)


class Batches:
    """Iterator over batches; close it (or use it as a context manager) to end its threads and processes."""

    def __init__(self, loader: StepLoader, iterator: grain.DatasetIterator):
        self.loader, self._iterator = loader, [iterator]
        self._finalizer = weakref.finalize(self, _close, self._iterator)  # at exit too, while Grain can still clean up
        self.seen = 0  # rows delivered
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
        replaced = self.corrupt.total()
        if replaced > data.max_corrupt_rate * max(self.seen, _GRACE):
            self.close()
            raise UserError(
                f"data.corpus {data.corpus}: {replaced} of {self.seen} slices cannot be read, more than "
                f"data.max_corrupt_rate {data.max_corrupt_rate:g} allows; run launch/ingest.py --verify on it"
            )
        return batch

    def records_of_step(self, step: int) -> list[str]:
        """What the rows of a step hold, in order: corpus position, series and place in it, for a report."""
        loader = self.loader
        records = loader.plan.records(step * loader.data.global_batch + loader.rows, loader.seed)
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
) -> Batches:
    """Batches of the steps from `start_step` on (to before `stop_step`), dicts of NumPy arrays.

    Args:
      rows: numbers in [0, global_batch) of the rows that this process delivers, in that order; all by default. They
        need not be neighbours: with parameters sharded over hosts a host may own interleaved blocks.
      corpus: an open one, instead of `data.corpus`.
    Returns:
      an iterator, where n = len(rows), S = canvas, L = num_local, N = patches of a global crop:
        `slices` (n, S, S) int16, padded below and right with zeros; `extent` (n, 2) int32, true height and width;
        `global_boxes` (n, 2, 4), `local_boxes` (n, L, 4) float32 y0, x0, y1, x1 in continuous pixel coordinates;
        `flips` (n, 2 + L) bool, columns reversed; `masks` (n, 2, N) bool; `is_ct` (n,) bool.

    Raises:
      UserError: a value of `data` that does not fit, the corpus or the other sections; later, from the iterator, too
        many records that cannot be read.
    """
    rows = np.arange(data.global_batch) if rows is None else np.asarray(rows)
    if data.group_size < 1 or data.global_batch % data.group_size:
        raise UserError(f"data.group_size: {data.group_size} does not divide data.global_batch {data.global_batch}")
    for key in ("num_threads", "prefetch"):
        if getattr(data, key) < 1:
            raise UserError(f"data.{key}: found {getattr(data, key)}; write 1 or more")
    if corpus is None:
        if not data.corpus:
            raise UserError("data.corpus: no corpus given; write --config.data.corpus=FOLDER, made by launch/ingest.py")
        corpus = Corpus(data.corpus)
    plan = corpus.sampling_plan(
        temperature=None if data.modality_temperature == 1 else data.modality_temperature,
        cap=data.max_slices_per_series or None,
        where=data.where,
        split="train" if data.held_out else "all",
        held_out=data.held_out,
    )
    largest = max(corpus.contract["largest"])
    if largest > data.canvas:
        raise UserError(
            f"data.canvas: {data.canvas}, but {data.corpus} has slices of {largest} pixels; write {largest}"
        )
    grid = crops_config.global_size // patch_size
    loader = StepLoader(corpus, plan, data, crops_config, masks_config, grid, seed, rows.astype(np.int64))
    steps = grain.MapDataset.range(start_step, sys.maxsize if stop_step is None else stop_step).map(loader)
    ahead = data.num_threads if data.num_workers else max(data.prefetch, data.num_threads)
    ahead = steps.to_iter_dataset(grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=ahead))
    if data.num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own flags when it starts a process
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.num_workers), _start_worker)
    return Batches(loader, iter(ahead))


def geometry_of(rows: np.ndarray) -> crops.Geometry:
    """What crops depend on, from index rows (n,) of dtype index.ROW; no spread where no foreground was found."""

    def pair(first: str, second: str) -> np.ndarray:
        return np.stack([rows[first], rows[second]], -1)

    return crops.Geometry(
        extent=pair("height", "width"),
        spacing=pair("spacing_y", "spacing_x"),
        mean=pair("anatomy_y", "anatomy_x"),
        std=np.where(rows["foreground"][:, None] > 0, pair("anatomy_std_y", "anatomy_std_x"), 0.0),
    )


def locate(corpus: Corpus, record: int) -> str:
    """Where a record lies on disk."""
    shard, row = (int(corpus.take(name, np.array([record]))[0]) for name in ("shard", "row"))
    return f"record {record}, row {row} of shard {shard}"


def _start_worker(worker: int, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the consumer's, who closes the workers
