"""The frames of a DICOM object: where each lies, how to scale it, and what tells it from others of its series."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pydicom
from pydicom.tag import BaseTag, Tag

from curia2_jax.data.readers import dicom_mosaic
from curia2_jax.data.readers.dicom_file import element, tag_of
from curia2_jax.data.readers.volume import Refusal

# What tells the volumes of one series apart, in the order in which they are split.
SEPARATING_TAGS = (
    *("StackID", "EchoTime", "EchoNumbers", "ImageType", "InversionTime", "DiffusionBValue", "KVP"),
    *("ConvolutionKernel", "AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime"),
    *("NominalPercentageOfCardiacPhase", "SeriesNumber", "SeriesDescription", "SequenceName", "ContrastBolusAgent"),
    *("DimensionIndexValues", "FrameOfReferenceUID"),
)
# What tells the order in time of frames at one position.
ORDERING_TAGS = ("TemporalPositionIdentifier", "TriggerTime", "InstanceNumber")
_TAGS = [
    (name, Tag(name)) for name in dict.fromkeys((*SEPARATING_TAGS, *ORDERING_TAGS)) if name != "DimensionIndexValues"
]
# Numbers that are written as text.
_DECIMALS = {
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "NumberOfFrames"),
}
_OWNER = [(name, Tag(name)) for name in ("PatientID", "StudyInstanceUID")]
_BINARY = {"DiffusionBValue", "NominalPercentageOfCardiacPhase"}
# (functional group, element in it, the name that the element has outside of enhanced objects)
_GROUPS = (
    ("FrameContentSequence", "StackID", "StackID"),
    ("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIdentifier"),
    ("FrameContentSequence", "FrameAcquisitionNumber", "AcquisitionNumber"),
    ("MREchoSequence", "EffectiveEchoTime", "EchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue", "DiffusionBValue"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "TriggerTime"),
    ("MRImageFrameTypeSequence", "FrameType", "ImageType"),
    ("CTImageFrameTypeSequence", "FrameType", "ImageType"),
)
# Pointers of dimensions that count slices: ImagePositionPatient, InStackPositionNumber, ImagePositionVolume.
_PLACES = {0x00200032, 0x00209057, 0x00209301}
_ENHANCED = {f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2.1", "2.2", "4.1", "4.4")}

ASSUMED_GEOMETRY = "geometry_assumed"


@dataclasses.dataclass
class Frame:
    """One slice: where it lies, how to scale it, and where its pixels are."""

    path: pathlib.Path
    number: int  # frame inside the file, tile of a mosaic
    origin: np.ndarray  # (3,) LPS mm of the first pixel
    rows_columns: np.ndarray  # (2, 3) unit vectors along increasing column index, row index
    pixel: tuple[float, float]  # mm between rows, between columns
    size: tuple[int, int]
    slope: float
    intercept: float
    tags: dict[str, str]  # of SEPARATING_TAGS and ORDERING_TAGS, those that the object has
    owner: tuple[str, str] = ("", "")  # patient, study
    unit: str = ""  # RescaleType
    layout: tuple[int, int] = (1, 1)  # tiles of the mosaic along its columns, along its rows
    acquired: bool = True  # no word of a mosaic, or no larger than AcquisitionMatrix


def numbers(dataset: pydicom.Dataset, tag: str, count: int, default: float | None = None) -> np.ndarray:
    """(count,) float64 values of an element.

    Raises:
      Refusal: it is no number, or missing and there is no default.
    """
    value: Any
    if tag in _DECIMALS:
        text = said(dataset, tag)
        value = text and (text.split("\\") if count > 1 else text)
    else:
        value = element(dataset, tag)
    if value is None or value == "":
        if default is None:
            raise Refusal("no_geometry", f"no {tag}")
        return np.full(count, default)
    try:
        out = np.array([float(v) for v in (value if count > 1 else [value])])
    except (TypeError, ValueError) as error:
        raise Refusal("corrupt", f"{tag}: {error}") from None
    if out.shape != (count,):
        raise Refusal("corrupt", f"{tag}: {len(out)} values, not {count}")
    return out


def whole(dataset: pydicom.Dataset, tag: str, default: int | None = None) -> int:
    """One whole number.

    Raises:
      Refusal: it is none.
    """
    (number,) = numbers(dataset, tag, 1, default)
    if not number == np.rint(number):
        raise Refusal("corrupt", f"{tag} {number}")
    return int(number)


def functional(dataset: pydicom.Dataset, number: int, sequence: str) -> pydicom.Dataset:
    """Functional group macro of a frame, its own or the shared one (PS3.3 C.7.6.16); empty when there is none."""
    for tag, place in (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0)):
        groups = element(dataset, tag) or []
        found = element(groups[place], sequence) if place < len(groups) else None
        if found:
            return found[0]
    return pydicom.Dataset()


def owner_of(dataset: pydicom.Dataset) -> tuple[str, str]:
    """(patient, study), "" for what the object does not say."""
    patient, study = (said(dataset, name, tag) for name, tag in _OWNER)
    return patient, study


def said(dataset: pydicom.Dataset, name: str, tag: BaseTag | None = None) -> str:
    """An element as text, "" when it is missing or empty; values are parted by backslashes. pydicom's conversion of
    bytes that it has not looked at yet would cost more than all the rest of a header."""
    tag = tag or tag_of(name)
    if tag not in dataset:
        return ""
    try:
        value = dataset.get_item(tag).value
    except Exception as error:  # as in `element`
        raise Refusal("corrupt", f"{name}: {error}") from None
    if isinstance(value, bytes) and name not in _BINARY:
        return value.decode("latin-1").strip(" \0")
    return _as_text(element(dataset, name))


def _as_text(value: object) -> str:
    if isinstance(value, pydicom.multival.MultiValue):
        return "\\".join(map(str, value))
    return "" if value is None else str(value).strip(" \0")


def frames_of(dataset: pydicom.Dataset, path: pathlib.Path) -> list[Frame]:
    """Frames of a CT or MR image.

    Raises:
      Refusal: a frame has no position.
    """
    size = (whole(dataset, "Rows"), whole(dataset, "Columns"))
    count = whole(dataset, "NumberOfFrames", 1)
    if not 1 <= count <= path.stat().st_size or min(size) < 1:
        raise Refusal("corrupt", f"{count} frames of {size[0]} x {size[1]}")
    tags = {name: text for name, tag in _TAGS if (text := said(dataset, name, tag))}
    owner = owner_of(dataset)
    if "PerFrameFunctionalGroupsSequence" in dataset:
        return [_enhanced(dataset, path, number, size, tags, owner) for number in range(count)]
    if count > 1 and "ImagePositionPatient" not in dataset:
        return _assumed(dataset, path, count, size, tags, owner)
    axes = numbers(dataset, "ImageOrientationPatient", 6).reshape(2, 3)
    pixel = tuple(numbers(dataset, "PixelSpacing", 2).tolist())
    scale, unit = _rescale(dataset), said(dataset, "RescaleType")
    mosaic = dicom_mosaic.mosaic_of(dataset) if count == 1 else None
    if mosaic is None:
        origin = numbers(dataset, "ImagePositionPatient", 3)
        acquired = count > 1 or not dicom_mosaic.says_mosaic(dataset) or dicom_mosaic.is_one_slice(dataset)
        one = (1, 1)
        return [
            Frame(path, n, origin, axes, pixel, size, *scale, tags, owner, unit, one, acquired) for n in range(count)
        ]
    size = (size[0] // mosaic.layout[0], size[1] // mosaic.layout[1])
    places = mosaic.places
    if places is None:
        step, origin = (
            float(numbers(dataset, "SpacingBetweenSlices", 1)[0]),
            numbers(dataset, "ImagePositionPatient", 3),
        )
        places = dicom_mosaic.origins(mosaic, origin, axes, pixel, size, step)
    return [
        Frame(path, n, place, axes, pixel, size, *scale, tags, owner, unit, mosaic.layout)
        for n, place in enumerate(places)
    ]


def _enhanced(
    dataset: pydicom.Dataset,
    path: pathlib.Path,
    number: int,
    size: tuple[int, int],
    tags: dict[str, str],
    owner: tuple[str, str],
) -> Frame:
    """A frame of an object with functional groups; what these do not have is looked for beside them."""
    origin = numbers(functional(dataset, number, "PlanePositionSequence"), "ImagePositionPatient", 3)
    axes = numbers(functional(dataset, number, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    pixel = numbers(functional(dataset, number, "PixelMeasuresSequence"), "PixelSpacing", 2)
    scale = functional(dataset, number, "PixelValueTransformationSequence") or dataset
    own = dict(tags)
    for sequence, tag, name in _GROUPS:
        text = _as_text(element(functional(dataset, number, sequence), tag))
        if text:
            own[name] = text
    values = element(functional(dataset, number, "FrameContentSequence"), "DimensionIndexValues")
    pointers = [element(item, "DimensionIndexPointer") for item in element(dataset, "DimensionIndexSequence") or []]
    values = [values] if isinstance(values, int) else list(values or [])
    if len(values) == len(pointers):
        own["DimensionIndexValues"] = "\\".join(
            str(v) for v, p in zip(values, pointers, strict=True) if p not in _PLACES
        )
    own["InstanceNumber"] = f"{tags.get('InstanceNumber') or 0}{number:06d}"
    return Frame(
        path,
        number,
        origin,
        axes.reshape(2, 3),
        tuple(pixel.tolist()),
        size,
        *_rescale(scale),
        own,
        owner,
        said(scale, "RescaleType"),
    )


def _rescale(dataset: pydicom.Dataset) -> tuple[float, float]:
    slope, intercept = numbers(dataset, "RescaleSlope", 1, 1.0), numbers(dataset, "RescaleIntercept", 1, 0.0)
    return float(slope[0]), float(intercept[0])


def _assumed(
    dataset: pydicom.Dataset,
    path: pathlib.Path,
    count: int,
    size: tuple[int, int],
    tags: dict[str, str],
    owner: tuple[str, str],
) -> list[Frame]:
    """Frames of an enhanced object that lost its functional groups: DICOM pixels are stored as they are viewed, which
    is PL for axial slices; the frames follow each other at SpacingBetweenSlices, and nothing is known of the pixels.

    Raises:
      Refusal: it is another object, of which less is known.
    """
    if str(element(dataset, "SOPClassUID")) not in _ENHANCED:
        raise Refusal("no_geometry", f"{count} frames without a position")
    step = float(numbers(dataset, "SpacingBetweenSlices", 1)[0])
    rows, columns = numbers(dataset, "PixelSpacing", 2, 1.0)
    tags = tags | {ASSUMED_GEOMETRY: "axial, no position in the file"}
    origins = np.arange(count)[:, None] * [0.0, 0.0, step]
    scale = _rescale(dataset)
    return [Frame(path, n, origins[n], np.eye(3)[:2], (rows, columns), size, *scale, tags, owner) for n in range(count)]
