"""A volume -> the slices that a corpus stores: int16, oriented, at most 512 pixels a side, each with its index row.

Stored slices have the orientation of CuriaBench: rows towards Posterior and columns towards Left for axial ones (PL),
Inferior and Left for coronal ones (IL), Inferior and Posterior for sagittal ones (IP).
"""

import collections.abc
import contextlib
import dataclasses
import time
from typing import Any

import numpy as np
from PIL import Image

from curia2_jax.data.corpus.planes import PLANES, in_plane
from curia2_jax.data.ingest import foreground, intensity
from curia2_jax.data.readers.volume import Header, Refusal, Volume, from_xyz

MIN_SIDE = 32
MAX_SIDE = 512
# Ratio of the largest to the smallest spacing up to which other planes may be cut from a volume.
NEAR_ISOTROPIC = 1.5
_BLOCK = 32 << 20  # bytes of int32 that a block of slices may take while it is worked on


def planes_of(
    shape: tuple[int, ...], spacing: np.ndarray, asked: tuple[str, ...], across: int | None = None
) -> tuple[str, ...]:
    """Planes in which a volume of `shape` and `spacing` (S, P, L) is stored.

    A near-isotropic volume with 32 or more voxels along every axis gives the planes asked for. Any other gives the one
    it was acquired in: across the axis `across`; else across the axis whose spacing differs by half or more from that
    of two alike ones; else across the shortest axis.

    Raises:
      Refusal: a side of the slices is too small.
    """
    if max(spacing) <= NEAR_ISOTROPIC * min(spacing) and min(shape) >= MIN_SIDE:
        return tuple(asked)
    if across is None:
        apart = np.abs(np.log(np.divide.outer(spacing, spacing)))
        pairs = [(axis, [other for other in range(3) if other != axis]) for axis in range(3)]
        odd = [
            axis
            for axis, (a, b) in pairs
            if apart[a, b] < np.log(1.2) and min(apart[axis, a], apart[axis, b]) > np.log(NEAR_ISOTROPIC)
        ]
        across = odd[0] if odd else min(range(3), key=lambda axis: (shape[axis], axis))
    sides = [shape[axis] for axis in range(3) if axis != across]
    if min(sides) < MIN_SIDE:
        raise Refusal("too_small", f"slices of {sides[0]} x {sides[1]} pixels, {MIN_SIDE} is the least")
    return (PLANES[across],)


def plane_affine(volume: Volume, plane: str) -> np.ndarray:
    """(4, 4) float64, (slice, row, column, 1) of `in_plane(volume.raw, plane)` -> millimeters in RAS+."""
    order, last = [0, 1, 2], volume.raw.shape[0] - 1
    affine = volume.affine
    if plane != "axial":
        flip = np.eye(4)
        flip[0, 0], flip[0, 3] = -1, last
        affine = affine @ flip
        order = [1, 0, 2] if plane == "coronal" else [2, 0, 1]
    out = affine.copy()
    out[:, :3] = affine[:, order]
    return out


def most_slices(header: Header, planes: tuple[str, ...]) -> int:
    """Slices that a volume gives at most in the planes asked for.

    Raises:
      Refusal: it gives none for its shape.
    """
    if header.affine is not None:
        volume = from_xyz(np.broadcast_to(np.int8(0), header.shape), header.affine)
        shape = volume.raw.shape
        return sum(shape[PLANES.index(plane)] for plane in planes_of(shape, volume.spacing, planes))
    if len(planes) == 1 and header.across is not None:
        return header.shape[header.across]
    return sum(header.shape)


