"""CT and MR series in DICOM: single-frame, mosaic and enhanced multi-frame, every lossless transfer syntax.

Frames are found in `dicom_frames`, split into volumes in `dicom_volumes`, placed in `dicom_grid`, and decoded in
`dicom_pixels`.
"""

import collections
import hashlib
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
import pydicom
from pydicom.tag import Tag

from curia2_jax.data.readers import dicom_file, dicom_mosaic, dicom_pixels
from curia2_jax.data.readers.dicom_file import element
from curia2_jax.data.readers.dicom_frames import (
    ASSUMED_GEOMETRY,
    Frame,
    frames_of,
    numbers,
    owner_of,
    said,
    whole,
)
from curia2_jax.data.readers.dicom_grid import grid
from curia2_jax.data.readers.dicom_volumes import volumes_of
from curia2_jax.data.readers.volume import Header, Refusal, Volume, from_xyz

_CLASSES = "1.2.840.10008.5.1.4.1.1."
_SAME_IN_A_STACK = [
    (name, Tag(name))
    for name in ("FrameOfReferenceUID", "SeriesDescription", "ImageType", "EchoTime", "ConvolutionKernel", "Modality")
]
_IMAGES = {_CLASSES + end for end in ("2", "2.1", "2.2", "4", "4.1", "4.4")}  # CT, MR; enhanced; legacy converted
_DERIVED_MODALITIES = {
    *("SC", "OT", "SEG", "SR", "PR", "KO", "REG", "DOC", "FID"),
    *("RTSTRUCT", "RTDOSE", "RTPLAN", "RTIMAGE", "RTRECORD"),
}
_DERIVED_TYPES = {"SCREEN SAVE", "DOSE", "DOSE_INFO", "PROTOCOL", "POSDISP", "CSA REPORT"}
# JPEG baseline, JPEG extended, JPEG-LS near-lossless.
_LOSSY_SYNTAXES = {f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 81)}

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what it would warn of becomes a refusal or does not matter


