"""A DICOM file -> the dataset in it, in bounded memory, or a refusal."""

import functools
import pathlib
import warnings
import zlib
from typing import Any

import pydicom
from pydicom import uid
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag

from curia2_jax.data.readers.volume import Refusal

TELLING = ("SOPClassUID", "Modality", "PatientID", "StudyInstanceUID")  # elements of a file without a preamble
_CHUNK = 1 << 20
_MOST_INFLATED = 256 << 20  # bytes that a deflated dataset may unpack to, all of which pydicom holds at once


tag_of = functools.cache(Tag)  # pydicom looks each name up anew


class quiet(warnings.catch_warnings):
    """No warnings from pydicom: what it would warn of becomes a refusal or does not matter."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")


def parse(path: pathlib.Path, **options) -> pydicom.Dataset:
    """Dataset of a file, its elements unparsed.

    Raises:
      Refusal: it is empty, damaged, unreadable or no DICOM.
    """
    try:
        if path.stat().st_size == 0:
            raise Refusal("corrupt", "an empty file")
        _check_deflated(path)
        try:
            return pydicom.dcmread(path, **options)
        except InvalidDicomError:
            dataset = pydicom.dcmread(path, force=True, **options)
            if not any(tag in dataset for tag in TELLING):
                raise Refusal("not_an_image", "no DICOM preamble and no element that a DICOM image has") from None
            return dataset
    except Refusal:
        raise
    except OSError as error:
        raise Refusal("unreadable" if error.errno else "corrupt", error.strerror or str(error)) from None
    except Exception as error:  # pydicom parses lazily and may raise anything on malformed bytes
        raise Refusal("corrupt", f"{type(error).__name__}: {error}") from None


def element(dataset: pydicom.Dataset, tag: str) -> Any:
    """Value of an element, None when it is missing or empty. pydicom parses values when they are first asked for, and
    may raise any exception on malformed bytes: that is a Refusal here."""
    number = tag_of(tag)
    try:
        return dataset[number].value if number in dataset else None
    except Exception as error:
        raise Refusal("corrupt", f"{tag}: {error}") from None


def _check_deflated(path: pathlib.Path) -> None:
    """That the deflated dataset of a file ends as it should and fits in memory (PS3.5 A.5)."""
    with open(path, "rb") as file:
        start = file.read(1024)  # the transfer syntax is among the first elements
        if uid.DeflatedExplicitVRLittleEndian.encode() not in start:
            return
        file.seek(_behind_meta(start))
        inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        try:
            while not inflate.eof:
                packed = inflate.unconsumed_tail or file.read(_CHUNK)
                if not packed:
                    raise Refusal("corrupt", "the deflated dataset ends before its last block")
                size += len(inflate.decompress(packed, _CHUNK))
                if size > _MOST_INFLATED:
                    raise Refusal("corrupt", f"a deflated dataset of more than {_MOST_INFLATED >> 20} MiB")
        except zlib.error as error:
            raise Refusal("corrupt", f"deflated dataset: {error}") from None


def _behind_meta(start: bytes) -> int:
    """Byte behind the elements of group 2, which are explicit and little endian (PS3.10 7.1)."""
    at = 132
    while start[at : at + 2] == b"\x02\x00":
        long = start[at + 4 : at + 6] in (b"OB", b"OW", b"UN", b"SQ", b"UT")
        at += (
            12 + int.from_bytes(start[at + 8 : at + 12], "little")
            if long
            else 8 + int.from_bytes(start[at + 6 : at + 8], "little")
        )
    return at
