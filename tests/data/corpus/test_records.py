"""Records give back what was written, or say that they are damaged."""

import struct
import tracemalloc
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curia2_jax.data.corpus import records

CODECS = st.sampled_from(sorted(records.CODECS))
both = pytest.mark.parametrize("codec", sorted(records.CODECS))
# (arange(35) ** 2 * 60 - 32768) as 5 x 7, by the first release that wrote records.
OLD = bytes.fromhex(
    "01000000050000000700000039e6e56cff4fff510029400000000007000000050000000000000000000000070000000500000000000000000001"
    "0f0101ff50000800020000000aff52000c00020001000504044001ff5c00132088909090909090909090909090888888ff64001700014f70656e"
    "4a50482056657220302e32362e332eff90000a0000000000910001ff93c00026a7e4048774000000c00013400013400013005ec0048774008e8f"
    "058774001ed804877400c00015900004f00005401e86ef8857fe43f401439400dfd3f704817400fe0ffedf01423400c0002d480005a7000098f7"
    "fd7edf813b7007ee80e1ef00a05b8d1379b800f7766fefedbddd5bee6df71683d420a021b500ff7f848f7400ffd9"
)


def pixels(seed: int, height: int, width: int, kind: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == 0:
        return rng.integers(-32768, 32768, (height, width)).astype(np.int16)
    if kind == 1:
        return np.full((height, width), rng.integers(-32768, 32768), np.int16)
    return np.cumsum(rng.integers(-3, 4, (height, width)), axis=1).astype(np.int16)


def signed(version: int, height: int, width: int, payload: bytes) -> bytes:
    """A record whose checksum is right, whatever is in it."""
    fields = struct.pack("<3I", version, height, width)
    return fields + struct.pack("<I", zlib.crc32(payload, zlib.crc32(fields))) + payload


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2), CODECS)
def test_round_trip_is_exact(seed, height, width, kind, codec):
    """Slices of any shape and content, in every codec."""
    written = pixels(seed, height, width, kind)
    np.testing.assert_array_equal(records.decode(records.encode(written, codec)), written)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True), CODECS)
def test_no_flipped_bit_is_accepted(seed, place, codec):
    """Wherever it is in the record."""
    record = bytearray(records.encode(pixels(seed, 20, 24, seed % 3), codec))
    bit = int(place * 8 * len(record))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(records.CorruptRecord):
        records.decode(bytes(record))


@both
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_no_cut_is_accepted(codec, kind):
    """Wherever a record ends early, or goes on."""
    record = records.encode(pixels(kind, 9, 11, kind), codec)
    for length in range(len(record)):
        with pytest.raises(records.CorruptRecord):
            records.decode(record[:length])
    for tail in (b"\0", record):
        with pytest.raises(records.CorruptRecord):
            records.decode(record + tail)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_only_corrupt_record(data):
    """Whatever their length."""
    with pytest.raises(records.CorruptRecord):
        records.decode(data)


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 2), st.integers(0, 40), st.integers(0, 40))
def test_random_pixels_under_a_right_checksum_raise_only_corrupt_record(payload, version, height, width):
    """Nor does a decoder end the process."""
    with pytest.raises(records.CorruptRecord):
        records.decode(signed(version, height, width, payload))


def test_layouts_are_the_documented_ones():
    """Read with other code: the head by struct, the pixels by the libraries."""
    written = pixels(3, 5, 7, 0)
    payloads = {}
    for version, codec in ((1, "htj2k"), (2, "zstd")):
        record = records.encode(written, codec)
        found, height, width, checksum = struct.unpack("<4I", record[:16])
        assert (found, height, width) == (version, 5, 7) == records.checked_head(record)
        assert checksum == zlib.crc32(record[:12] + record[16:])
        payloads[codec] = record[16:]
    stream = imagecodecs.htj2k_decode(payloads["htj2k"])
    np.testing.assert_array_equal(stream.astype(np.int32) - 32768, written)
    # Plane b has bit b of every sample (of so small a slice; a larger one is shuffled in blocks of 8 KiB).
    written = np.tile(written, (8, 8))
    shuffled = np.frombuffer(imagecodecs.zstd_decode(records.encode(written, "zstd")[16:]), np.uint8)
    planes = np.unpackbits(shuffled, bitorder="little").reshape(16, -1)
    differences = (planes.astype(np.int64) << np.arange(16)[:, None]).sum(0).reshape(written.shape)
    np.testing.assert_array_equal(np.cumsum(differences, 1).astype(np.uint16).view(np.int16), written)


def test_a_record_of_the_first_release_is_read():
    """Its bytes are here."""
    expected = (np.arange(35).reshape(5, 7) ** 2 * 60 - 32768).astype(np.int16)
    np.testing.assert_array_equal(records.decode(OLD), expected)


