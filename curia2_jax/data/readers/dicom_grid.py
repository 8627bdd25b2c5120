"""Where the frames of a DICOM series lie, and whether together they are one regular grid.

The place of a slice comes from ImagePositionPatient and ImageOrientationPatient alone. SliceThickness,
SpacingBetweenSlices, SliceLocation and InstanceNumber are not believed (PS3.3 C.7.6.2.1.1; scanners disagree on the
first two, and exports renumber the rest).
"""

import dataclasses
import pathlib

import numpy as np
import pydicom

from curia2_jax.data.readers.volume import Refusal

# Tags that split a series into volumes: phase, echo, b-value.
_SPLITTING_TAGS = (
    *("TemporalPositionIdentifier", "TriggerTime", "EchoTime", "DiffusionBValue"),
    *("AcquisitionNumber", "ImageType"),
)

ASSUMED_GEOMETRY = "geometry_assumed"


@dataclasses.dataclass
class Frame:
    """One slice: where it lies, how to scale it, and where its pixels are."""

    path: pathlib.Path
    number: int  # frame inside the file
    origin: np.ndarray  # (3,) LPS mm of the first pixel
    rows_columns: np.ndarray  # (2, 3) unit vectors along increasing column index, row index
    pixel: tuple[float, float]  # mm between rows, between columns
    size: tuple[int, int]
    slope: float
    intercept: float
    tags: dict[str, str]  # of _SPLITTING_TAGS


def element(dataset: pydicom.Dataset, tag: str) -> object:
    """Value of an element, None when it is missing or empty. pydicom parses values when they are first asked for, and
    may raise any exception on malformed bytes: that is a Refusal here."""
    try:
        return dataset.get(tag)
    except Exception as error:
        raise Refusal("corrupt", f"{tag}: {error}") from None


def _numbers(dataset: pydicom.Dataset, tag: str, count: int, default: float | None = None) -> np.ndarray:
    """(count,) float64 values of an element.

    Raises:
      Refusal: it is no number, or missing and there is no default.
    """
    value = element(dataset, tag)
    if value is None or value == "":
        if default is None:
            raise Refusal("no_geometry", f"no {tag}")
        return np.full(count, default)
    try:
        numbers = np.array([float(v) for v in (value if count > 1 else [value])])
    except (TypeError, ValueError) as error:
        raise Refusal("corrupt", f"{tag}: {error}") from None
    if numbers.shape != (count,):
        raise Refusal("corrupt", f"{tag}: {len(numbers)} values, not {count}")
    return numbers


def _functional(dataset: pydicom.Dataset, number: int, sequence: str) -> pydicom.Dataset:
    """Functional group macro of a frame, its own or the shared one (PS3.3 C.7.6.16); empty when there is none."""
    for tag, place in (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0)):
        groups = element(dataset, tag) or []
        found = element(groups[place], sequence) if place < len(groups) else None
        if found:
            return found[0]
    return pydicom.Dataset()


def frames_of(dataset: pydicom.Dataset, path: pathlib.Path) -> list[Frame]:
    """Frames of a CT or MR image.

    Raises:
      Refusal: a frame has no position.
    """
    size = (int(_numbers(dataset, "Rows", 1)[0]), int(_numbers(dataset, "Columns", 1)[0]))
    count = int(_numbers(dataset, "NumberOfFrames", 1, 1)[0])
    if not 1 <= count <= path.stat().st_size:
        raise Refusal("corrupt", f"NumberOfFrames {count}")
    splitting = {tag: str(element(dataset, tag) or "") for tag in _SPLITTING_TAGS}
    enhanced = "PerFrameFunctionalGroupsSequence" in dataset
    if count > 1 and not enhanced and "ImagePositionPatient" not in dataset:
        return _assumed(dataset, path, count, size, splitting)
    out = []
    for number in range(count):
        place = measures = scale = axes = dataset
        tags = dict(splitting)
        if enhanced:
            place = _functional(dataset, number, "PlanePositionSequence")
            axes = _functional(dataset, number, "PlaneOrientationSequence")
            measures = _functional(dataset, number, "PixelMeasuresSequence")
            scale = _functional(dataset, number, "PixelValueTransformationSequence")
            content = _functional(dataset, number, "FrameContentSequence")
            tags["TemporalPositionIdentifier"] = str(element(content, "TemporalPositionIndex") or "")
        origin = _numbers(place, "ImagePositionPatient", 3)
        orientation = _numbers(axes, "ImageOrientationPatient", 6).reshape(2, 3)
        rows, columns = _numbers(measures, "PixelSpacing", 2)
        out.append(Frame(path, number, origin, orientation, (rows, columns), size, *_rescale(scale), tags))
    return out