def claims(path: pathlib.Path) -> bool:
    """Whether a file is or claims to be DICOM: its magic number, or its name where the preamble was left out."""
    if path.name.upper() == "DICOMDIR":
        return False
    if path.suffix.lower() in (".dcm", ".ima", ".dicom"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def look(path: pathlib.Path) -> Header:
    """Header of an object that is a CT or MR image; its `shape` is columns, rows and slices.

    Raises:
      Refusal: it is damaged, or no CT or MR image.
    """
    with dicom_file.quiet():
        dataset = dicom_file.parse(path, stop_before_pixels=True)
        _check(dataset)
        columns, rows = whole(dataset, "Columns"), whole(dataset, "Rows")
        slices, stack, place = whole(dataset, "NumberOfFrames", 1), "", 0.0
        if slices == 1:
            mosaic = dicom_mosaic.mosaic_of(dataset)
            if mosaic:
                columns, rows, slices = columns // mosaic.layout[1], rows // mosaic.layout[0], mosaic.count
            else:
                stack, place = _stack_of(dataset)
        series, owner = said(dataset, "SeriesInstanceUID"), _digest(*owner_of(dataset))
        return Header((columns, rows, slices), across=2, series=series, owner=owner, stack=stack, place=place)


def _text(dataset: pydicom.Dataset, tag: str) -> str:
    return str(element(dataset, tag) or "")


def _digest(*what: str) -> str:
    return hashlib.blake2b(repr(what).encode(), digest_size=12).hexdigest()


def _stack_of(dataset: pydicom.Dataset) -> tuple[str, float]:
    """Name of the stack that a single slice may belong to, whatever its SeriesInstanceUID, and its place along the
    normal, mm; "" where it has no place."""
    try:
        position, axes = numbers(dataset, "ImagePositionPatient", 3), numbers(dataset, "ImageOrientationPatient", 6)
        spacing = numbers(dataset, "PixelSpacing", 2)
    except Refusal:
        return "", 0.0
    (a, b, c), (d, e, f) = axes[:3].tolist(), axes[3:].tolist()
    place = float(position @ (b * f - c * e, c * d - a * f, a * e - b * d))
    grid = [round(n, 3) + 0.0 for n in (a, b, c, d, e, f)] + [round(n, 4) for n in spacing.tolist()]
    # Where no number says which series it is, at least the beginning of the UIDs is the same.
    series = said(dataset, "SeriesNumber") or said(dataset, "SeriesInstanceUID").rpartition(".")[0]
    same = [said(dataset, name, tag) for name, tag in _SAME_IN_A_STACK]
    size = (whole(dataset, "Rows"), whole(dataset, "Columns"))
    return _digest(*owner_of(dataset), series, *same, *map(str, (*size, *grid))), place


def read(files: Sequence[pathlib.Path], frame: int = 0, orientation: str | None = None) -> Volume:
    """One volume from the files of one series, which always say their orientation.

    `frame` picks one of several volumes (echoes, b-values, phases, times), in the order of their tags.

    Raises:
      Refusal: a file is damaged or no image, or they form no regular grid.
    """
    with dicom_file.quiet():
        frames, first, repeated = _all_frames(files)
        groups, told, left_out = volumes_of(frames)
        if not 0 <= frame < len(groups):
            raise Refusal("unsupported_dimensions", f"no frame {frame}, the series has {len(groups)}")
        _check_mosaics(groups[frame])
        frames, affine, notes = grid(groups[frame], first)
        if repeated:
            notes.append(("repeated_instances", f"{repeated} more files with the same SOPInstanceUID"))
        if left_out:
            notes.append(("left_out", f"{left_out} single slices beside the volumes of the series"))
        if ASSUMED_GEOMETRY in frames[0].tags:
            notes.append((ASSUMED_GEOMETRY, frames[0].tags[ASSUMED_GEOMETRY]))
        if frames[0].layout != (1, 1):
            notes.append(("mosaic", f"cut into {len(frames)} slices"))
        if len(groups) > 1:
            notes.append(("frame", f"{told}: {frame} of {len(groups)}"))
        modality = _text(first, "Modality")
        units = {one.unit for one in frames} - {"", "HU", "US"}
        if units and modality == "CT":
            raise Refusal("not_hounsfield", f"RescaleType {', '.join(sorted(units))}")
        pixels = dicom_pixels.read(frames, modality)
        series = _text(first, "SeriesInstanceUID")
    patient, study = frames[0].owner
    return from_xyz(
        pixels.raw.transpose(2, 1, 0),
        affine,
        across=2,
        patient=patient,
        study=study,
        series=series,
        modality=modality,
        notes=notes + pixels.notes,
        slope=pixels.slope,
        intercept=pixels.intercept,
        padding=pixels.padding,
    )


def count_frames(files: Sequence[pathlib.Path]) -> int:
    """Number of volumes in a series.

    Raises:
      Refusal: a file is damaged or no image, or slices repeat without a tag that tells them apart.
    """
    with dicom_file.quiet():
        return len(volumes_of(_all_frames(files)[0])[0])


def _all_frames(files: Sequence[pathlib.Path]) -> tuple[list[Frame], pydicom.Dataset, int]:
    """Frames of all files, each instance once; the first dataset; the number of files that repeat an instance."""
    frames: list[Frame] = []
    first, repeated = pydicom.Dataset(), 0
    seen: dict[str, list[list[Frame]]] = collections.defaultdict(list)
    for path in sorted(files):
        dataset = dicom_file.parse(path, stop_before_pixels=True)
        _check(dataset)
        first = dataset if not frames else first
        mine = frames_of(dataset, path)
        known = seen[_text(dataset, "SOPInstanceUID") or str(path)]
        if any(_is_repeat(mine, other) for other in known):
            repeated += 1
            continue
        known.append(mine)
        frames += mine
    return frames, first, repeated


def _is_repeat(some: list[Frame], other: list[Frame]) -> bool:
    """Whether two objects of one SOPInstanceUID are the same: some de-identifiers give one UID to all slices.

    Raises:
      Refusal: they lie at one place and differ.
    """
    if len(some) != len(other) or any(not np.allclose(a.origin, b.origin) for a, b in zip(some, other, strict=True)):
        return False
    one, two = (dicom_pixels.read(frames, "CT") for frames in (some, other))
    if not np.array_equal(one.raw, two.raw) or one.slope != two.slope:
        raise Refusal("irregular_geometry", "mixed: one SOPInstanceUID, one place and two pictures")
    return True


def _check_mosaics(frames: list[Frame]) -> None:
    """That slices which have the word MOSAIC, and nothing that says how to cut them, are slices.

    Raises:
      Refusal: they may be mosaics.
    """
    if len(frames) < 3 and not all(frame.acquired for frame in frames):
        raise Refusal("irregular_geometry", "a mosaic without the header that says where its slices lie")


def _check(dataset: pydicom.Dataset) -> None:
    """That a dataset is an original or reformatted CT or MR image without loss.

    Raises:
      Refusal: it is not.
    """
    try:
        _check_kind(dataset)
        syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None) if hasattr(dataset, "file_meta") else None
        if syntax is None:
            raise Refusal("not_an_image", "no TransferSyntaxUID")
        if not getattr(syntax, "is_transfer_syntax", False):
            raise Refusal("corrupt", f"TransferSyntaxUID {syntax}")
        _check_lossless(dataset, syntax)
        photometric = said(dataset, "PhotometricInterpretation")
        if whole(dataset, "SamplesPerPixel", 1) != 1 or "PALETTE" in photometric:
            raise Refusal("unsupported_pixel_type", photometric)
    except Refusal:
        raise
    except Exception as error:
        raise Refusal("corrupt", f"{type(error).__name__}: {error}") from None


