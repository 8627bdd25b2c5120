"""The numbers of a DICOM volume: decoded, in one array, with what they mean."""

import dataclasses
import pathlib
import tempfile

import numpy as np
import pydicom
from pydicom import encaps, uid

from curia2_jax.data.readers import codestreams, decoding, dicom_file, dicom_mosaic
from curia2_jax.data.readers.dicom_file import element
from curia2_jax.data.readers.dicom_frames import Frame, whole
from curia2_jax.data.readers.volume import Refusal

_IN_MEMORY = 512 << 20
# Pixels of a codestream for each of its bytes; a slice of nothing but air has some hundreds.
_MOST_PER_BYTE = 4096
_TAGS = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", *dicom_file.TELLING),
]
# One decoder for each codec: pydicom tries all that it knows, and of those GDCM may end the process on a damaged JPEG
# 2000 stream, and pyjpegls not return from a JPEG-LS stream without an end.
_DECODERS = {
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), "pylibjpeg"),
    **dict.fromkeys((uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), "pylibjpeg"),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls"),
    **dict.fromkeys((uid.JPEGLossless, uid.JPEGLosslessSV1), "gdcm"),
    uid.RLELossless: "pydicom",
}


@dataclasses.dataclass
class Pixels:
    """`raw` (slices, rows, columns); raw * slope + intercept is what the object says; `padding` as in `Volume`."""

    raw: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    padding: tuple[float, ...] = ()
    notes: list[tuple[str, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _File:
    """The decoded frames of a file, its padding as a closed interval (None where it has none), and whether its least
    number is white."""

    frames: np.ndarray
    padding: tuple[float, float] | None
    inverted: bool


def read(frames: list[Frame], modality: str) -> Pixels:
    """Pixels of frames in their order: scaled here only where the scaling or the padding varies.

    Raises:
      Refusal: a file cannot be decoded, or was compressed with loss.
    """
    scales = {(f.slope, f.intercept) for f in frames}
    if not all(slope != 0 and np.isfinite([slope, intercept]).all() for slope, intercept in scales):
        raise Refusal("corrupt", "RescaleSlope, RescaleIntercept " + ", ".join(f"{s:g}, {i:g}" for s, i in scales))
    varies = len(scales) > 1
    out: np.ndarray | None = None
    padding: set[tuple[float, float] | None] = set()
    inverted: set[bool] = set()
    now: tuple[pathlib.Path, _File] | None = None
    number = 0
    while number < len(frames):
        frame = frames[number]
        if now is None or now[0] != frame.path:
            now = (
                frame.path,
                _decoded(dicom_file.parse(frame.path, specific_tags=list(map(dicom_file.tag_of, _TAGS))), frame),
            )
            padding.add(now[1].padding)
            inverted.add(now[1].inverted)
            if len(padding) > 1 and not varies:  # begin again, with a number that is no number for what is padding
                varies, out, number, now = True, None, 0, None
                continue
        pixels = now[1].frames[frame.number]
        if pixels.shape != frame.size:
            raise Refusal("corrupt", f"{frame.path.name}: pixels of {pixels.shape}, the header says {frame.size}")
        pixels = _scaled(pixels, frame, now[1].padding) if varies else _with_one_padding(pixels, now[1].padding)
        out = _room(out, (len(frames), *frame.size), pixels.dtype, number)
        out[number] = pixels
        number += 1
    if len(inverted) > 1:
        raise Refusal("irregular_geometry", "mixed: MONOCHROME1 and MONOCHROME2 in one series")
    slope, intercept = (1.0, 0.0) if varies else scales.pop()
    one = None if varies else padding.pop()
    read_in = Pixels(np.asarray(out), slope, intercept, (one[0],) if one else ())
    is_inverted = inverted.pop()
    if modality == "MR" and read_in.padding:
        _fill_padding(read_in, is_inverted)
    if is_inverted:
        _settle_inverted(read_in, modality)
    return read_in


def _scaled(pixels: np.ndarray, frame: Frame, padding: tuple[float, float] | None) -> np.ndarray:
    out = pixels * np.float32(frame.slope) + np.float32(frame.intercept)
    if padding:
        out[(pixels >= padding[0]) & (pixels <= padding[1])] = np.nan
    return out


def _with_one_padding(pixels: np.ndarray, padding: tuple[float, float] | None) -> np.ndarray:
    """With the least number of its interval for all that is padding."""
    if padding is None or padding[0] == padding[1]:
        return pixels
    hole = (pixels >= padding[0]) & (pixels <= padding[1])
    return np.where(hole, pixels.dtype.type(padding[0]), pixels) if hole.any() else pixels


def _room(out: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype, filled: int) -> np.ndarray:
    """An array of `shape` for numbers of `dtype` beside those in `out`, of which `filled` slices are kept."""
    if out is not None and out.dtype == dtype:
        return out
    wide = dtype if out is None else np.result_type(out.dtype, dtype)
    if out is not None and wide == out.dtype:
        return out
    if np.prod(shape) * wide.itemsize <= _IN_MEMORY:
        wider = np.empty(shape, wide)
    else:
        with tempfile.TemporaryFile() as file:
            wider = np.memmap(file, wide, "w+", shape=shape)
    if out is not None:
        wider[:filled] = out[:filled]
    return wider


def _fill_padding(pixels: Pixels, is_inverted: bool) -> None:
    """Padding of MR becomes background, the darkest of the other numbers, where it lies far from all of them. Most MR
    says that 0 is padding, or another number that its background has, which stays what it is."""
    (value,) = pixels.padding
    low, high, count = np.inf, -np.inf, 0
    for one in pixels.raw:
        rest = one[one != value]
        count += one.size - rest.size
        if rest.size:
            low, high = min(low, float(rest.min())), max(high, float(rest.max()))
    if count and low <= high and max(low - value, value - high) > (high - low) / 2:
        for one in pixels.raw:
            one[one == value] = high if is_inverted else low
        pixels.padding = ()
        pixels.notes.append(("padding", f"{count} voxels of {value:g}"))


def _settle_inverted(pixels: Pixels, modality: str) -> None:
    """MONOCHROME1 is white where the number is least (PS3.3 C.7.6.3.1.2). Hounsfield units stay what they are."""
    if modality == "CT":
        pixels.notes.append(("monochrome1", "Hounsfield units, kept"))
        return
    low, high = (np.int64(end) if pixels.raw.dtype.kind != "f" else end for end in (pixels.raw.min(), pixels.raw.max()))
    np.subtract(np.asarray(low + high).astype(pixels.raw.dtype), pixels.raw, out=pixels.raw)
    pixels.padding = tuple(float(low + high) - value for value in pixels.padding)
    pixels.notes.append(("monochrome1", "inverted"))


def _decoded(dataset: pydicom.Dataset, frame: Frame) -> _File:
    size = (frame.size[0] * frame.layout[0], frame.size[1] * frame.layout[1])
    if "Rows" not in dataset:  # pydicom returns less than it did without the pixels
        raise Refusal("corrupt", f"{frame.path.name}: ends in its pixels")
    if element(dataset, "PixelData") is not None:
        _check_stored(dataset, size)
    pixels = _numbers(dataset)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[1:] != size:
        raise Refusal("corrupt", f"{frame.path.name}: pixels of {pixels.shape}, the header says {size}")
    if frame.layout != (1, 1):
        pixels = dicom_mosaic.tiles(pixels, frame.layout)
    inverted = str(element(dataset, "PhotometricInterpretation")) == "MONOCHROME1"
    return _File(pixels, _padding(dataset), inverted)


def _numbers(dataset: pydicom.Dataset) -> np.ndarray:
    if plugin := _DECODERS.get(dataset.file_meta.TransferSyntaxUID):
        return decoding.decoder.decode(dataset, plugin)
    try:
        return dataset.pixel_array
    except Exception as error:  # pydicom may raise anything on malformed bytes
        raise Refusal("corrupt", f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}") from None


def _padding(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    """Numbers that stand for nothing, with the sign of the pixels whatever that of the element (63536 for -2000)."""
    if element(dataset, "PixelPaddingValue") in (None, ""):
        return None
    bits, signed = whole(dataset, "BitsAllocated", 16), whole(dataset, "PixelRepresentation", 0)
    ends = []
    for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        value = whole(dataset, tag, whole(dataset, "PixelPaddingValue"))
        value %= 1 << bits
        ends.append(float(value - (1 << bits) if signed and value >= 1 << (bits - 1) else value))
    return min(ends), max(ends)


def _check_stored(dataset: pydicom.Dataset, size: tuple[int, int]) -> None:
    """That the stored pixels are what the header says, before a decoder makes room for them; native ones are brought
    to their lowest bits.

    Raises:
      Refusal: they are not, or were compressed with loss.
    """
    syntax, data = dataset.file_meta.TransferSyntaxUID, dataset.PixelData
    count = whole(dataset, "NumberOfFrames", 1)
    if not syntax.is_encapsulated:
        _settle_high_bit(dataset)
        return
    if count * size[0] * size[1] > _MOST_PER_BYTE * len(data) + (1 << 20):
        raise Refusal("corrupt", f"{len(data)} bytes for {count} frames of {size[0]} x {size[1]} pixels")
    try:
        streams = list(encaps.generate_frames(data, number_of_frames=count))
    except Exception as error:
        raise Refusal("corrupt", f"{type(error).__name__}: {error}") from None
    if len(streams) < count:
        raise Refusal("corrupt", f"{len(streams)} frames, the header promises {count}")
    for stream in streams:
        codestreams.check(stream, size, whole(dataset, "BitsAllocated"))


def _settle_high_bit(dataset: pydicom.Dataset) -> None:
    """Pixels in the upper bits of their words (PS3.5 8.1.1) to the lowest, where pydicom looks for them. Where nothing
    is in the upper bits, HighBit is what is wrong."""
    stored, allocated = whole(dataset, "BitsStored"), whole(dataset, "BitsAllocated")
    shift = whole(dataset, "HighBit", stored - 1) + 1 - stored
    if not (0 < stored <= allocated and 0 <= shift <= allocated - stored):
        raise Refusal("corrupt", f"BitsStored {stored}, HighBit {shift + stored - 1}, BitsAllocated {allocated}")
    if shift == 0 or allocated not in (8, 16, 32):
        return
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    dtype = np.dtype(f"{order}u{allocated // 8}")
    words = np.frombuffer(dataset.PixelData, dtype, len(dataset.PixelData) // dtype.itemsize)
    sign = words.view(f"{order}i{allocated // 8}") >> (stored - 1)
    extended = whole(dataset, "PixelRepresentation", 0) and np.isin(sign, (0, -1)).all()
    if not (words & ((1 << shift) - 1)).any() or ((words >> stored).any() and not extended):
        dataset.PixelData = (words >> shift).astype(dtype).tobytes()
    dataset.HighBit = stored - 1
