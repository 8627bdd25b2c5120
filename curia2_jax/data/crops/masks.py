"""iBOT masks: rectangular blocks of patches, drawn around the anatomy.

The generator is BEiT's, as DINOv2 uses it (iBOT section 3, BEiT algorithm 1): blocks of random area and aspect are
added until a target is reached. Curia-2 replaces the uniform place of a block by "a Gaussian-weighted prior centered
on anatomical regions", moved along "to account for the offsets introduced by global cropping"; the paper gives no
more, and here the prior is the Gaussian of `curia2_jax.data.crops.boxes`, mapped into the patch grid of the crop and
truncated to where the block fits. As in DINOv3 every mask is then completed to its target exactly, so that shapes
never depend on data.

A mask under construction is one Python integer, bit y * width + x for patch (y, x): adding a block of any size is three
integer operations.
"""

import bisect
import dataclasses
import functools
import math
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.special import ndtr

_FEWEST = 4  # patches of a block
_ATTEMPTS = 10
_ASPECT = (math.log(0.3), math.log(1 / 0.3))


@dataclasses.dataclass(frozen=True)
class MasksConfig:
    """Which patches of the global crops the student does not see."""

    placement: Literal["anatomical", "uniform"]  # of the block centres
    probability: float  # share of the global crops with a mask
    ratio: tuple[float, float]  # masked share of the patches of such a crop, from the least to the most masked one


def ladder(group_size: int, num_patches: int, config: MasksConfig) -> np.ndarray:
    """Numbers of masked patches of the 2 * group_size global crops of a group, (2 * group_size,) int64.

    First the floor(2 * group_size * probability) masked crops, whose targets climb through equal steps of the ratio
    (the upper edges of DINOv2's strata, as in DINOv3), then zeros for the rest.
    """
    masked = int(2 * group_size * config.probability)
    edges = np.linspace(*config.ratio, masked + 1, dtype=np.float32)[1:]
    targets = np.zeros(2 * group_size, np.int64)
    targets[:masked] = np.floor(np.float32(num_patches) * edges)
    return targets


def masked_per_group(group_size: int, num_patches: int, config: MasksConfig) -> int:
    """Masked patches of every group: the same number for all of them, known before anything is drawn."""
    return int(ladder(group_size, num_patches, config).sum())


def largest_block(height: int, width: int) -> int:
    """Most patches of a block: half of the grid, in DINOv2's order of rounding (98 of 14 x 14, 666 of 37 x 37)."""
    return height // 2 * width


@functools.cache
def _columns(height: int, width: int) -> list[int]:
    """Bits of one column of 0, 1, ... height patches."""
    return [sum(1 << (row * width) for row in range(tall)) for tall in range(height + 1)]


class Prior:
    """Gaussian over the coordinates [0, height] x [0, width] of a patch grid; standard deviations in patches."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], shape: tuple[int, int]):
        self.mean, self.std, self.shape = mean, std, shape
        self._axes = [self._axis(*arguments) for arguments in zip(mean, std, shape, strict=True)]

    @staticmethod
    def _axis(mean: float, std: float, length: int) -> tuple[bool, list[float], list[float]]:
        # The distribution function at all half-integers, where the centre of a block on the grid can change its place;
        # mirrored so that the mean lies in the upper half, because only the lower tail is exact.
        mirrored = mean < length / 2
        center = length - mean if mirrored else mean
        at = ndtr((np.arange(2 * length + 1) * 0.5 - center) / std).tolist()
        return mirrored, at[0::2], at[1::2]

    def start(self, rng: random.Random, axis: int, size: int) -> int:
        """First row (axis 0) or column (axis 1) of a block of `size`, whose centre follows the truncated Gaussian."""
        mirrored, whole, half = self._axes[axis]
        last = self.shape[axis] - size
        # Start k has the centre k + size / 2, and gets the mass between that - 1/2 and that + 1/2.
        edges, first = (whole, (size - 1) // 2) if size % 2 else (half, size // 2 - 1)
        low, high = edges[first], edges[first + last + 1]
        found = bisect.bisect_right(edges, low + (high - low) * rng.random(), first, first + last + 1) - 1 - first
        found = min(found, last)
        return last - found if mirrored else found

    def log_density(self) -> np.ndarray:
        """Unnormalised, at the centres of the patches: (height * width,) float64."""
        square = [
            np.square((np.arange(n) + 0.5 - m) / s) for m, s, n in zip(self.mean, self.std, self.shape, strict=True)
        ]
        return (-0.5 * (square[0][:, None] + square[1][None, :])).ravel()


def blocks(
    rng: random.Random, height: int, width: int, target: int, largest: int, prior: Prior | None = None
) -> tuple[int, int]:
    """Blocks of masked patches, at most `target` patches in all, rarely a few less.

    Returns the bits of the masked patches and their number. Without a prior the draws are DINOv2's, number by number.
    """
    bits = count = 0
    columns = _columns(height, width)
    while count < target:
        room = min(target - count, largest)
        for _ in range(_ATTEMPTS):
            area = rng.uniform(_FEWEST, room)
            aspect = math.exp(rng.uniform(*_ASPECT))
            tall, broad = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if tall >= height or broad >= width:
                continue
            if prior is None:
                top, left = rng.randint(0, height - tall), rng.randint(0, width - broad)
            else:
                top, left = prior.start(rng, 0, tall), prior.start(rng, 1, broad)
            block = ((1 << broad) - 1) * columns[tall] << (top * width + left)
            new = (block & ~bits).bit_count()
            if 0 < new <= room:
                bits |= block
                count += new
                break
        else:
            break
    return bits, count


def draw(rng: random.Random, height: int, width: int, target: int, prior: Prior | None = None) -> np.ndarray:
    """Mask of one crop with exactly `target` patches: (height * width,) bool.

    The patches that the blocks leave short are drawn one by one without replacement, with odds proportional to the
    prior at their centres, so that a completed mask follows the anatomy too (uniformly without a prior, as DINOv3).
    """
    bits, count = blocks(rng, height, width, target, largest_block(height, width), prior)
    patches = height * width
    packed = np.frombuffer(bits.to_bytes((patches + 7) // 8, "little"), np.uint8)
    mask = np.unpackbits(packed, count=patches, bitorder="little").astype(bool)
    if count < target:
        stream = np.random.Generator(np.random.Philox(rng.getrandbits(64)))
        # Exponential clocks with rates proportional to the odds: the first to ring are such a sample.
        clocks = np.log(stream.standard_exponential(patches))
        clocks[mask] = np.inf
        if prior is not None:
            clocks -= prior.log_density()
        mask[np.argpartition(clocks, target - count - 1)[: target - count]] = True
    return mask


def into_crop(
    mean: np.ndarray, std: np.ndarray, boxes: np.ndarray, flips: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussians of slices in the patch grids of their crops.

    Args:
      mean, std: (B, 2) float, pixels. boxes: (B, V, 4) float, y0, x0, y1, x1. flips: (B, V) bool, columns reversed.
      shape: height and width of the grid.
    Returns:
      mean and standard deviation, (B, V, 2) float64 each, in patches.
    """
    corner, sides = boxes[..., :2].astype(np.float64), (boxes[..., 2:] - boxes[..., :2]).astype(np.float64)
    scale = np.array(shape) / sides
    centers = (mean[:, None] - corner) * scale
    centers[..., 1] = np.where(flips, shape[1] - centers[..., 1], centers[..., 1])
    return centers, std[:, None] * scale
