"""What is compared of two volumes, on the nodes of their grid: a few principal components of patch tokens, or pixels.

Components are those of the tokens in the body of both volumes together; outside of it all is zero. The squares of all
channels have a mean of 1 together, so that one weight of smoothness does for every model.

Tokens of no more planes than nodes are kept: those of slices that lie closer are averaged as they come. At 32 x 32
patches of width 768 that is 302 MB for a volume of 192 x 160 x 192 voxels, and no volume has much more.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from curia2_jax.curiabench import forward
from curia2_jax.curiabench.adapters import intensities
from curia2_jax.curiabench.adapters.adapter import Adapter, Volume
from curia2_jax.curiabench.registration.grid import Grid
from curia2_jax.curiabench.registration.pairs import Pair, Side
from curia2_jax.data.ingest import foreground
from curia2_jax.errors import UserError

CHANNELS = 24  # FlexiCT's
BODY_SIDE = 128  # pixels at which the body is looked for

Dense = Callable[[Volume, Grid], torch.Tensor]  # -> (P, g, h, D): planes, rows and columns that fill the volume


def of_pair(pair: Pair, grid: Grid, dense: Dense, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Channels (C, nodes) float32 of the fixed and the moving volume."""
    found = [dense(side.volume, grid) for side in (pair.fixed, pair.moving)]
    inside = [body(side, one.shape[:3]).to(device) for side, one in zip((pair.fixed, pair.moving), found, strict=True)]
    fixed, moving = (
        functional.interpolate(one.movedim(-1, 0)[None], grid.nodes, mode="trilinear", align_corners=False)[0]
        for one in principal(found, inside)
    )
    return fixed, moving


def tokens(volume: Volume, grid: Grid, adapter: Adapter, device: str) -> torch.Tensor:
    """Patch tokens of every slice (P, g, h, D), planes no closer than nodes, after the final norm, on the device.

    Raises:
      UserError: the model has no patch tokens.
    """
    weights = averaging(len(volume.voxels), grid.nodes[0]).to(device)
    planes, done = None, 0
    for pixels in forward.prepared(adapter, volume, list(range(len(volume.voxels))), device):
        found = forward.encode(adapter, pixels, True, device).patches
        if found is None:
            raise UserError(f"--against: {adapter.name} has no patch tokens, which registration needs; leave it out")
        some = weights[:, done : done + len(found)]
        near = torch.nonzero(some.any(1))[:, 0]
        planes = torch.zeros((len(weights), *found.shape[1:]), device=device) if planes is None else planes
        planes[near] += torch.tensordot(some[near], found.float(), 1)
        done += len(found)
    assert planes is not None
    return planes


def pixels(volume: Volume, grid: Grid, device: str) -> torch.Tensor:
    """Intensities as one channel (nodes, 1): CT by a window, anything else between percentiles of each slice."""
    gray = torch.from_numpy(intensities.unit_range(volume.voxels, volume.modality)).to(device)
    return functional.adaptive_avg_pool3d(gray[None], grid.nodes)[0, ..., None]


def averaging(slices: int, planes: int) -> torch.Tensor:
    """(P, S): how much each slice counts in each plane; P is `planes`, or S where there are no more slices."""
    if slices <= planes:
        return torch.eye(slices)
    return functional.adaptive_avg_pool1d(torch.eye(slices), planes).T


def body(side: Side, cells: Sequence[int]) -> torch.Tensor:
    """Which cells lie inside with more than half of their volume, or at all where none does: bool of shape `cells`."""
    x, y, z = cells
    inside = side.inside if side.inside is not None else _found(side.volume)
    share = functional.adaptive_avg_pool3d(torch.from_numpy(inside.astype(np.float32))[None], (x, y, z))[0]
    return share > 0.5 if (share > 0.5).any() else share > 0 if (share > 0).any() else torch.ones_like(share) > 0


def _found(volume: Volume) -> np.ndarray:
    """The body as `launch/ingest.py` finds it, (S, h, w) bool of at most `BODY_SIDE` pixels."""
    _, height, width = volume.voxels.shape
    small = min(BODY_SIDE, height), min(BODY_SIDE, width)
    reduced = functional.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(volume.voxels)), small).numpy()
    is_ct = volume.modality == "CT"
    threshold = foreground.CT_THRESHOLD if is_ct else foreground.mr_threshold(reduced.ravel())
    return foreground.body(reduced, threshold, couch=is_ct)


def principal(found: Sequence[torch.Tensor], inside: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Components (P, g, h, C) of tokens (P, g, h, D), fitted to those of all that are inside (P, g, h) bool."""
    planes = [one for pair in zip(found, inside, strict=True) for one in zip(*pair, strict=True)]
    number = sum(int(where.sum()) for _, where in planes)
    mean = (sum(plane[where].double().sum(0) for plane, where in planes) / number).float()
    # Plane by plane: all tokens at once would be there twice more.
    centered = (plane[where] - mean for plane, where in planes)
    values, axes = torch.linalg.eigh(sum((points.T @ points).double() for points in centered) / number)
    channels = min(CHANNELS, len(values))
    spread = values[-channels:].clamp(min=0).sum().sqrt().clamp(min=1e-12)
    axes = (axes[:, -channels:] / spread).float()
    return [
        torch.stack([(plane - mean) @ axes * where[..., None] for plane, where in zip(*pair, strict=True)])
        for pair in zip(found, inside, strict=True)
    ]