def _rescale(dataset: pydicom.Dataset) -> tuple[float, float]:
    slope, intercept = _numbers(dataset, "RescaleSlope", 1, 1.0), _numbers(dataset, "RescaleIntercept", 1, 0.0)
    return float(slope[0]), float(intercept[0])


def _assumed(
    dataset: pydicom.Dataset, path: pathlib.Path, count: int, size: tuple[int, int], splitting: dict[str, str]
) -> list[Frame]:
    """Frames of a multi-frame object that lost its functional groups: DICOM pixels are stored as they are viewed,
    which is PL for axial slices; the frames follow each other at SpacingBetweenSlices, and nothing is known of the
    pixels."""
    step = float(_numbers(dataset, "SpacingBetweenSlices", 1, 1.0)[0]) or 1.0
    rows, columns = _numbers(dataset, "PixelSpacing", 2, 1.0)
    tags = splitting | {ASSUMED_GEOMETRY: "axial, no position in the file"}
    origins = np.arange(count)[:, None] * [0.0, 0.0, step]
    scale = _rescale(dataset)
    return [Frame(path, n, origins[n], np.eye(3)[:2], (rows, columns), size, *scale, tags) for n in range(count)]


def volumes_of(frames: list[Frame]) -> tuple[list[list[Frame]], str]:
    """Frames split into volumes of distinct positions, and the element that tells them apart ("" for one volume)."""
    if _distinct(frames):
        return [frames], ""
    for tag in _SPLITTING_TAGS:
        groups: dict[str, list[Frame]] = {}
        for frame in frames:
            groups.setdefault(frame.tags[tag], []).append(frame)
        if len(groups) > 1 and all(_distinct(group) for group in groups.values()):
            return [groups[key] for key in sorted(groups, key=_natural)], tag
    raise Refusal("irregular_geometry", f"several slices at one position among {len(frames)}")


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return np.inf, text


def _distinct(frames: list[Frame]) -> bool:
    normal = np.cross(*frames[0].rows_columns)
    places = np.sort([float(f.origin @ normal) for f in frames])
    return len(places) < 2 or float(np.diff(places).min()) > 1e-3


def grid(frames: list[Frame], first: pydicom.Dataset) -> tuple[list[Frame], np.ndarray, list[tuple[str, str]]]:
    """Frames in order along the normal, affine of (column, row, slice) to RAS+ mm, notes.

    Raises:
      Refusal: the frames form no regular grid.
    """
    one, notes = frames[0], []
    axes = one.rows_columns
    if (
        not np.allclose(axes @ axes.T, np.eye(2), atol=5e-3)
        or not min(one.pixel) > 0
        or not np.isfinite(one.pixel).all()
    ):
        raise Refusal(
            "irregular_geometry", f"ImageOrientationPatient {axes.ravel().tolist()}, PixelSpacing {one.pixel}"
        )
    for frame in frames:
        if not np.allclose(frame.rows_columns, axes, atol=1e-3):
            raise Refusal("irregular_geometry", "slices of several orientations in one series")
        if frame.size != one.size or not np.allclose(frame.pixel, one.pixel, rtol=1e-3):
            raise Refusal("irregular_geometry", "slices of several sizes in one series")
    normal = np.cross(*axes)
    frames = sorted(frames, key=lambda f: float(f.origin @ normal))
    origins = np.array([f.origin for f in frames])
    if not np.isfinite(origins).all():
        raise Refusal("no_geometry", "ImagePositionPatient is not finite")
    if len(frames) > 1:
        steps = np.diff(origins @ normal)
        step = float(np.mean(steps))
        tolerance = max(0.05 * step, 0.02)
        if np.abs(steps - np.median(steps)).max() > tolerance:
            raise Refusal("irregular_geometry", f"slice distances from {steps.min():.3f} to {steps.max():.3f} mm")
        sideways = origins - origins[0] - np.outer((origins - origins[0]) @ normal, normal)
        if np.linalg.norm(sideways, axis=1).max() > max(0.01 * step * (len(frames) - 1), 0.1 * min(one.pixel)):
            raise Refusal("irregular_geometry", "slices shifted in plane from one to the next: a tilted gantry")
        through = (origins[-1] - origins[0]) / (len(frames) - 1)
    else:
        enhanced = "PerFrameFunctionalGroupsSequence" in first
        measures = _functional(first, 0, "PixelMeasuresSequence") if enhanced else first
        thickness = abs(float(_numbers(measures, "SliceThickness", 1, 0.0)[0])) or 1.0
        notes.append(("single_slice", f"its distance is SliceThickness, {thickness:g} mm"))
        through = normal * thickness
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2], lps[:3, 3] = axes[0] * one.pixel[1], axes[1] * one.pixel[0], through, origins[0]
    return frames, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, notes
