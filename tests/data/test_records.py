import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curia2_jax.data import records


def pixels(seed: int, height: int, width: int, kind: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == 0:
        return rng.integers(-32768, 32768, (height, width)).astype(np.int16)
    if kind == 1:
        return np.full((height, width), rng.integers(-32768, 32768), np.int16)
    return np.cumsum(rng.integers(-3, 4, (height, width)), axis=1).astype(np.int16)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2))
def test_round_trip_is_exact(seed, height, width, kind):
    written = pixels(seed, height, width, kind)
    np.testing.assert_array_equal(records.decode(records.encode(written)), written)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True))
def test_no_flipped_bit_is_accepted(seed, place):
    record = bytearray(records.encode(pixels(seed, 20, 24, seed % 3)))
    bit = int(place * 8 * len(record))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(records.CorruptRecord):
        records.decode(bytes(record))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_only_corrupt_record(data):
    with pytest.raises(records.CorruptRecord):
        records.decode(data)


def test_layout_is_the_documented_one():
    written = pixels(3, 5, 7, 0)
    record = records.encode(written)
    version, height, width, checksum = struct.unpack("<4I", record[:16])
    assert (version, height, width) == (1, 5, 7)
    assert checksum == zlib.crc32(record[:12] + record[16:])
    stream = imagecodecs.htj2k_decode(record[16:])
    np.testing.assert_array_equal(stream.astype(np.int32) - 32768, written)


def test_decodes_into_a_part_of_a_canvas():
    written, canvas = pixels(1, 6, 9, 0), np.full((16, 16), 7, np.int16)
    records.decode(records.encode(written), out=canvas[:6, :9])
    np.testing.assert_array_equal(canvas[:6, :9], written)
    assert (canvas[6:] == 7).all() and (canvas[:, 9:] == 7).all()


def test_a_wrong_stream_under_a_right_checksum_is_refused():
    payload = imagecodecs.htj2k_encode(np.zeros((4, 4), np.uint16), reversible=True)
    fields = struct.pack("<3I", 1, 5, 4)
    record = fields + struct.pack("<I", zlib.crc32(payload, zlib.crc32(fields))) + payload
    with pytest.raises(records.CorruptRecord, match="the head says"):
        records.decode(record)
    fields = struct.pack("<3I", 2, 4, 4)
    with pytest.raises(records.CorruptRecord, match="version 2"):
        records.decode(fields + struct.pack("<I", zlib.crc32(payload, zlib.crc32(fields))) + payload)
    with pytest.raises(records.CorruptRecord, match="cannot be decoded"):
        fields = struct.pack("<3I", 1, 4, 4)
        records.decode(fields + struct.pack("<I", zlib.crc32(b"junk", zlib.crc32(fields))) + b"junk")


@pytest.mark.parametrize("wrong", [np.zeros((2, 2), np.uint16), np.zeros(4, np.int16), np.zeros((0, 3), np.int16)])
def test_refuses_what_is_no_slice(wrong):
    with pytest.raises(TypeError, match="int16"):
        records.encode(wrong)
