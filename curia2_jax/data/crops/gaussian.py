"""Where boxes and blocks of patches lie: a Gaussian around the anatomy, truncated to where they fit.

Boxes have a continuous place (`truncated`), blocks one on the grid of patches (`PatchGaussian`); both laws are that of
the Gaussian between the two places where a box or block touches the edges. Where no anatomy is known the spread is
infinite in both axes, and the laws are uniform. `from_index` alone knows how the index of a corpus says so.
"""

import bisect
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.special import log_ndtr, ndtr, ndtri_exp

Placement = Literal["anatomical", "uniform"]  # by the Gaussian, or as if no anatomy were known
_SPREAD: dict[Placement, float] = {"anatomical": 1.0, "uniform": np.inf}  # times that of the anatomy
Pair = Sequence[float] | Float[np.ndarray, " 2"]
_MIN_STD = 1e-3  # pixels; a smaller spread is a point


def spread(std: Float[np.ndarray, "B 2"], placement: Placement) -> Float[np.ndarray, "B 2"]:
    """The spread of the places that `placement` asks for, where that of the anatomy is `std`."""
    return std * _SPREAD[placement]


def from_index(
    mean: Float[np.ndarray, "n 2"], std: Float[np.ndarray, "n 2"], foreground: Float[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, "n 2"], Float64[np.ndarray, "n 2"]]:
    """Mean and spread of the anatomy, from those in the index and the fraction of foreground: the spread is infinite
    without a foreground, or where a number in the index says nothing."""
    mean, std = mean.astype(np.float64), std.astype(np.float64)
    known = np.isfinite(mean) & np.isfinite(std) & (std > 0) & (foreground[:, None] > 0)
    known = known.all(-1, keepdims=True)
    return np.where(known, mean, 0.0), np.where(known, np.maximum(std, _MIN_STD), np.inf)


def truncated(uniform: np.ndarray, mean: np.ndarray, std: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Quantiles `uniform` in [0, 1) of a Gaussian truncated to [low, high].

    Inverse of the distribution function, taken in logarithms in whichever tail is the lower one: exact for an interval
    any number of standard deviations away from the mean, where scipy's truncnorm is slower by far.
    """
    a, b = (low - mean) / std, (high - mean) / std
    mirrored = a + b > 0
    a, b = np.where(mirrored, -b, a), np.where(mirrored, -a, b)
    quantile = np.where(mirrored, 1.0 - uniform, uniform)
    log_a, log_b = log_ndtr(a), log_ndtr(b)
    with np.errstate(divide="ignore"):  # quantile 0 is the lower end
        z = ndtri_exp(log_b + np.log(quantile + (1.0 - quantile) * np.exp(log_a - log_b)))
    endless = np.isinf(std)
    z = mean + np.where(endless, 1.0, std) * np.where(mirrored, -z, z)
    return np.clip(np.where(endless, low + uniform * (high - low), z), low, high)


def into_crop(
    mean: Float[np.ndarray, "B 2"],
    std: Float[np.ndarray, "B 2"],
    boxes: Float[np.ndarray, "B V 4"],
    flips: Bool[np.ndarray, "B V"],
    shape: tuple[int, int],
) -> tuple[Float64[np.ndarray, "B V 2"], Float64[np.ndarray, "B V 2"]]:
    """Gaussians of slices in the patch grids of their crops.

    Args:
      mean, std: in pixels. boxes: y0, x0, y1, x1. flips: columns reversed. shape: height and width of the grid.

    Returns:
      mean and standard deviation in patches.
    """
    corner, sides = boxes[..., :2].astype(np.float64), (boxes[..., 2:] - boxes[..., :2]).astype(np.float64)
    scale = np.array(shape) / sides
    centers = (mean[:, None] - corner) * scale
    centers[..., 1] = np.where(flips, shape[1] - centers[..., 1], centers[..., 1])
    return centers, std[:, None] * scale


class PatchGaussian:
    """Gaussian over the coordinates [0, height] x [0, width] of a patch grid; standard deviations in patches."""

    def __init__(self, mean: Pair, std: Pair, shape: tuple[int, int]):
        self.mean, self.std, self.shape = mean, std, shape
        self._axes = None if np.isinf(std[0]) else [self._axis(*one) for one in zip(mean, std, shape, strict=True)]

    @staticmethod
    def _axis(mean: float, std: float, length: int) -> tuple[bool, list[float], list[float]]:
        # The distribution function at all half-integers, where the center of a block on the grid can change its place;
        # mirrored so that the mean lies in the upper half, because only the lower tail is exact.
        mirrored = bool(mean < length / 2)
        center = length - mean if mirrored else mean
        at = ndtr((np.arange(2 * length + 1) * 0.5 - center) / std).tolist()
        return mirrored, at[0::2], at[1::2]

    def start(self, rng: random.Random, axis: int, size: int) -> int:
        """First row (axis 0) or column (axis 1) of a block of `size`, whose center follows the truncated Gaussian."""
        last = self.shape[axis] - size
        if self._axes is None:
            return rng.randint(0, last)  # DINOv2's draw
        mirrored, whole, half = self._axes[axis]
        # Start k has the center k + size / 2, and gets the mass between that - 1/2 and that + 1/2.
        edges, first = (whole, (size - 1) // 2) if size % 2 else (half, size // 2 - 1)
        low, high = edges[first], edges[first + last + 1]
        found = bisect.bisect_right(edges, low + (high - low) * rng.random(), first, first + last + 1) - 1 - first
        found = min(found, last)
        return last - found if mirrored else found

    def log_density(self) -> Float64[np.ndarray, " {self.shape[0]}*{self.shape[1]}"]:
        """Unnormalized, at the centers of the patches."""
        square = [
            np.square((np.arange(n) + 0.5 - m) / s) for m, s, n in zip(self.mean, self.std, self.shape, strict=True)
        ]
        return (-0.5 * (square[0][:, None] + square[1][None, :])).ravel()
