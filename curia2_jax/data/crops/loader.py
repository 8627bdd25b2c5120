"""Makes the rows of any batch from (corpus, seed), whoever asks.

Row r of the global batch of step k is draw number k * global_batch + r of an endless shuffled stream. Everything
random about it (which slice, boxes, flips, masks, what replaces a record that cannot be read) is a function of the
seed and that number alone, and the ladder of mask targets one of the seed and the number of its group. So whoever
makes a row makes the same row.
"""

import contextlib
import dataclasses
import random
from collections.abc import Iterator

import numpy as np

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.corpus.records import CorruptRecord, halved
from curia2_jax.data.corpus.sampling import Sampler
from curia2_jax.data.crops import masks
from curia2_jax.data.crops.boxes import DRAWS, CropsConfig, Geometry, draw_boxes, gaussians
from curia2_jax.data.crops.canvases import Block, Canvases
from curia2_jax.data.crops.gaussian import PatchGaussian, from_index, into_crop
from curia2_jax.data.crops.masks import MasksConfig
from curia2_jax.errors import UserError

# Streams of random numbers that share a seed and an index.
_ROW, _GROUP, _REPLACEMENT = range(3)
_MAX_SIDE = 512  # pixels of a stored slice; ingest's, which is not for this room to know
_CANVAS_STEP = 32  # pixels
_MAX_REPLACEMENTS = 16  # draws for one row before the corpus is given up


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how.

    A process holds at most `held` batches beside those that its consumer keeps, each of 2 * side**2 bytes for every
    row it delivers. With processes each one holds as many, and hands them over through /dev/shm.
    """

    corpus: str  # folder, or several with weights: "A:2,B:1"
    where: str  # conditions on index columns, such as "modality=CT,spacing_z<=5"; "" for all slices
    held_out: float  # share of the patients kept out of the stream, chosen by a hash of the patient
    exclude: str  # benchmarks "A,B" whose test patients are kept out of the stream, by their keys; "" for none
    global_batch: int  # images a step over all devices
    group_size: int  # images that share a ladder of mask ratios
    canvas: int  # pixels; every slice is padded below and right to this square; 0: what the corpus needs, see `fitted`
    reduce: int  # 1: slices are read at half their size; an ablation, see `reduced`
    modality_temperature: float  # 1: modalities as often as they occur; the larger, the more evenly
    max_slices_per_series: int  # drawn in an epoch; 0: all
    max_corrupt_rate: float  # share of rows that had to be replaced above which the run stops
    num_threads: int  # in every process that makes batches
    num_workers: int  # processes; 0: threads of this one
    prefetch: int  # batches made ahead

    @property
    def side(self) -> int:
        """Pixels along a side of the canvas. Where it is 0 and no corpus was asked (a plan, noise), as many as a stored
        slice can have."""
        return self.canvas or halved(_MAX_SIDE, self.reduce)

    @property
    def held(self) -> int:
        """Batches of a process that are ready, in the making or with the consumer."""
        return max(self.prefetch, self.num_threads) + 2


def fitted(data: DataConfig, corpus: Corpus) -> DataConfig:
    """`data` with the canvas that batches of `corpus` have: the one given, or for 0 the largest slice, as it is read,
    rounded up to whole multiples of 32 pixels, since a larger canvas costs time.

    Raises:
      UserError: a slice does not fit, or cannot be read at half its size and has to be.
    """
    if data.reduce not in (0, 1):
        raise UserError(f"config.data.reduce: found {data.reduce}; write 0, or 1 for slices of half their size")
    if data.reduce and not corpus.reduces:
        raise UserError(
            f"config.data.reduce: found 1, but {data.corpus} has slices that can only be read whole; write 0, or a "
            "corpus of launch/ingest.py --codec=htj2k"
        )
    largest = halved(max(corpus.contract["largest"]), data.reduce)
    if not data.canvas:
        return dataclasses.replace(data, canvas=-(-largest // _CANVAS_STEP) * _CANVAS_STEP)
    if largest > data.canvas:
        raise UserError(
            f"data.canvas: {data.canvas}, but {data.corpus} has slices of {largest} pixels; write {largest}, or 0"
        )
    return data


def _generator(seed: int, index: int, use: int) -> np.random.Generator:
    """Random numbers that belong to one row (or group) of the endless stream; Philox costs no set-up."""
    key = np.array([seed & (1 << 64) - 1, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, use]))


@dataclasses.dataclass(frozen=True)
class StepLoader:
    """Makes the rows `rows` of the batch of any step; pickles, so that processes can do it."""

    corpus: Corpus
    sampler: Sampler
    data: DataConfig
    crops: CropsConfig
    masks: MasksConfig
    grid: int  # patches along a side of a global crop
    seed: int
    rows: np.ndarray  # int64 (n,), numbers in the global batch
    canvases: Canvases  # of n rows

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """The batch, as `batches` describes it, plus `corrupt` int64 (n,): the record a row was to hold, or -1."""
        positions = step * self.data.global_batch + self.rows
        drawn = self.sampler.records(positions, self.seed)
        index = self.corpus.rows(drawn)
        block, found = self.canvases.take(), drawn.copy()
        for row in range(len(positions)):
            found[row] = self._read(int(positions[row]), int(drawn[row]), index[row : row + 1], block, row)

        uniform = np.empty((len(positions), 2 + self.crops.num_local, DRAWS))
        mask_rngs = []
        for row, position in enumerate(positions):
            generator = _generator(self.seed, int(position), _ROW)
            generator.random(out=uniform[row])
            mask_rngs.append(random.Random(int(generator.integers(1 << 63))))
        geometry, reduce = geometry_of(index), self.data.reduce
        global_boxes, local_boxes, flips = draw_boxes(uniform, geometry, self.crops)
        return {
            "slices": self.canvases.lend(block),
            "extent": halved(geometry.extent, reduce),
            "global_boxes": reduced(global_boxes, geometry.extent, reduce),
            "local_boxes": reduced(local_boxes, geometry.extent, reduce),
            "flips": flips,
            "masks": self._masks(mask_rngs, positions, geometry, global_boxes, flips[:, :2]),
            "is_ct": index["is_ct"].copy(),
            "corrupt": np.where(found == drawn, -1, drawn),
        }

    def _read(self, position: int, record: int, index: np.ndarray, block: Block, row: int) -> int:
        """Reads `record` into a row of `block`, or the first readable one of a sequence that belongs to this row;
        returns which.

        `index` (1,) is the index row of `record` and becomes that of what was read.
        """
        candidates = self._candidates(position, record)
        for candidate in candidates:
            if candidate != record:
                index[:] = self.corpus.rows(np.array([candidate]))
            height, width = (halved(int(index[side][0]), self.data.reduce) for side in ("height", "width"))
            with contextlib.suppress(CorruptRecord):
                self.corpus.read(candidate, block.row(row, height, width), self.data.reduce)
                return candidate
        raise UserError(
            f"data.corpus {self.data.corpus}: {_MAX_REPLACEMENTS} records in a row cannot be read, the last one is "
            f"{locate(self.corpus, candidate)}; run launch/ingest.py --verify on it"
        )

    def _candidates(self, position: int, record: int) -> Iterator[int]:
        yield record
        others = _generator(self.seed, position, _REPLACEMENT).integers(len(self.sampler), size=_MAX_REPLACEMENTS)
        yield from (int(other) for other in self.sampler.records(others, self.seed) if other != record)

    def _masks(
        self,
        rngs: list[random.Random],
        positions: np.ndarray,
        geometry: Geometry,
        boxes: np.ndarray,
        flips: np.ndarray,
    ) -> np.ndarray:
        """(n, 2, grid * grid) bool; every whole group holds masks.masked_per_group patches."""
        shape = (self.grid, self.grid)
        mean, std = into_crop(*gaussians(geometry, self.masks.placement), boxes, flips, shape)
        out = np.zeros((len(positions), 2, self.grid**2), bool)
        size = self.data.group_size
        targets = {int(g): self._targets(int(g)) for g in np.unique(positions // size)}
        for row, (rng, position) in enumerate(zip(rngs, positions, strict=True)):
            for view, target in enumerate(targets[int(position) // size][int(position) % size]):
                if target:
                    law = PatchGaussian(mean[row, view], std[row, view], shape)
                    out[row, view] = masks.draw_mask(rng, int(target), law)
        return out

    def _targets(self, group: int) -> np.ndarray:
        """Masked patches of the views of a group, (group_size, 2): its ladder, shuffled."""
        ladder = masks.ladder(self.data.group_size, self.grid**2, self.masks)
        return _generator(self.seed, group, _GROUP).permutation(ladder).reshape(-1, 2)


def reduced(boxes: np.ndarray, extent: np.ndarray, reduce: int) -> np.ndarray:
    """Boxes (B, V, 4) float32 of slices (B, 2) int, for the same tissue in slices that were read with `reduce`.

    Pixel i of those lies on pixel 2i, so a place y becomes (y + 1/2) / 2; what would lie outside of the slice then, at
    most a quarter of a pixel, is left off. The pixels are not those of an antialiased resizing (records.decode), and a
    crop with more pixels than half of its box had is enlarged, so this is no way to the same numbers for less.
    """
    if not reduce:
        return boxes
    ends = np.tile(halved(extent, reduce), 2)[:, None].astype(np.float32)
    return np.minimum(boxes / 2 + np.float32(0.25), ends)


def geometry_of(rows: np.ndarray) -> Geometry:
    """What crops depend on, from index rows (n,) of dtype index.ROW."""

    def pair(first: str, second: str) -> np.ndarray:
        return np.stack([rows[first], rows[second]], -1)

    mean, std = from_index(pair("anatomy_y", "anatomy_x"), pair("anatomy_std_y", "anatomy_std_x"), rows["foreground"])
    return Geometry(pair("height", "width"), pair("spacing_y", "spacing_x"), mean, std)


def locate(corpus: Corpus, record: int) -> str:
    """Where a record lies on disk."""
    shard, row = (int(corpus.take(name, np.array([record]))[0]) for name in ("shard", "row"))
    return f"record {record}, row {row} of shard {shard}"
