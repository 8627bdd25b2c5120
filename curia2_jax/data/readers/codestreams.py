"""What the compressed pixels of DICOM say of themselves: whether they are whole, of the size that the header promises,
and without loss. The transfer syntax and the tags beside them are not believed.

JPEG: ITU-T T.81 B.2; JPEG-LS: ITU-T T.87 C.2; JPEG 2000: ITU-T T.800 A, and T.814 for HTJ2K.
"""

import collections.abc
import re

from curia2_jax.data.readers.volume import Refusal

_JPEG, _JPEG2000, _JP2 = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "
_END = b"\xff\xd9"  # of all of them; entropy-coded data never have it
# What is no pixel behind the start of a scan, but for restarts: JPEG stuffs a byte behind 0xff, JPEG-LS a bit.
_MARKER, _LS_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]"), re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
_LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)  # Huffman and arithmetic
_JPEG_LS_FRAME, _SCAN = 0xF7, 0xDA
_OTHER_FRAMES = (0xC0, 0xC1, 0xC2, 0xC5, 0xC6, 0xC9, 0xCA, 0xCD, 0xCE)  # with a cosine transform


def check(stream: bytes, size: tuple[int, int], bits: int = 16) -> None:
    """That a codestream is a whole and lossless one of (rows, columns) and at most `bits`, from its headers. Other
    bytes pass.

    Decoders may never return from a JPEG-LS stream without an end (team-charls/charls#334), so this comes before them.

    Raises:
      Refusal: it is not.
    """
    if stream[: len(_JP2)] == _JP2:
        start = stream.find(_JPEG2000)
        if start < 0:
            raise Refusal("corrupt", "a JP2 file without a codestream")
        stream = stream[start:]
    try:
        if stream[: len(_JPEG2000)] == _JPEG2000:
            _check_jpeg2000(stream, size)
        elif stream[: len(_JPEG)] == _JPEG:
            _check_jpeg(stream, size, bits)
    except IndexError:
        raise Refusal("corrupt", "a codestream that ends in its header") from None


def _check_jpeg(stream: bytes, size: tuple[int, int], bits: int) -> None:
    is_ls = has_table = False
    for marker, start, body in _segments(stream, 2, _SCAN):
        has_table |= marker == 0xC4
        if marker in _OTHER_FRAMES:
            raise Refusal("lossy_compression", f"JPEG with a cosine transform (SOF{marker - 0xC0})")
        if marker in _LOSSLESS_FRAMES or marker == _JPEG_LS_FRAME:
            is_ls = marker == _JPEG_LS_FRAME
            _check_size((_word(body, 1), _word(body, 3)), size)
            if not 2 <= body[0] <= bits or body[5] != 1:
                raise Refusal("corrupt", f"a JPEG codestream of {body[5]} components of {body[0]} bits")
        if marker == _SCAN:
            after = 1 + 2 * body[0]  # NEAR or the predictor; then the interleave or Se; then the point transform
            if is_ls and body[after]:
                raise Refusal("lossy_compression", f"JPEG-LS with NEAR {body[after]}")
            if not is_ls and not (has_table and body[0] == 1 and 1 <= body[after] <= 7):
                raise Refusal("corrupt", f"a JPEG codestream with predictor {body[after]}")
            if not is_ls and body[after + 2] & 15:
                raise Refusal("lossy_compression", f"JPEG without its {body[after + 2] & 15} lowest bits")
            behind = (_LS_MARKER if is_ls else _MARKER).search(stream, start)
            if behind is None or behind[0] != _END:
                raise Refusal("corrupt", "a JPEG codestream whose pixels do not go on to its end")
            return
    raise Refusal("corrupt", "a JPEG codestream without pixels")


def _check_jpeg2000(stream: bytes, size: tuple[int, int]) -> None:
    for marker, start, body in _segments(stream, 2, 0x93):
        if marker == 0x51:
            _check_size(tuple(_long(body, at) - _long(body, at + 8) for at in (6, 2)), size)
            wide = _word(body, 34) > 256
        if (marker == 0x52 and body[9] == 0) or (marker == 0x53 and body[7 if wide else 6] == 0):
            raise Refusal("lossy_compression", "JPEG 2000 with the irreversible 9/7 transform")
        if marker == 0x93:
            if stream.rfind(_END) < start:
                raise Refusal("corrupt", "a JPEG 2000 codestream without its end")
            return
    raise Refusal("corrupt", "a JPEG 2000 codestream without pixels")


def _segments(stream: bytes, at: int, last: int) -> collections.abc.Iterator[tuple[int, int, bytes]]:
    """(marker, place behind it, what its length covers) up to the marker `last`, behind which there are pixels."""
    while at + 2 <= len(stream):
        if stream[at] != 0xFF:
            raise Refusal("corrupt", f"no marker at byte {at} of a codestream")
        marker = stream[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0x93:  # start of data, which has no length
            yield marker, at + 2, b""
            return
        if 0xD0 <= marker <= 0xD9:  # restarts, a start or an end, none of which belongs into a header
            raise Refusal("corrupt", f"marker {marker:x} in the header of a codestream")
        length = max(2, _word(stream, at + 2))
        yield marker, at + 2 + length, stream[at + 4 : at + 2 + length]
        if marker == last:
            return
        at += 2 + length


def _word(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _long(data: bytes, at: int) -> int:
    return _word(data, at) << 16 | _word(data, at + 2)


def _check_size(found: tuple[int, ...], size: tuple[int, int]) -> None:
    if tuple(found) != size and 0 not in found:  # a JPEG may leave its number of lines to a later marker
        raise Refusal(
            "corrupt", f"a codestream of {found[0]} x {found[1]} pixels, the header says {size[0]} x {size[1]}"
        )
