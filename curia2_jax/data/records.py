"""One slice <-> one checked, compressed record.

A record is a 16-byte head followed by a lossless HTJ2K codestream (ISO/IEC 15444-15). The head holds four little-endian
uint32: format version, height, width, and the CRC-32 of the first twelve bytes and the codestream. HTJ2K itself has no
checksum (a flipped bit decodes to another picture without an error), and CRC-32 notices every flip of up to 32
neighbouring bits, hence the head.
"""

import struct
import zlib

import imagecodecs
import numpy as np

VERSION = 1
_HEAD = struct.Struct("<4I")
_FIELDS = struct.Struct("<3I")
# int16 -> uint16 with the order kept, since the codestream holds unsigned samples.
_SIGN = np.uint16(0x8000)


class CorruptRecord(ValueError):
    """The bytes of a record are not what was written."""


def encode(pixels: np.ndarray) -> bytes:
    """Record of one slice, int16 (height, width), both at least 1. Raises TypeError for another dtype or rank."""
    if pixels.dtype != np.int16 or pixels.ndim != 2 or 0 in pixels.shape:
        raise TypeError(f"a slice is int16 (height, width), found {pixels.dtype} {pixels.shape}")
    payload = imagecodecs.htj2k_encode(np.ascontiguousarray(pixels).view(np.uint16) ^ _SIGN, reversible=True)
    fields = _FIELDS.pack(VERSION, *pixels.shape)
    return fields + struct.pack("<I", zlib.crc32(payload, zlib.crc32(fields))) + payload


def size(record: bytes | memoryview) -> tuple[int, int]:
    """(height, width) of a record after its checksum was verified; raises CorruptRecord."""
    if len(record) <= _HEAD.size:
        raise CorruptRecord(f"{len(record)} bytes are too few for a record")
    version, height, width, checksum = _HEAD.unpack_from(record)
    view = memoryview(record)
    if zlib.crc32(view[_HEAD.size :], zlib.crc32(view[: _FIELDS.size])) != checksum:
        raise CorruptRecord("the checksum does not match")
    if version != VERSION:
        raise CorruptRecord(f"record version {version}, this code reads {VERSION}")
    return height, width


def decode(record: bytes | memoryview, out: np.ndarray | None = None) -> np.ndarray:
    """Slice of a record, int16 (height, width); written into `out` when given (any strides).

    Raises CorruptRecord when the checksum, the version or the codestream is wrong, or the slice is not that of `out`.
    """
    shape = size(record)
    if out is not None and out.shape != shape:
        raise CorruptRecord(f"a slice of {shape}, expected {out.shape}")
    # The decoder writes to rows that lie behind one another, such as those of a slice as large as its canvas.
    place = out.view(np.uint16) if out is not None and out.flags.c_contiguous else None
    try:
        pixels = imagecodecs.htj2k_decode(memoryview(record)[_HEAD.size :], out=place)
    except (RuntimeError, ValueError) as error:
        raise CorruptRecord(f"the codestream cannot be decoded: {error}") from error
    if pixels.shape != shape or pixels.dtype != np.uint16:
        raise CorruptRecord(f"the codestream holds {pixels.dtype} {pixels.shape}, the head says uint16 {shape}")
    if out is None:
        return np.bitwise_xor(pixels, _SIGN, out=pixels).view(np.int16)
    np.bitwise_xor(pixels, _SIGN, out=out.view(np.uint16))
    return out
