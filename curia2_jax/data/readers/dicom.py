"""CT and MR series in DICOM: single-frame and enhanced multi-frame, every lossless transfer syntax.

Which slices form a volume is decided in `curia2_jax.data.readers.dicom_grid`.
"""

import logging
import pathlib
import tempfile
import warnings
from collections.abc import Sequence

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from curia2_jax.data.readers.dicom_grid import ASSUMED_GEOMETRY, Frame, element, frames_of, grid, volumes_of
from curia2_jax.data.readers.volume import Header, Refusal, Volume, from_xyz

_CLASSES = "1.2.840.10008.5.1.4.1.1."
_IMAGES = {_CLASSES + end for end in ("2", "2.1", "2.2", "4", "4.1", "4.4")}  # CT, MR; enhanced; legacy converted
_DERIVED_MODALITIES = {
    *("SC", "OT", "SEG", "SR", "PR", "KO", "REG", "DOC", "FID"),
    *("RTSTRUCT", "RTDOSE", "RTPLAN", "RTIMAGE", "RTRECORD"),
}
_DERIVED_TYPES = {"SCREEN SAVE", "DOSE", "DOSE_INFO", "PROTOCOL", "POSDISP", "CSA REPORT"}
# JPEG baseline, JPEG extended, JPEG-LS near-lossless.
_LOSSY_SYNTAXES = {f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 81)}
_IN_MEMORY = 512 << 20

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
    with _quiet():
        dataset = _parse(path, stop_before_pixels=True)
        _check(dataset, path)
        slices = int(dataset.get("NumberOfFrames", 1) or 1)
        shape = (int(dataset.Columns), int(dataset.Rows), slices)
        return Header(shape, across=2, series=_text(dataset, "SeriesInstanceUID"))


def _text(dataset: pydicom.Dataset, tag: str) -> str:
    return str(element(dataset, tag) or "")


def read(files: Sequence[pathlib.Path], frame: int = 0, orientation: str | None = None) -> Volume:
    """One volume from the files of one series, which always say their orientation.

    `frame` picks one of several volumes at the same positions (echoes, b-values, phases), in the order of their tag.

    Raises:
      Refusal: a file is damaged or no image, or they form no regular grid.
    """
    with _quiet():
        frames, first, repeated = _all_frames(files)
        groups, tag = volumes_of(frames)
        if not 0 <= frame < len(groups):
            raise Refusal("unsupported_dimensions", f"no frame {frame}, the series has {len(groups)}")
        frames, affine, notes = grid(groups[frame], first)
        if repeated:
            notes.append(("repeated_instances", f"{repeated} more files with the same SOPInstanceUID"))
        if ASSUMED_GEOMETRY in frames[0].tags:
            notes.append((ASSUMED_GEOMETRY, frames[0].tags[ASSUMED_GEOMETRY]))
        if len(groups) > 1:
            notes.append(("frame", f"{tag}: {frame} of {len(groups)}"))
        raw, slope, intercept, padding = _pixels(frames)
        ids = {"patient": "PatientID", "study": "StudyInstanceUID", "series": "SeriesInstanceUID"}
        fields = {name: _text(first, tag) for name, tag in ids.items()} | {"modality": _text(first, "Modality")}
    fields |= {"slope": slope, "intercept": intercept, "padding": padding, "notes": notes}
    return from_xyz(raw.transpose(2, 1, 0), affine, across=2, **fields)


def count_frames(files: Sequence[pathlib.Path]) -> int:
    """Number of volumes at the same positions in a series.

    Raises:
      Refusal: a file is damaged or no image, or slices repeat without a tag that tells them apart.
    """
    with _quiet():
        return len(volumes_of(_all_frames(files)[0])[0])


def _all_frames(files: Sequence[pathlib.Path]) -> tuple[list[Frame], pydicom.Dataset, int]:
    """Frames of all files, each instance once; the first dataset; the number of files that repeat an instance."""
    frames, first, seen, repeated = [], None, set(), 0
    for path in sorted(files):
        dataset = _parse(path, stop_before_pixels=True)
        _check(dataset, path)
        uid = _text(dataset, "SOPInstanceUID") or str(path)
        if uid in seen:
            repeated += 1
            continue
        seen.add(uid)
        first = first or dataset
        frames += frames_of(dataset, path)
    return frames, first, repeated


