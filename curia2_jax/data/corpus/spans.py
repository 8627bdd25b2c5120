"""Where each record lies in a shard, so that one read of the file gets it.

An ArrayRecord reader loads the index of a whole shard before its first record: with more shards than it keeps open,
that is a millisecond a read and 25 bytes of memory a record. The place of a record never changes, so it is kept in the
corpus index, and reading costs neither. ArrayRecord files are Riegeli files (its doc/riegeli_records_file_format.md):
chunks with a 40-byte header, interrupted by a 24-byte header at every multiple of 64 KiB. Shards hold one uncompressed
record a chunk. Records carry their own checksum, which a wrong place cannot match.
"""

import collections
import errno
import os
import pathlib
import struct
import threading

import numpy as np

from curia2_jax.data.corpus.records import CorruptRecord
from curia2_jax.data.corpus.shards import from_example
from curia2_jax.errors import UserError

_BLOCK, _BLOCK_HEAD = 1 << 16, 24
_CHUNK_HEAD = struct.Struct("<5Q")  # hash, size of the data, hash of the data, kind and records, size when decoded
_SIMPLE = ord("r")
REMEDY = "put it back from a copy of the corpus, then call again"


def _after(place: int, length: int) -> int:
    """Byte of the file that follows `length` bytes of content from `place` on."""
    place = max(place, place // _BLOCK * _BLOCK + _BLOCK_HEAD)
    room = _BLOCK - place % _BLOCK
    if length < room:
        return place + length
    blocks, rest = divmod(length - room, _BLOCK - _BLOCK_HEAD)
    return (place // _BLOCK + 1 + blocks) * _BLOCK + (_BLOCK_HEAD + rest if rest else 0)


def _content(data: bytes, place: int) -> bytes:
    """`data`, read at `place`, without the headers of blocks."""
    first = -place % _BLOCK  # bytes before the next header
    if place % _BLOCK < _BLOCK_HEAD:
        first -= _BLOCK
    if first >= len(data):
        return data
    pieces = [data[: max(first, 0)]]
    pieces += [data[start + _BLOCK_HEAD : start + _BLOCK] for start in range(first, len(data), _BLOCK)]
    return b"".join(pieces)


def locate(path: pathlib.Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(offset int64, span int32) of the first `count` records of a shard.

    Raises:
      CorruptRecord: the shard has fewer.
    """
    offsets, spans = np.empty(count, np.int64), np.empty(count, np.int32)
    with open(path, "rb", buffering=0) as file:
        size, place, found = os.fstat(file.fileno()).st_size, 0, 0

        def read(place: int, length: int) -> bytes:
            return _content(os.pread(file.fileno(), _after(place, length) - place, place), place)

        while found < count:
            head = read(place, _CHUNK_HEAD.size)
            if place >= size or len(head) < _CHUNK_HEAD.size:
                raise CorruptRecord(f"{path.name}: {found} records, not {count}")
            _, length, _, kind, _ = _CHUNK_HEAD.unpack(head)
            body = _after(place, _CHUNK_HEAD.size)
            if kind == _SIMPLE | 1 << 8:
                sizes = read(body, 2)[1]  # after the kind of compression: bytes of the list of sizes, one number here
                start = _after(body, 2 + sizes)
                offsets[found], spans[found] = start, _after(start, length - 2 - sizes) - start
                found += 1
            place = _after(body, length)
    return offsets, spans


class _OpenFile:
    """A file descriptor that is closed when the last thread is done with it."""

    def __init__(self, path: pathlib.Path):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def check_sizes(paths: list[pathlib.Path], ends: list[int], total: int) -> None:
    """Whether all shards are there and whole, by their sizes: `ends` are the bytes after the last record of each, and
    `total` is what they hold together.

    Raises:
      UserError: one is not.
    """
    found = 0
    for path, end in zip(paths, ends, strict=True):
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; {REMEDY}") from None
        if size < end:
            raise UserError(f"{path}: {size:,} bytes, its last record ends at {end:,}; {REMEDY}")
        found += size
    if found != total:
        raise UserError(f"{paths[0].parent}: shards of {found:,} bytes, the contract says {total:,}; copy them anew")


class SpanReader:
    """Reads records at known places of many files, opened when first asked for, a bounded number at once.
    Thread-safe."""

    def __init__(self, paths: list[pathlib.Path], max_open: int = 256):
        self._paths, self._max_open = paths, max_open
        self._open: collections.OrderedDict[int, _OpenFile] = collections.OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, span: int) -> memoryview:
        """Record at a place that `locate` found.

        Raises:
          CorruptRecord: there is none, or the disk cannot deliver it.
          UserError: the file is lost, or ends before.
        """
        path = self._paths[shard]
        try:
            with self._lock:
                file = self._open.get(shard)
                if file is None:
                    file = self._open[shard] = _OpenFile(path)
                    if len(self._open) > self._max_open:
                        self._open.popitem(last=False)
                else:
                    self._open.move_to_end(shard)
            data = os.pread(file.descriptor, span, offset)
        except OSError as error:
            if error.errno == errno.EIO:  # a bad sector
                raise CorruptRecord(f"{path.name}: {error.strerror}") from error
            raise UserError(f"{path}: {error.strerror}; {REMEDY}") from error
        if len(data) < span:
            raise UserError(f"{path}: ends at a record from byte {offset:,} to {offset + span:,}; {REMEDY}")
        return from_example(_content(data, offset))
