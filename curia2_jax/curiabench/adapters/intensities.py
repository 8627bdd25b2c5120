"""Numbers of scans -> numbers of natural images, and the two published processors of Curia with their quirks."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

from curia2_jax.curiabench.adapters.adapter import SLICES

AIR = -1000.0  # HU
CT_WINDOW = (-1000.0, 1000.0)  # HU
MR_PERCENTILES = (0.5, 99.5)
SHORT = 32767.0


def unit_range(voxels: np.ndarray, modality: str) -> np.ndarray:
    """[0, 1]: CT by a fixed window, anything else between percentiles of each slice (S, H, W)."""
    if modality == "CT":
        low, high = np.float32(CT_WINDOW[0]), np.float32(CT_WINDOW[1])
    else:
        low, high = np.percentile(voxels, MR_PERCENTILES, axis=(1, 2), keepdims=True)
    return ((voxels - low) / np.maximum(high - low, 1e-6)).clip(0, 1).astype(np.float32)


def min_max(voxels: np.ndarray) -> np.ndarray:
    """Each slice (S, H, W) over its own range, which is what RAD-DINO makes of a radiograph."""
    low, high = voxels.min((1, 2), keepdims=True), voxels.max((1, 2), keepdims=True)
    return ((voxels - low) / np.maximum(high - low, 1e-6)).astype(np.float32)


def squares(slices: np.ndarray, side: int) -> torch.Tensor:
    """(S, H, W) -> (S, 1, side, side), bicubic with antialiasing, the aspect ratio not kept."""
    stack = torch.from_numpy(np.ascontiguousarray(slices, np.float32))[:, None]
    return functional.interpolate(stack, (side, side), mode="bicubic", antialias=True, align_corners=False)


def curia_v1(voxels: np.ndarray, side: int, clip: bool, eps: float, numbers: list[int]) -> Iterator[torch.Tensor]:
    """What raidium/curia's processor makes of a NumPy array.

    Numbers are cut to int16 and divided by 32767, so that the clip at -1000 that follows does nothing; a volume has one
    mean and spread, over all of its slices.
    """

    def pixels(part: list[int]) -> torch.Tensor:
        found = squares(voxels[part].astype(np.int64).astype(np.int16).astype(np.float32) / SHORT, side)
        return found.clamp(min=AIR) if clip else found

    return _by_volume(pixels, len(voxels), eps, numbers)


def curia_v1_tensor(
    voxels: np.ndarray, side: int, clip: bool, eps: float, numbers: list[int]
) -> Iterator[torch.Tensor]:
    """What the same processor makes of a PyTorch tensor: no int16, and the clip at -1000 works."""

    def pixels(part: list[int]) -> torch.Tensor:
        found = squares(voxels[part], side)
        return found.clamp(min=AIR) if clip else found

    return _by_volume(pixels, len(voxels), eps, numbers)


def curia_2(voxels: np.ndarray, side: int, clip: bool, eps: float, numbers: list[int]) -> Iterator[torch.Tensor]:
    """The later processor: floats, the clip works, each slice has its own mean and spread."""
    for start in range(0, len(numbers), SLICES):
        found = squares(voxels[numbers[start : start + SLICES]], side)
        found = found.clamp(min=AIR) if clip else found
        yield _z_score(found, found.mean((1, 2, 3), keepdim=True), found.std((1, 2, 3), keepdim=True), eps)


def _by_volume(pixels, depth: int, eps: float, numbers: list[int]) -> Iterator[torch.Tensor]:
    """Two passes, so that a long volume is never held at the size of the model."""
    total, squared, count, shift = 0.0, 0.0, 0, 0.0
    for start in range(0, depth, SLICES):
        part = pixels(list(range(start, min(start + SLICES, depth)))).double()
        if not start:
            shift = float(part.mean())  # of the sums, against rounding
        total, squared = total + float((part - shift).sum()), squared + float((part - shift).square().sum())
        count += part.numel()
    mean = torch.tensor(shift + total / count)
    spread = torch.tensor(max(squared - total**2 / count, 0.0) / (count - 1)).sqrt()
    for start in range(0, len(numbers), SLICES):
        yield _z_score(pixels(numbers[start : start + SLICES]), mean, spread, eps)


def _z_score(pixels: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor, eps: float) -> torch.Tensor:
    return (pixels - mean) / torch.where(spread < eps, 1.0, spread)
