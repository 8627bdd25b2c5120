"""The central directory of a zip archive, changed so that one odd entry does not lose the others: Python's zipfile
raises for the archive what is wrong with an entry. APPNOTE 6.3.10, 4.3.12.
"""

import io
import pathlib
import struct

_ENTRY, _ENTRY_SIZE = b"PK\x01\x02", 46
_HEADER, _HEADER_SIZE = b"PK\x03\x04", 30
_UTF8, _NEWEST = 0x800, 63  # flag of a name; version needed to extract above which zipfile gives up
_ZIP64, _SEE_ZIP64 = 1, 0xFFFFFFFF
_NO_METHOD = 0xFFFF  # of compression, which fails when the member is opened


class DirectoryFile(io.BufferedReader):
    """An archive whose directory reads as `mended`, until `is_open` is set. The headers in front of members say of
    their names what the directory does."""

    is_open = False

    def __init__(self, path: str | pathlib.Path):
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not self.is_open and data.startswith(_ENTRY):
            return mended(data)
        return self._header(data) if size == _HEADER_SIZE and data.startswith(_HEADER) else data

    def _header(self, data: bytes) -> bytes:
        if len(data) < _HEADER_SIZE:
            return data
        flags, length = (struct.unpack_from("<H", data, at)[0] for at in (6, 26))
        if not flags & _UTF8:
            return data
        at = self.tell()
        name = super().read(length)
        self.seek(at)
        return data if _is_utf8(name) else data[:6] + struct.pack("<H", flags & ~_UTF8) + data[8:]


def mended(directory: bytes) -> bytes:
    """A directory in which names that are not UTF-8 do not claim to be, versions are those that zipfile knows, and
    entries with damaged fields cannot be opened."""
    out, at = bytearray(directory), 0
    while directory[at : at + 4] == _ENTRY and at + _ENTRY_SIZE <= len(directory):
        version, flags = struct.unpack_from("<HH", directory, at + 6)
        packed, size = struct.unpack_from("<II", directory, at + 20)
        lengths = struct.unpack_from("<3H", directory, at + 28)
        (place,) = struct.unpack_from("<I", directory, at + 42)
        end = at + _ENTRY_SIZE + lengths[0]
        if flags & _UTF8 and not _is_utf8(directory[at + _ENTRY_SIZE : end]):
            struct.pack_into("<H", out, at + 8, flags & ~_UTF8)
        struct.pack_into("<H", out, at + 6, min(version, _NEWEST))
        extra = directory[end : end + lengths[1]]
        if not _is_whole(extra, sum(field == _SEE_ZIP64 for field in (size, packed, place))):
            struct.pack_into("<H", out, at + 10, _NO_METHOD)
            struct.pack_into("<II", out, at + 20, 0, 0)
            out[end : end + len(extra)] = bytes(len(extra))  # fields of number 0 and no length
        at = end + lengths[1] + lengths[2]
    return bytes(out)


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_whole(extra: bytes, wide: int) -> bool:
    """Whether extra fields end where they say, and those of zip64 have the `wide` numbers that the entry leaves to
    them."""
    while len(extra) >= 4:
        number, length = struct.unpack_from("<HH", extra)
        if length + 4 > len(extra) or (number == _ZIP64 and length < 8 * wide):
            return False
        extra = extra[length + 4 :]
    return True