def _check_kind(dataset: pydicom.Dataset) -> None:
    kind, modality = said(dataset, "SOPClassUID"), said(dataset, "Modality")
    types = [word.strip().upper() for word in said(dataset, "ImageType").split("\\")]
    if modality in _DERIVED_MODALITIES or _DERIVED_TYPES & set(types):
        raise Refusal("derived_object", f"Modality {modality}, ImageType {types}")
    if modality in ("", "CT", "MR") and kind and kind not in _IMAGES and kind in pydicom.uid.UID_dictionary:
        raise Refusal("derived_object", f"{pydicom.uid.UID(kind).name}")
    if "Rows" not in dataset or "Columns" not in dataset or not modality:
        raise Refusal("not_an_image", f"Modality {modality or 'missing'}, {'Rows' if 'Rows' in dataset else 'no Rows'}")
    if modality not in ("CT", "MR"):
        raise Refusal("wrong_modality", modality)
    if "LOCALIZER" in types:
        raise Refusal("localizer", "ImageType LOCALIZER")


def _check_lossless(dataset: pydicom.Dataset, syntax: pydicom.uid.UID) -> None:
    """By the header; what the pixels say is for `codestreams`. A loss stays when the pixels are unpacked again."""
    if said(dataset, "LossyImageCompression") == "01" or str(syntax) in _LOSSY_SYNTAXES:
        raise Refusal("lossy_compression", f"{syntax.name}")
    ratios = said(dataset, "LossyImageCompressionRatio").split("\\")
    if any(ratio.strip() and float(ratio) > 1 for ratio in ratios):
        raise Refusal("lossy_compression", "LossyImageCompressionRatio " + ", ".join(ratios))
    if method := said(dataset, "LossyImageCompressionMethod"):
        raise Refusal("lossy_compression", f"LossyImageCompressionMethod {method}")
