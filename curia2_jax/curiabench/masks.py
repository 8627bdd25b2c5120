"""A mask at the size of a model, and the patches or cells that lie under it."""

import numpy as np
import torch
from torch.nn import functional


def resized(mask: np.ndarray, side: int) -> torch.Tensor:
    """(H, W) bool with a nonzero pixel -> (side, side) bool with one, as in CuriaBench.

    Antialiased bilinear weights are cut at 0.5, or at half of the maximum where nothing reaches 0.5, so that small
    structures stay.
    """
    weight = functional.interpolate(
        torch.from_numpy(mask.astype(np.float32))[None, None],
        size=(side, side),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )[0, 0]
    inside = weight > 0.5
    return inside if inside.any() else weight > 0.5 * weight.max()


def cells(masks: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """(U, H, W) or (U, X, Y, Z) bool -> (U, cells) bool: the cells of the grid that hold a masked pixel."""
    pool = functional.adaptive_max_pool2d if len(grid) == 2 else functional.adaptive_max_pool3d
    return pool(masks[:, None].float(), list(grid)).flatten(1) > 0


def patch_mask(mask: np.ndarray, resolution: int, patch_size: int) -> torch.Tensor:
    """Which patches lie under a mask: (H, W) bool with a nonzero pixel -> (g, g) bool with a nonzero patch."""
    grid = resolution // patch_size
    return cells(resized(mask, resolution)[None], (grid, grid)).reshape(grid, grid)
