"""The records of a TensorBoard file, byte for byte: TensorFlow's Event messages in a TFRecord.

Written here because the libraries that write them import PyTorch or TensorFlow where they find one: a second and
hundreds of MB in every process that trains.
https://github.com/tensorflow/tensorboard/blob/master/tensorboard/compat/proto/event.proto (and summary.proto)
"""

import struct
import time
from collections.abc import Mapping

VERSION = "brain.Event:2"
# The numbers of the fields that are written, in the messages above.
WALL_TIME, STEP, FILE_VERSION, SUMMARY, SESSION_LOG = 1, 2, 3, 5, 7
VALUE, TAG, SIMPLE_VALUE, STATUS = 1, 1, 2, 1
START = 1  # SessionLog.START: what earlier files have from this step on is void
VARINT, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # protobuf's wire types


def opening() -> bytes:
    """The record that every file begins with."""
    return record(_event(0) + _message(FILE_VERSION, VERSION.encode()))


def void(step: int) -> bytes:
    """The record that declares void what earlier files have from `step` on."""
    return record(_event(step) + _message(SESSION_LOG, _key(STATUS, VARINT) + _varint(START)))


def scalars(step: int, values: Mapping[str, float]) -> bytes:
    """The record of the figures of a step, {name: value}, as float32; one beyond float32 is infinite."""
    found = (
        _message(VALUE, _message(TAG, name.encode()) + _key(SIMPLE_VALUE, FLOAT) + _float32(value))
        for name, value in values.items()
    )
    return record(_event(step) + _message(SUMMARY, b"".join(found)))


def record(data: bytes) -> bytes:
    """A TFRecord: length, its checksum, the data, their checksum."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _event(step: int) -> bytes:
    return _key(WALL_TIME, DOUBLE) + struct.pack("<d", time.time()) + _key(STEP, VARINT) + _varint(step)


def _message(field: int, data: bytes) -> bytes:
    return _key(field, BYTES) + _varint(len(data)) + data


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(number: int) -> bytes:
    """A number >= 0 in groups of seven bits, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _float32(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _table() -> list[int]:
    """CRC-32C of every byte (RFC 3309, reflected polynomial)."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = _table()


def _checksum(data: bytes) -> bytes:
    """CRC-32C, masked as TFRecords have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
