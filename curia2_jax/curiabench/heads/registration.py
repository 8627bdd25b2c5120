"""Registration by features: ConvexAdam's scheme (Siebert, Heinrich et al., 2021), with the tokens of any backbone.

Two volumes of features are brought to a few common channels. A coupled convex search over a grid of displacements finds
the large motion, each direction made the inverse of the other, and Adam refines it. Nothing is learned.
Displacements are in voxels of the volume, in the order of its axes.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

CHANNELS = 24  # of the joint principal components
COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
INVERSIONS = 15


class Scheme(NamedTuple):
    """`spacing`: voxels of the search grid; `reach`: half-width of the search, in steps of the grid."""

    spacing: int = 6
    reach: int = 4
    steps: int = 500  # of Adam
    rate: float = 1.0
    likeness: float = 12.0
    smoothness: float = 1.0


def common_channels(fixed: torch.Tensor, moving: torch.Tensor, channels: int = CHANNELS) -> list[torch.Tensor]:
    """Joint principal components of two feature volumes (C, X, Y, Z): (c, X, Y, Z) each, of unit mean square."""
    rows = torch.cat([one.flatten(1).T for one in (fixed, moving)]).double()
    rows = rows - rows.mean(0)
    vectors = torch.linalg.eigh(rows.T @ rows)[1].flip(1)[:, :channels]
    kept = rows @ vectors
    kept /= kept.square().mean().sqrt()
    parts = kept.split([fixed[0].numel(), moving[0].numel()])
    return [p.T.reshape(-1, *one.shape[1:]).float() for p, one in zip(parts, (fixed, moving), strict=True)]


def register(fixed: torch.Tensor, moving: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Where each voxel of `fixed` (C, X, Y, Z) lies in `moving`, relative to itself: (3, X, Y, Z) float32 voxels."""
    forward = convex(fixed, moving, scheme)
    backward = convex(moving, fixed, scheme)
    return refine(_fine(_consistent(forward, backward), fixed.shape[1:], scheme), fixed, moving, scheme)


def convex(fixed: torch.Tensor, moving: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The coupled search on the coarse grid: (3, x, y, z), in steps of that grid.

    Every displacement of the window costs the squared difference of features; smoothing and choosing alternate, tied
    ever harder.
    """
    coarse = [functional.avg_pool3d(one[None], scheme.spacing)[0] for one in (fixed, moving)]
    reach, shape = scheme.reach, coarse[0].shape[1:]
    window = torch.arange(-reach, reach + 1, device=fixed.device)
    steps = torch.stack(torch.meshgrid(window, window, window, indexing="ij"), -1).reshape(-1, 3)
    padded = functional.pad(coarse[1][None], (reach,) * 6, mode="replicate")[0]
    costs = []
    for x, y, z in (steps + reach).tolist():
        shifted = padded[:, x : x + shape[0], y : y + shape[1], z : z + shape[2]]
        costs.append((coarse[0] - shifted).square().mean(0))
    cost, places = torch.stack(costs), steps.to(fixed.dtype)
    smooth = _smooth(places[cost.argmin(0)].movedim(-1, 0))
    for coupling in COUPLINGS:
        away = (smooth[None] - places[:, :, None, None, None]).square().sum(1)
        smooth = _smooth(places[(cost + coupling * away).argmin(0)].movedim(-1, 0))
    return smooth


def _smooth(field: torch.Tensor) -> torch.Tensor:
    """Mean over 3 x 3 x 3 neighbors, those outside left out."""
    return functional.avg_pool3d(field[None], 3, stride=1, padding=1, count_include_pad=False)[0]


def _consistent(forward: torch.Tensor, backward: torch.Tensor) -> torch.Tensor:
    """Draws each field towards the inverse of the other."""
    for _ in range(INVERSIONS):
        onward, back = sample(backward, forward), sample(forward, backward)
        forward, backward = 0.5 * (forward - onward), 0.5 * (backward - back)
    return forward


def sample(volume: torch.Tensor, field: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """`volume` (C, X, Y, Z) at voxel + `field` (3, x, y, z), which has its shape; the border continues outside."""
    shape = torch.tensor(volume.shape[1:], dtype=field.dtype, device=field.device)
    axes = (torch.arange(n, dtype=field.dtype, device=field.device) for n in field.shape[1:])
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")) + field
    unit = (2 * places + 1) / shape[:, None, None, None] - 1
    # PyTorch wants the last axis first.
    grid = unit.flip(0).movedim(0, -1)[None]
    return functional.grid_sample(volume[None], grid, mode=mode, padding_mode="border", align_corners=False)[0]


def _fine(field: torch.Tensor, shape: torch.Size, scheme: Scheme) -> torch.Tensor:
    return scheme.spacing * functional.interpolate(field[None], tuple(shape), mode="trilinear")[0]


def refine(field: torch.Tensor, fixed: torch.Tensor, moving: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Adam on the displacements: features alike, neighbors alike."""
    found = field.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([found], lr=scheme.rate)
    for _ in range(scheme.steps):
        bent = _smooth(_smooth(found))
        rough = sum((bent.diff(dim=axis) / scheme.spacing).square().mean() for axis in (1, 2, 3))
        unlike = (sample(moving, bent) - fixed).square().mean()
        optimizer.zero_grad()
        (scheme.likeness * unlike + scheme.smoothness * rough).backward()
        optimizer.step()
    return _smooth(_smooth(found.detach()))


def target_error(field: np.ndarray, fixed: np.ndarray, moving: np.ndarray, spacing: tuple) -> np.ndarray:
    """Distance in mm, (P,), of landmarks (P, 3) in voxels of `fixed`, moved by the field, to those of `moving`."""
    axes = np.rint(fixed).astype(int).T
    moved = fixed + field[:, axes[0], axes[1], axes[2]].T
    return np.linalg.norm((moved - moving) * np.asarray(spacing), axis=1)


def folding(field: np.ndarray) -> tuple[float, float]:
    """Standard deviation of the logarithm of the Jacobian determinant of x + field, cut at 1e-9, as Learn2Reg has it,
    and the share of voxels that fold (a determinant of 0 or less). The outermost voxels are left out."""
    slopes = np.stack([np.stack(np.gradient(one), 0) for one in field.astype(np.float64)])  # (3, 3, X, Y, Z)
    inner = slopes[:, :, 1:-1, 1:-1, 1:-1].reshape(3, 3, -1).transpose(2, 0, 1) + np.eye(3)
    determinant = np.linalg.det(inner)
    return float(np.log(determinant.clip(1e-9, 1e9)).std()), float((determinant <= 0).mean())
