"""What a field does to a pair: agreement of the labels that it moves, landmarks, and how smooth it is.

`MEASURES` of each structure (`segmentation.py`), then `OF_FIELD`: these stand in predictions.parquet, and every score
is computed from them.
"""

import numpy as np
import torch

from curia2_jax.curiabench import segmentation
from curia2_jax.curiabench.registration import field as fields
from curia2_jax.curiabench.registration.grid import Grid
from curia2_jax.curiabench.registration.pairs import Pair

OF_FIELD = ("tre", "sd_log_j", "folded")  # mm or voxels, NaN without landmarks; of nodes; share of nodes


def measured(pair: Pair, grid: Grid, field: torch.Tensor, numbers: tuple[int, ...]) -> np.ndarray:
    """(5 x structures + 3,) float64 of a field (3, nodes). `numbers`: the labels, in order."""
    found: list[np.ndarray] = []
    if pair.fixed.labels is not None and pair.moving.labels is not None:
        moved = moved_labels(pair.moving.labels, field, grid)
        truth, answer = (_ordered(labels, numbers) for labels in (pair.fixed.labels, moved))
        spacing = tuple(pair.spacing.tolist())
        found.append(segmentation.measures(answer, truth, len(numbers), spacing, pair.is_mm))
    tre = np.nan
    if pair.fixed.landmarks is not None and pair.moving.landmarks is not None:
        apart = pair.fixed.landmarks + moves(pair.fixed.landmarks, field, grid) - pair.moving.landmarks
        tre = float(np.linalg.norm(apart * pair.spacing, axis=1).mean())
    return np.concatenate([*found, [tre, *fields.roughness(field, grid.step.tolist())]])


def moves(points: np.ndarray, field: torch.Tensor, grid: Grid) -> np.ndarray:
    """(n, 3) voxels by which points (n, 3) in voxels of the fixed volume are moved."""
    at = torch.from_numpy((points + 0.5) / grid.ratio - 0.5).to(field)
    return fields.sampled(field, at.T[:, :, None, None])[:, :, 0, 0].T.double().cpu().numpy() * grid.ratio


def moved_labels(labels: np.ndarray, field: torch.Tensor, grid: Grid) -> np.ndarray:
    """Labels (S, H, W) of the moving volume where the fixed one has its voxels, the nearest; 0 beyond its edges."""
    found = np.zeros(labels.shape, labels.dtype)
    rows, columns = (side.ravel() for side in np.indices(labels.shape[1:]))
    for number in range(len(labels)):  # a slice at a time: the field of all voxels would be as large as twelve volumes
        points = np.stack([np.full_like(rows, number), rows, columns], axis=1)
        nearest = np.floor(points + moves(points, field, grid) + 0.5).astype(np.int64)
        known = ((nearest >= 0) & (nearest < labels.shape)).all(1)
        found[number].ravel()[known] = labels[tuple(nearest[known].T)]
    return found


def _ordered(labels: np.ndarray, numbers: tuple[int, ...]) -> np.ndarray:
    """Labels as 1..K, in the order of `numbers`."""
    return np.where(labels > 0, np.searchsorted(numbers, labels) + 1, 0)
