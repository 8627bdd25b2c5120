"""How well two label maps agree: Dice, the 95th percentile of surface distances, and the surface within a tolerance.

Definitions are MONAI's: the surface of a mask is its voxels with a face neighbor outside of it.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage


class Agreement(NamedTuple):
    """Of one structure. NaN where both masks are empty; distances are infinite where one is."""

    dice: float
    hd95: float  # in the unit of the spacing
    surface_dice: float


def agreement(found: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> Agreement:
    """Compares two masks of one shape, bool of 2 or 3 dimensions.

    Args:
      spacing: of the voxels, in mm; ones where it is not known, and distances are then in voxels.
      tolerance: the distance up to which a surface is right, in the same unit.
    """
    if not found.any() and not truth.any():
        return Agreement(np.nan, np.nan, np.nan)
    dice = 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())
    if not found.any() or not truth.any():
        return Agreement(dice, np.inf, 0.0)
    box = ndimage.find_objects((found | truth).astype(np.uint8))[0]  # which holds both surfaces whole
    found, truth = found[box], truth[box]
    one, other = surface_distances(found, truth, spacing), surface_distances(truth, found, spacing)
    hd95 = max(np.percentile(one, 95), np.percentile(other, 95))
    near = (one <= tolerance).sum() + (other <= tolerance).sum()
    return Agreement(dice, float(hd95), float(near / (len(one) + len(other))))


def surface_distances(mask: np.ndarray, other: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance of each surface voxel of `mask` to the surface of `other`, which has one."""
    return ndimage.distance_transform_edt(~_surface(other), sampling=spacing)[_surface(mask)]


def _surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~ndimage.binary_erosion(mask)
