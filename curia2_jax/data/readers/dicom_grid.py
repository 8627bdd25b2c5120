"""Where the frames of a DICOM series lie, and whether together they are one regular grid.

The place of a slice comes from ImagePositionPatient and ImageOrientationPatient alone. SliceThickness,
SpacingBetweenSlices, SliceLocation and InstanceNumber are not believed (PS3.3 C.7.6.2.1.1; scanners disagree on the
first two, and exports renumber the rest).
"""

import numpy as np
import pydicom

from curia2_jax.data.readers.dicom_frames import Frame, functional, numbers
from curia2_jax.data.readers.volume import Refusal, is_regular


def grid(frames: list[Frame], first: pydicom.Dataset) -> tuple[list[Frame], np.ndarray, list[tuple[str, str]]]:
    """Frames in order along the normal, affine of (column, row, slice) to RAS+ mm, notes.

    Raises:
      Refusal: the frames form no regular grid.
    """
    one, notes = frames[0], []
    axes = one.rows_columns
    _check_alike(frames)
    normal = np.cross(*axes)
    frames = sorted(frames, key=lambda f: float(f.origin @ normal))
    origins = np.array([f.origin for f in frames])
    if not np.isfinite(origins).all():
        raise Refusal("no_geometry", "ImagePositionPatient is not finite")
    if len(frames) > 1:
        through = _through(origins, normal, one.pixel)
    else:
        enhanced = "PerFrameFunctionalGroupsSequence" in first
        measures = functional(first, 0, "PixelMeasuresSequence") if enhanced else first
        thickness = abs(float(numbers(measures, "SliceThickness", 1, 0.0)[0])) or 1.0
        notes.append(("single_slice", f"its distance is SliceThickness, {thickness:g} mm"))
        through = normal * thickness
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = axes[0] * one.pixel[1], axes[1] * one.pixel[0], through, origins[0]
    return frames, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, notes


def _check_alike(frames: list[Frame]) -> None:
    one = frames[0]
    axes, pixel = np.array([f.rows_columns for f in frames]), np.array([f.pixel for f in frames])
    if not np.allclose(axes[0] @ axes[0].T, np.eye(2), atol=5e-3) or not (np.isfinite(pixel[0]) & (pixel[0] > 0)).all():
        raise Refusal(
            "irregular_geometry", f"ImageOrientationPatient {axes[0].ravel().tolist()}, PixelSpacing {one.pixel}"
        )
    if not np.allclose(axes, axes[0], atol=1e-3):
        raise Refusal("irregular_geometry", "slices of several orientations in one series")
    if any(frame.size != one.size for frame in frames) or not np.allclose(pixel, pixel[0], rtol=1e-3):
        raise Refusal("irregular_geometry", "slices of several sizes in one series")


def _through(origins: np.ndarray, normal: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """(3,) from one slice to the next, of origins (n, 3) in order."""
    places = origins @ normal
    steps, step = np.diff(places), float(places[-1] - places[0]) / (len(places) - 1)
    # Some exports round positions to 0.1 mm; each coordinate is then off by half of it.
    slack = 0.05 * float(np.abs(normal).sum()) if np.allclose(origins * 10, np.rint(origins * 10), atol=1e-5) else 0.0
    if not is_regular(places, slack):
        raise Refusal("irregular_geometry", f"slice distances from {steps.min():.3f} to {steps.max():.3f} mm")
    sideways = origins - origins[0] - np.outer((origins - origins[0]) @ normal, normal)
    if np.linalg.norm(sideways, axis=1).max() > max(0.01 * step * (len(origins) - 1), 0.1 * min(pixel), 2 * slack):
        raise Refusal("irregular_geometry", "slices shifted in plane from one to the next: a tilted gantry")
    if is_regular(places):
        return (origins[-1] - origins[0]) / (len(origins) - 1)
    return np.polyfit(np.arange(len(origins)), origins, 1)[0]  # the roundings of all slices average out