class _quiet(warnings.catch_warnings):
    """No warnings from pydicom: what it would warn of becomes a refusal or does not matter."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")


def _parse(path: pathlib.Path, **options) -> pydicom.Dataset:
    try:
        if path.stat().st_size == 0:
            raise Refusal("corrupt", "an empty file")
        try:
            return pydicom.dcmread(path, **options)
        except InvalidDicomError:
            dataset = pydicom.dcmread(path, force=True, **options)
            if not any(tag in dataset for tag in ("SOPClassUID", "Modality", "PatientID", "StudyInstanceUID")):
                raise Refusal("not_an_image", "no DICOM preamble and no element that a DICOM image has") from None
            return dataset
    except Refusal:
        raise
    except OSError as error:
        raise Refusal("unreadable" if error.errno else "corrupt", error.strerror or str(error)) from None
    except Exception as error:  # pydicom parses lazily and may raise anything on malformed bytes
        raise Refusal("corrupt", f"{type(error).__name__}: {error}") from None


def _check(dataset: pydicom.Dataset, path: pathlib.Path) -> None:
    """That a dataset is an original or reformatted CT or MR image without loss.

    Raises:
      Refusal: it is not.
    """
    try:
        kind, modality = str(dataset.get("SOPClassUID", "")), str(dataset.get("Modality", "") or "")
        types = [str(v).upper() for v in (dataset.get("ImageType") or [])]
        if modality in _DERIVED_MODALITIES or _DERIVED_TYPES & set(types):
            raise Refusal("derived_object", f"Modality {modality}, ImageType {types}")
        if modality in ("", "CT", "MR") and kind and kind not in _IMAGES and kind in pydicom.uid.UID_dictionary:
            raise Refusal("derived_object", f"{pydicom.uid.UID(kind).name}")
        if "Rows" not in dataset or "Columns" not in dataset or not modality:
            raise Refusal(
                "not_an_image", f"Modality {modality or 'missing'}, {'Rows' if 'Rows' in dataset else 'no Rows'}"
            )
        if modality not in ("CT", "MR"):
            raise Refusal("wrong_modality", modality)
        if "LOCALIZER" in types:
            raise Refusal("localizer", "ImageType LOCALIZER")
        syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None) if hasattr(dataset, "file_meta") else None
        if syntax is None:
            raise Refusal("not_an_image", "no TransferSyntaxUID")
        if dataset.get("LossyImageCompression") == "01" or str(syntax) in _LOSSY_SYNTAXES:
            raise Refusal("lossy_compression", f"{syntax.name}")
        if int(dataset.get("SamplesPerPixel", 1)) != 1 or "PALETTE" in str(
            dataset.get("PhotometricInterpretation", "")
        ):
            raise Refusal("unsupported_pixel_type", str(dataset.get("PhotometricInterpretation", "")))
    except Refusal:
        raise
    except Exception as error:
        raise Refusal("corrupt", f"{type(error).__name__}: {error}") from None


def _pixels(frames: list[Frame]) -> tuple[np.ndarray, float, float, tuple[float, ...]]:
    """(raw (slices, rows, columns), slope, intercept, padding): scaled here only where the scaling varies."""
    scales = {(f.slope, f.intercept) for f in frames}
    varies = len(scales) > 1
    out, padding, decoded = None, (), (None, None)
    for number, frame in enumerate(frames):
        if decoded[0] != frame.path:
            dataset = _parse(frame.path)
            decoded = (frame.path, _decode(dataset))
            if dataset.get("PixelPaddingValue") is not None and not varies:
                padding = (float(dataset.PixelPaddingValue),)
        pixels = decoded[1][frame.number]
        if pixels.shape != frame.size:
            raise Refusal("corrupt", f"{frame.path.name}: pixels of {pixels.shape}, the header says {frame.size}")
        if out is None:
            out = _empty((len(frames), *frame.size), np.dtype(np.float32) if varies else pixels.dtype)
        if not varies and pixels.dtype != out.dtype:
            wider = _empty(out.shape, np.result_type(out.dtype, pixels.dtype))
            wider[:number] = out[:number]
            out = wider
        out[number] = pixels * np.float32(frame.slope) + np.float32(frame.intercept) if varies else pixels
    slope, intercept = (1.0, 0.0) if varies else scales.pop()
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise Refusal("corrupt", f"RescaleSlope {slope}, RescaleIntercept {intercept}")
    return out, slope, intercept, padding


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if np.prod(shape) * dtype.itemsize <= _IN_MEMORY:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def _decode(dataset: pydicom.Dataset) -> np.ndarray:
    """(frames, rows, columns) of any integer or float dtype.

    Raises:
      Refusal: the pixels cannot be decoded.
    """
    try:
        pixels = dataset.pixel_array
    except Exception as error:  # decoders may raise anything on malformed bytes
        raise Refusal("corrupt", f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}") from None
    return pixels[None] if pixels.ndim == 2 else pixels