@dataclasses.dataclass
class Timer:
    """Seconds of processor time spent in each stage: `with timer("read"): ...`."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> collections.abc.Iterator[None]:
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - start


def slices(
    volume: Volume, planes: tuple[str, ...], notes: list[tuple[str, str]], timer: Timer
) -> collections.abc.Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """(int16 (height, width), index row without keys, label and place in a file) of each stored slice of a settled
    volume.

    Slices with next to no foreground are left out. Appends to `notes` what was corrected.

    Raises:
      Refusal: before the first slice: the volume gives none for its shape, or is constant.
    """
    chosen = planes_of(volume.raw.shape, volume.spacing, planes, volume.across)
    quantize = intensity.Quantizer.from_volume(volume)
    threshold = _threshold(volume, chosen[0], dataclasses.replace(quantize))  # a copy: its counts are not of slices
    near_empty = reduced = 0
    for plane in chosen:
        view = in_plane(volume.raw, plane)
        height, width = view.shape[1:]
        step = max(1, _BLOCK // (4 * height * width))
        for start in range(0, len(view), step):
            with timer("orient and quantize"):
                block = quantize(np.ascontiguousarray(view[start : start + step]))
                if max(height, width) > MAX_SIDE:
                    block = np.stack([shrink(pixels) for pixels in block])
                    reduced += len(block)
            with timer("foreground"):
                found = foreground.find(block, threshold, volume.modality == "CT")
            scale = (height / block.shape[1], width / block.shape[2])
            for z, pixels in enumerate(block):
                if not found.fraction[z] >= foreground.MIN_FOREGROUND:
                    near_empty += 1
                    continue
                place = _place(volume, plane, start + z, scale)
                stored = {"slope": float(quantize.slope), "intercept": float(quantize.intercept)}
                yield pixels, place | stored | _moments(found, z)
    notes += quantize.notes
    notes += [(what, f"{count} slices") for what, count in (("near_empty", near_empty), ("reduced", reduced)) if count]
    if volume.obliquity > 1:
        notes.append(("oblique", f"{volume.obliquity:.1f} degrees off the axes of the patient"))


def _place(volume: Volume, plane: str, number: int, scale: tuple[float, float]) -> dict[str, Any]:
    """Where slice `number` of a plane lies; `scale` is the pixels of the volume in one of the slice, along y and x."""
    affine = plane_affine(volume, plane)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    along = affine[:3, 0] / spacing[0]
    return {
        "modality": volume.modality,
        "plane": plane,
        "position": float(number),
        "position_mm": float(along @ (affine[:3, 3] + number * affine[:3, 0])),
        "spacing_y": float(spacing[1] * scale[0]),
        "spacing_x": float(spacing[2] * scale[1]),
        "spacing_z": float(spacing[0]),
        "obliquity": volume.obliquity,
    }


def _moments(found: foreground.Foreground, z: int) -> dict[str, Any]:
    """The foreground of slice `z` of a block and its Gaussian."""
    return {
        "foreground": float(found.fraction[z]),
        "anatomy_y": float(found.y[z]),
        "anatomy_x": float(found.x[z]),
        "anatomy_std_y": float(found.std_y[z]),
        "anatomy_std_x": float(found.std_x[z]),
    }


def shrink(pixels: np.ndarray) -> np.ndarray:
    """int16 slice with its longer side brought to 512 pixels, bicubic with antialiasing (Pillow's)."""
    scale = MAX_SIDE / max(pixels.shape)
    size = [max(1, round(side * scale)) for side in pixels.shape]
    image = Image.fromarray(pixels.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.clip(np.rint(np.asarray(image)), -32768, 32767).astype(np.int16)


def _threshold(volume: Volume, plane: str, quantize: intensity.Quantizer) -> float:
    """Threshold of the foreground in stored numbers, from at most 32 slices of the volume."""
    view = in_plane(volume.raw, plane)
    some = quantize(np.ascontiguousarray(view[:: max(1, len(view) // 32)]))
    if some.min() == some.max() and len(some) == len(view):
        raise Refusal("no_foreground", f"every voxel is {some.min() * quantize.slope + quantize.intercept:g}")
    if volume.modality == "CT":
        return foreground.CT_THRESHOLD
    return foreground.mr_threshold(foreground.reduce(some).ravel())
