"""Coupled convex search: every displacement of a cube is tried at every cell, and neighbors are made to agree.

Minimized are alternately the cost of each cell by itself, held near a smooth field ever more firmly, and that field,
which is the mean of neighbors (Heinrich, Papiez, Schnabel, Handels, "Non-parametric discrete registration with convex
optimisation", WBIR 2014; numbers are those of ConvexAdam's public code and of FlexiCT).

The costs of 729 displacements on the cells of 192 x 160 x 192 voxels take 81 MB, and no grid has many more cells.
"""

import torch
from torch.nn import functional

from curia2_jax.curiabench.registration.field import consistent, smoothed

HALF_WIDTH = 4  # cells that a displacement reaches to each side, 24 voxels
COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # how firmly cells are held, round by round; cost per squared cell
ROUNDS = 15  # of inverse consistency
TOGETHER = 81  # displacements whose costs are smoothed at a time


def search(fixed: torch.Tensor, moving: torch.Tensor) -> torch.Tensor:
    """Features (C, X, Y, Z) on cells -> the field from fixed to moving, in cells."""
    tried = displacements(HALF_WIDTH).to(fixed.device)
    there, back = (agreed(costs(*pair, tried), tried) for pair in ((fixed, moving), (moving, fixed)))
    return consistent(there, back, ROUNDS)


def displacements(half_width: int) -> torch.Tensor:
    """(L, 3) int64, the shortest first: of equal costs the first counts, so that where nothing is, nothing moves."""
    side = torch.arange(-half_width, half_width + 1)
    every = torch.cartesian_prod(side, side, side)
    return every[torch.argsort(every.square().sum(1), stable=True)]


def costs(fixed: torch.Tensor, moving: torch.Tensor, tried: torch.Tensor) -> torch.Tensor:
    """(L, X, Y, Z): squared differences of features, summed over channels, means of neighbors. Edges are repeated."""
    reach = int(tried.abs().max())
    wide = functional.pad(moving[None], [reach] * 6, mode="replicate")[0]
    x, y, z = fixed.shape[1:]
    found = torch.empty((len(tried), x, y, z), dtype=fixed.dtype, device=fixed.device)
    for number, (i, j, k) in enumerate((tried + reach).tolist()):
        found[number] = (fixed - wide[:, i : i + x, j : j + y, k : k + z]).square().sum(0)
    for some in found.split(TOGETHER):
        some.copy_(smoothed(some))
    return found


def agreed(found: torch.Tensor, tried: torch.Tensor) -> torch.Tensor:
    """The field (3, X, Y, Z), in cells, of costs (L, X, Y, Z) of displacements (L, 3)."""
    field = _picked(found.argmin(0), tried, found.dtype)
    for firmness in COUPLING:
        # Plane by plane: the distances of all displacements to the field would take as much as three times the costs.
        best = [
            (cost + firmness * (tried[:, :, None, None] - own).square().sum(1)).argmin(0)
            for cost, own in zip(found.unbind(1), field.unbind(1), strict=True)
        ]
        field = _picked(torch.stack(best), tried, found.dtype)
    return field


def _picked(best: torch.Tensor, tried: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return smoothed(tried[best].movedim(-1, 0).to(dtype))
