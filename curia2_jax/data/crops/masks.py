"""iBOT masks: rectangular blocks of patches, drawn around the anatomy.

The generator is BEiT's, as DINOv2 uses it (iBOT section 3, BEiT algorithm 1): blocks of random area and aspect are
added until a target is reached. Curia-2 replaces the uniform place of a block by "a Gaussian-weighted prior centered
on anatomical regions", moved along "to account for the offsets introduced by global cropping"; the paper gives no
more, and here the prior is the Gaussian of the boxes, mapped into the patch grid of the crop and
truncated to where the block fits. As in DINOv3 every mask is then completed to its target exactly, so that shapes
never depend on data.

A mask under construction is one Python integer, bit y * width + x for patch (y, x): adding a block of any size is three
integer operations.
"""

import dataclasses
import functools
import math
import random

import numpy as np
from jaxtyping import Bool, Int64

from curia2_jax.data.crops.gaussian import PatchGaussian, Placement

_MIN_BLOCK_PATCHES = 4  # patches of a block
_ATTEMPTS = 10
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))


@dataclasses.dataclass(frozen=True)
class MasksConfig:
    """Which patches of the global crops the student does not see."""

    placement: Placement  # of the block centers
    probability: float  # share of the global crops with a mask
    ratio: tuple[float, float]  # masked share of the patches of such a crop, from the least to the most masked one


def ladder(group_size: int, num_patches: int, config: MasksConfig) -> Int64[np.ndarray, " 2*{group_size}"]:
    """Numbers of masked patches of the global crops of a group.

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


def blocks(rng: random.Random, target: int, largest: int, law: PatchGaussian) -> tuple[int, int]:
    """Blocks of masked patches, at most `target` patches in all, rarely a few less.

    Returns the bits of the masked patches and their number. With an infinite spread the draws are DINOv2's, number by
    number.
    """
    height, width = law.shape
    bits = count = 0
    columns = _columns(height, width)
    while count < target:
        room = min(target - count, largest)
        for _ in range(_ATTEMPTS):
            area = rng.uniform(_MIN_BLOCK_PATCHES, room)
            aspect = math.exp(rng.uniform(*_LOG_ASPECT))
            tall, broad = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if tall >= height or broad >= width:
                continue
            top, left = law.start(rng, 0, tall), law.start(rng, 1, broad)
            block = ((1 << broad) - 1) * columns[tall] << (top * width + left)
            new = (block & ~bits).bit_count()
            if 0 < new <= room:
                bits |= block
                count += new
                break
        else:
            break
    return bits, count


def draw_mask(rng: random.Random, target: int, law: PatchGaussian) -> Bool[np.ndarray, " N"]:
    """Mask of one crop, row-major, with exactly `target` patches.

    The patches that the blocks leave short are drawn one by one without replacement, with odds proportional to the
    density at their centers, so that a completed mask follows the anatomy too (uniformly where the spread is infinite,
    as in DINOv3).
    """
    height, width = law.shape
    bits, count = blocks(rng, target, largest_block(height, width), law)
    patches = height * width
    packed = np.frombuffer(bits.to_bytes((patches + 7) // 8, "little"), np.uint8)
    mask = np.unpackbits(packed, count=patches, bitorder="little").astype(bool)
    if count < target:
        stream = np.random.Generator(np.random.Philox(rng.getrandbits(64)))
        # Exponential clocks with rates proportional to the odds: the first to ring are such a sample.
        clocks = np.log(stream.standard_exponential(patches))
        clocks[mask] = np.inf
        clocks -= law.log_density()
        mask[np.argpartition(clocks, target - count - 1)[: target - count]] = True
    return mask