@pytest.mark.parametrize("shape", [(64, 48), (61, 47), (1, 9), (9, 1), (1, 1)])
def test_half_a_slice_has_the_low_pass_of_the_wavelet_on_every_other_pixel(shape):
    """With the weights that `decode` names."""
    written = pixels(5, *shape, 2) * np.int16(20)
    half, canvas = records.decode(records.encode(written), reduce=1), np.full((70, 70), 7, np.int16)
    assert half.shape == tuple((side + 1) // 2 for side in shape)
    place = canvas[: half.shape[0], : half.shape[1]]
    np.testing.assert_array_equal(records.decode(records.encode(written), place, 1), half)
    assert (canvas == 7).sum() >= 70 * 70 - half.size
    weights = np.array([-1, 2, 6, 2, -1]) / 8
    mirrored = np.pad(written.astype(float), [(2, 2) if side > 2 else (0, 0) for side in shape], mode="reflect")
    expected = mirrored
    for axis, side in enumerate(shape):
        if side > 2:
            expected = np.apply_along_axis(np.convolve, axis, expected, weights, "valid")
    assert np.abs(half - expected[::2, ::2]).max() <= 2  # whole numbers at every step of the wavelet


def test_half_a_slice_of_the_second_codec_is_refused():
    """It is decoded whole only."""
    with pytest.raises(records.CorruptRecord, match="decoded whole only"):
        records.decode(records.encode(pixels(0, 8, 8, 0), "zstd"), reduce=1)


@both
def test_decodes_into_a_part_of_a_canvas(codec):
    """Rows apart, as in a larger canvas, and rows that follow one another."""
    written, canvas = pixels(1, 6, 9, 0), np.full((16, 16), 7, np.int16)
    assert records.decode(records.encode(written, codec), out=canvas[:6, :9]).base is canvas
    np.testing.assert_array_equal(canvas[:6, :9], written)
    assert (canvas[6:] == 7).all() and (canvas[:, 9:] == 7).all()
    written, canvas[:] = pixels(1, 6, 16, 0), 7
    records.decode(records.encode(written, codec), out=canvas[:6])
    np.testing.assert_array_equal(canvas[:6], written)
    assert (canvas[6:] == 7).all()
    for shape in ((7, 16), (6, 15)):
        with pytest.raises(records.CorruptRecord, match=r"the head says \(6, 16\), expected"):
            records.decode(records.encode(written, codec), out=canvas[: shape[0], : shape[1]])


def test_a_wrong_stream_under_a_right_checksum_is_refused():
    """One of another shape, or of no shape at all."""
    htj2k = imagecodecs.htj2k_encode(np.zeros((4, 4), np.uint16), reversible=True)
    small = imagecodecs.htj2k_encode(np.zeros((4, 5), np.uint8), reversible=True)
    zstd = records.encode(np.zeros((4, 4), np.int16), "zstd")[16:]
    for version, payload in ((1, htj2k), (1, small), (2, zstd)):
        for place in (None, np.zeros((5, 4), np.int16), np.zeros((9, 9), np.int16)[:5, :4]):
            with pytest.raises(records.CorruptRecord, match="the head says"):
                records.decode(signed(version, 5, 4, payload), place)
    with pytest.raises(records.CorruptRecord, match="the head says"):
        records.decode(signed(1, 4, 5, small))
    with pytest.raises(records.CorruptRecord, match="version 3, this code reads 1, 2"):
        records.decode(signed(3, 4, 4, htj2k))
    for version in (1, 2):
        with pytest.raises(records.CorruptRecord, match="cannot be decoded"):
            records.decode(signed(version, 4, 4, b"junk"))


@pytest.mark.parametrize("place", [False, True])
def test_a_bomb_takes_no_more_memory_than_the_head_says(place):
    """256 MiB behind a head of 32 x 32 pixels; and a head of more than there is memory."""
    bombs = {
        1: imagecodecs.htj2k_encode(np.zeros((16_384, 8_192), np.uint16), reversible=True),
        2: imagecodecs.zstd_encode(bytes(1 << 28), level=1),
    }
    for version, bomb in bombs.items():
        record = signed(version, 32, 32, bomb)
        tracemalloc.start()
        try:
            with pytest.raises(records.CorruptRecord, match="cannot be decoded"):
                records.decode(record, np.zeros((40, 40), np.int16)[:32, :32] if place else None)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()
        with pytest.raises(records.CorruptRecord, match="the head says"):
            records.decode(signed(version, 2**32 - 1, 2**32 - 1, bomb))


@pytest.mark.parametrize("wrong", [np.zeros((2, 2), np.uint16), np.zeros(4, np.int16), np.zeros((0, 3), np.int16)])
def test_refuses_what_is_no_slice(wrong):
    """Another dtype, another rank, or nothing in it."""
    with pytest.raises(TypeError, match="int16"):
        records.encode(wrong)
