"""A pair of volumes on disk, as `data/ingest/benchmark_schema.py` describes it: what cannot be compared is refused."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench.adapters.adapter import Volume
from curia2_jax.curiabench.splits import Split, label_map, load, read_sample
from curia2_jax.data.ingest import benchmark_schema as schema
from curia2_jax.errors import UserError

SAME = 0.01  # share of a spacing by which those of two volumes may differ
ALIKE = 0.7  # cosine between their axes: patients lie askew, but not by half a right angle


class Side(NamedTuple):
    """A volume of a pair, slices first.

    Attributes:
      volume: voxels (S, H, W) float32, modality, affine.
      labels: (S, H, W) int64; None where the task has landmarks alone.
      landmarks: (n, 3) float64, slice, row, column; None where the task has none.
      inside: (S, H, W) bool, where features count; None = in the body.
    """

    volume: Volume
    labels: np.ndarray | None
    landmarks: np.ndarray | None
    inside: np.ndarray | None


class Pair(NamedTuple):
    """Two volumes on one grid. `spacing` (3,) in mm, ones where it is not known and distances are in voxels."""

    fixed: Side
    moving: Side
    spacing: np.ndarray
    is_mm: bool


def read_pair(split: Split, index: int, labels: tuple[int, ...], landmarks: str) -> Pair:
    """One pair with all that stands beside it. `labels`: that label maps may have; `landmarks`: as in task.json.

    Raises:
      UserError: a file is missing or at fault, or the two volumes do not belong together; the message names them.
    """
    assert split.moving is not None
    fixed, moving = (_side(one, index, labels, landmarks) for one in (split, split.moving))
    names = f"{split.images[index]} and {split.moving.images[index].name}"
    shapes = [one.volume.voxels.shape for one in (fixed, moving)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{names}: found the shapes {shapes[0]} and {shapes[1]} (slices first); write both on one grid")
    if fixed.landmarks is not None and moving.landmarks is not None and len(fixed.landmarks) != len(moving.landmarks):
        counts = f"{len(fixed.landmarks)} and {len(moving.landmarks)}"
        raise UserError(f"{names}: found {counts} landmarks; write as many, in one order")
    one, other = fixed.volume.affine, moving.volume.affine
    if one is None or other is None:
        return Pair(fixed, moving, np.ones(3), False)
    return Pair(fixed, moving, _spacing(names, one, other), True)


def _spacing(names: str, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(3,) mm of the voxels of two affines, whose axes run alike."""
    first, second = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (one, other))
    if not np.allclose(first, second, rtol=SAME):
        found = " and ".join(" x ".join(f"{side:.3g}" for side in each) for each in (first, second))
        raise UserError(f"{names}: found voxels of {found} mm; write both on one grid")
    along = (one[:3, :3] * other[:3, :3]).sum(0) / (first * second)
    if (along < ALIKE).any():
        axis = ("slices", "rows", "columns")[int(along.argmin())]
        raise UserError(f"{names}: found {axis} that run in different directions; write both in one orientation")
    return first


def _side(split: Split, index: int, labels: tuple[int, ...], landmarks: str) -> Side:
    image, path = read_sample(split, index)[0], split.images[index]
    if image.ndim != 3:
        raise UserError(f"{path}: found shape {image.shape}; registration wants volumes (height, width, slices)")
    first = split.axes == "SHW"
    shape = tuple(np.moveaxis(image, 2, 0).shape) if first else image.shape  # as it lies in the file

    def slices_first(array: np.ndarray) -> np.ndarray:
        return array if first else np.moveaxis(array, 2, 0)

    known = None if split.affines is None or np.isnan(split.affines[index]).any() else split.affines[index]
    inside = schema.beside(path, schema.INSIDE_SUFFIX)
    return Side(
        Volume(np.moveaxis(image, 2, 0), str(split.modalities[index]), known),
        slices_first(label_map(path, shape, labels)) if labels else None,
        _landmarks(path, landmarks, known) if landmarks else None,
        slices_first(_inside(inside, shape)) if inside.is_file() else None,
    )


def _inside(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    found = load(path) != 0
    if found.shape != shape or not found.any():
        said = f"shape {found.shape}" if found.shape != shape else "nothing inside"
        raise UserError(f"{path}: found {said}; write nonzero where features count, of shape {shape}, or no such file")
    return found


def _landmarks(image: Path, unit: str, affine: np.ndarray | None) -> np.ndarray:
    """(n, 3) slice, row, column."""
    path = schema.beside(image, schema.LANDMARKS_SUFFIX)
    if not path.is_file():
        raise UserError(f"{path}: not found, and task.json says that there are landmarks; write (n, 3) numbers")
    found = load(path)
    if found.ndim != 2 or found.shape[1] != 3 or found.dtype.kind not in "iuf" or not len(found):
        raise UserError(f"{path}: found {found.dtype} of shape {found.shape}; write (n, 3) numbers")
    if not np.isfinite(found).all():
        raise UserError(f"{path}: found landmarks that are not finite; leave them out of both volumes")
    if unit == schema.VOXELS:
        return found.astype(np.float64)
    if affine is None:
        raise UserError(f"{path}: landmarks in mm, and {schema.TABLE} has no {schema.AFFINE}; write it, or voxels")
    return np.linalg.solve(affine, np.c_[found, np.ones(len(found))].T)[:3].T
