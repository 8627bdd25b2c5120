"""One slice <-> one checked, compressed record.

A record is a 16-byte head followed by the compressed pixels. The head holds four little-endian uint32: format version,
height, width, and the CRC-32 of the first twelve bytes and the pixels. Neither codec notices every flipped bit (HTJ2K
decodes to another picture without an error), and CRC-32 notices every flip of up to 32 neighboring bits, hence the
head. The version says how the pixels are compressed, always without loss:

1. HTJ2K (ISO/IEC 15444-15) of the pixels as uint16, the smallest; also decoded at half the size, in a quarter of the
   time.
2. zstd of the bit-shuffled differences along rows: decoded in a third of the time, a sixth larger.
"""

import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import imagecodecs
import numpy as np

_HEAD = struct.Struct("<4I")
_FIELDS = struct.Struct("<3I")
# int16 -> uint16 with the order kept, since the codestream holds unsigned samples.
_SIGN = np.uint16(0x8000)


Side = TypeVar("Side", int, np.ndarray)


class CorruptRecord(ValueError):
    """The bytes of a record are not what was written."""


def _to_htj2k(pixels: np.ndarray) -> bytes:
    return bytes(imagecodecs.htj2k_encode(pixels.view(np.uint16) ^ _SIGN, reversible=True))


def _from_htj2k(payload: memoryview, out: np.ndarray, reduce: int) -> None:
    # The decoder fills only rows that follow one another, such as those of a slice as large as its canvas. It refuses a
    # codestream of another shape before it takes memory for it.
    place = out.view(np.uint16) if out.flags.c_contiguous else np.empty(out.shape, np.uint16)
    imagecodecs.htj2k_decode(cast(Any, payload), skipres=reduce, out=place)  # any buffer will do
    np.bitwise_xor(place, _SIGN, out=out.view(np.uint16))


def _to_zstd(pixels: np.ndarray) -> bytes:
    differences = np.asarray(imagecodecs.delta_encode(pixels.view(np.uint16), axis=-1))
    shuffled = np.asarray(imagecodecs.bitshuffle_encode(differences.reshape(-1), itemsize=2))
    return bytes(imagecodecs.zstd_encode(shuffled.tobytes(), level=1))


def _from_zstd(payload: memoryview, out: np.ndarray, reduce: int) -> None:
    if reduce:
        raise ValueError("it is decoded whole only")
    # Never more bytes than the head says, whatever the frame claims or holds.
    shuffled = np.empty(out.size * 2, np.uint8)
    held = len(imagecodecs.zstd_decode(cast(Any, payload), out=cast(Any, shuffled)))  # any buffer will do
    if held != len(shuffled):
        raise ValueError(f"{held} bytes, not {len(shuffled)}")
    differences = np.asarray(imagecodecs.bitshuffle_decode(shuffled.view(np.uint16), itemsize=2))
    imagecodecs.delta_decode(differences.reshape(out.shape), axis=-1, out=out.view(np.uint16))


class Codec(NamedTuple):
    """A way to compress pixels, and what a contract calls it."""

    version: int
    name: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[memoryview, np.ndarray, int], None]  # as `decode`, into its array; ValueError or RuntimeError
    reduces: bool  # whether it decodes at half the size


CODECS = {
    "htj2k": Codec(1, "HTJ2K reversible", _to_htj2k, _from_htj2k, True),
    "zstd": Codec(2, "zstd of bit-shuffled differences along rows", _to_zstd, _from_zstd, False),
}
_VERSIONS = {codec.version: codec for codec in CODECS.values()}


def encode(pixels: np.ndarray, codec: str = "htj2k") -> bytes:
    """Record of one slice, int16 (height, width), both at least 1; `codec` is a key of CODECS.

    Raises:
      TypeError: another dtype or rank.
    """
    if pixels.dtype != np.int16 or pixels.ndim != 2 or 0 in pixels.shape:
        raise TypeError(f"a slice is int16 (height, width), found {pixels.dtype} {pixels.shape}")
    payload = CODECS[codec].encode(np.ascontiguousarray(pixels))
    fields = _FIELDS.pack(CODECS[codec].version, *pixels.shape)
    return fields + struct.pack("<I", zlib.crc32(payload, zlib.crc32(fields))) + payload


def checked_head(record: bytes | memoryview) -> tuple[int, int, int]:
    """(version, height, width) of a record after its checksum was verified.

    Raises:
      CorruptRecord: the checksum does not match, or the version is unknown.
    """
    if len(record) <= _HEAD.size:
        raise CorruptRecord(f"{len(record)} bytes are too few for a record")
    version, height, width, checksum = _HEAD.unpack_from(record)
    view = memoryview(record)
    if zlib.crc32(view[_HEAD.size :], zlib.crc32(view[: _FIELDS.size])) != checksum:
        raise CorruptRecord("the checksum does not match")
    if version not in _VERSIONS:
        raise CorruptRecord(f"record version {version}, this code reads {', '.join(map(str, _VERSIONS))}")
    return version, height, width


def halved(side: Side, reduce: int) -> Side:
    """Pixels of sides (any integers) that were halved `reduce` times: of an odd number the larger half."""
    return -(-side >> reduce)


def decode(record: bytes | memoryview, out: np.ndarray | None = None, reduce: int = 0) -> np.ndarray:
    """Slice of a record, int16 (height, width), each side `halved` with reduce=1; written into `out` when given (any
    strides).

    A slice of half the size has the low-pass samples of HTJ2K's 5/3 wavelet: pixel i lies on pixel 2i of the slice, a
    mean of five pixels with the weights (-1, 2, 6, 2, -1) / 8. That is close to an antialiased resizing, but not one.

    Takes at most three times the memory of a slice of the height and width in the head.

    Raises:
      CorruptRecord: the checksum, the version or the compressed pixels are wrong, or the slice has not the shape of
        `out`.
    """
    version, *sides = checked_head(record)
    shape = tuple(halved(side, reduce) for side in sides)
    try:
        pixels = np.empty(shape, np.int16) if out is None else out
    except (MemoryError, ValueError) as error:
        raise CorruptRecord(f"the head says {shape}, which memory cannot hold") from error
    if pixels.shape != shape:
        raise CorruptRecord(f"the head says {shape}, expected is {pixels.shape}")
    try:
        _VERSIONS[version].decode(memoryview(record)[_HEAD.size :], pixels, reduce)
    except (RuntimeError, ValueError) as error:
        raise CorruptRecord(f"the pixels cannot be decoded as the head says, {shape}: {error}") from error
    return pixels
