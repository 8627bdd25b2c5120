"""Zip archives. A member is a file with the name ARCHIVE!MEMBER, unpacked into a temporary folder while it is read.

What is wrong with one member is a refusal of that member. Names of members never decide where something is written.
"""

import bisect
import collections.abc
import contextlib
import errno
import os
import pathlib
import posixpath
import re
import shutil
import stat
import tempfile
import zipfile

from curia2_jax.data import readers
from curia2_jax.data.readers import itk_header
from curia2_jax.data.readers.faults import MachineFault, machine_fault
from curia2_jax.data.readers.volume import Refusal
from curia2_jax.data.readers.zip_directory import DirectoryFile

SUFFIX, INSIDE = ".zip", "!"
# An archive or member is a bomb when it unpacks to more than so many bytes and so many times its size. Deflate reaches
# 1030 times with zeros, whole scans 2 to 20 times, label maps 100 to 1000 times but never gigabytes.
_BOMB_BYTES, _BOMB_RATIO = 4 << 30, 200
_CHUNK, _SMALL_CHUNK = 1 << 20, 512
_HEADER = 1 << 16  # bytes at the start of a member in which it may name another
_NAME_BYTES = 200  # of a file that is unpacked; file systems take 255


def split(file: str) -> tuple[str, str] | None:
    """(archive, member) of a member's name, None for any other file.

    An exclamation mark separates only where what stands before it ends in .zip and is a file.
    """
    for mark in re.finditer(re.escape(INSIDE), file):
        archive = file[: mark.start()]
        if archive.lower().endswith(SUFFIX) and os.path.isfile(archive):
            return archive, file[mark.end() :]
    return None


class Archive:
    """An open archive, as a context manager.

    Raises:
      Refusal: it is damaged, or a bomb.
    """

    def __init__(self, path: str):
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(DirectoryFile(path))
                self._zip = stack.enter_context(zipfile.ZipFile(file))
            except Exception as error:
                raise _refusal(error) from error
            file.is_open = True
            self._open = stack.pop_all()
        # Of members with one name the last is the one that is read.
        self.members = {m.filename: m for m in self._zip.infolist() if not m.is_dir()}
        self._sorted = sorted(self.members)
        if _is_bomb(sum(m.file_size for m in self.members.values()), os.path.getsize(path)):
            self._open.close()
            raise Refusal("unsafe_archive", f"unpacks to more than {_BOMB_RATIO} times its size")

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_) -> None:
        self._open.close()

    def unpack(self, name: str, folder: pathlib.Path) -> tuple[pathlib.Path, Refusal | None]:
        """Unpack a member, and the files that belong to its header, into `folder`; returns where it lies and what was
        found wrong with its bytes.

        Raises:
          Refusal: it cannot be unpacked.
          MachineFault: there is no room.
        """
        if name not in self.members:
            raise Refusal("corrupt", "zip: the archive has no such member")
        faults = {one: self._unpack(self.members[one], folder / _on_disk(one)) for one in self._with_data(name)}
        return folder / _on_disk(name), next((fault for fault in faults.values() if fault), None)

    def _unpack(self, member: zipfile.ZipInfo, target: pathlib.Path) -> Refusal | None:
        _check(member)
        with _place(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            room = shutil.disk_usage(target.parent).free
            if member.file_size > room:
                needed = f"a member takes {member.file_size:,} bytes, {room:,} are free"
                raise MachineFault(errno.ENOSPC, needed, tempfile.gettempdir())
        fault = self._copy(member, target, _CHUNK)
        if fault is not None:
            self._copy(member, target, _SMALL_CHUNK)  # a damaged block is lost whole, and may hold the header
        return fault

    def _copy(self, member: zipfile.ZipInfo, target: pathlib.Path, chunk: int) -> Refusal | None:
        """Copies what can be read of a member; returns what is wrong with the rest."""
        with _place(target.parent):
            sink = open(target, "wb", buffering=0)  # noqa: SIM115
        with sink:
            try:
                with self._zip.open(member) as source:  # stops at the promised size and checks the CRC
                    while block := source.read(chunk):
                        with _place(target.parent):
                            sink.write(block)
            except Exception as error:
                return _refusal(error)
        return None

    def _with_data(self, name: str) -> list[str]:
        """The member, and those of its folder that are the same scan: a header and its voxels share a stem."""
        suffix = os.path.splitext(name)[1]
        parts = {end for reader in readers.READERS for head, data in reader.detached.items() for end in (head, *data)}
        if suffix.lower() not in parts:
            return [name]
        stem = f"{name.removesuffix(suffix).removesuffix('.raw')}."
        first = bisect.bisect_left(self._sorted, stem)
        last = bisect.bisect_left(self._sorted, stem[:-1] + "/")  # the character after the full stop
        alike = [one for one in self._sorted[first:last] if "/" not in one[len(stem) :]]
        named = posixpath.join(posixpath.dirname(name), self._data_file(name))
        return [name, *(one for one in dict.fromkeys([*alike, named]) if one != name and one in self.members)]

    def _data_file(self, name: str) -> str:
        """The data file that a header names, "" where that is none."""
        try:
            with self._zip.open(name) as file:
                return itk_header.data_file(file.read(_HEADER))
        except Exception:  # what is wrong with it shows when it is unpacked
            return ""


def _is_bomb(unpacked: int, packed: int) -> bool:
    return unpacked > _BOMB_BYTES and unpacked > _BOMB_RATIO * max(packed, 1)


def _check(member: zipfile.ZipInfo) -> None:
    """That a member is a plain file inside of its archive, of a size that can be meant."""
    path = pathlib.PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", member.filename):
        raise Refusal("unsafe_archive", "its name leads out of the archive")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise Refusal("unsafe_archive", "a link" if kind == stat.S_IFLNK else "no plain file")
    if _is_bomb(member.file_size, member.compress_size):
        raise Refusal("unsafe_archive", f"unpacks to more than {_BOMB_RATIO} times its size")
    if member.flag_bits & 1:
        raise Refusal("corrupt", "zip: encrypted, a password is required")


def _on_disk(name: str) -> str:
    """Name of the file that a member is unpacked to: its own, where the file system takes it."""
    own = posixpath.basename(name.replace("\\", "/"))
    with contextlib.suppress(UnicodeEncodeError, ValueError):
        if own not in ("", ".", "..") and "\0" not in own and len(os.fsencode(own)) <= _NAME_BYTES:
            return own
    return "_" + re.sub(r"[^\w.-]", "_", own, flags=re.ASCII)[-_NAME_BYTES // 2 :]


def _refusal(error: Exception) -> Refusal:
    """What a damaged archive or member is refused for; raises MachineFault where the machine is at fault."""
    if fault := machine_fault(error):
        raise fault from error
    if isinstance(error, OSError) and error.errno:
        return Refusal("unreadable", f"zip: {error.strerror}")
    return Refusal("corrupt", f"zip: {error}")


@contextlib.contextmanager
def _place(folder: pathlib.Path | None = None) -> collections.abc.Iterator[None]:
    """Every error of the block is one of the temporary folder."""
    try:
        yield
    except MachineFault:
        raise
    except OSError as error:
        where = str(folder or os.environ.get("TMPDIR", ""))
        raise MachineFault(error.errno or errno.EIO, error.strerror or str(error), where) from error


@contextlib.contextmanager
def temporary_folder() -> collections.abc.Iterator[pathlib.Path]:
    """A folder below TMPDIR that is removed afterwards. Raises MachineFault."""
    with _place():
        folder = tempfile.mkdtemp(prefix="curia-")
    try:
        yield pathlib.Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def unpacked(files: list[str]) -> collections.abc.Iterator[list[pathlib.Path]]:
    """Paths of files, those inside of archives unpacked into a folder that is removed afterwards.

    Raises:
      Refusal: an archive or a member is damaged.
      MachineFault: there is no room to unpack them.
    """
    inside = [split(file) for file in files]
    if not any(inside):
        yield [pathlib.Path(file) for file in files]
        return
    with temporary_folder() as folder, contextlib.ExitStack() as stack:
        archives: dict[str, Archive] = {}
        paths = []
        for number, (file, where) in enumerate(zip(files, inside, strict=True)):
            if where is None:
                paths.append(pathlib.Path(file))
                continue
            archive, member = where
            if archive not in archives:
                archives[archive] = stack.enter_context(Archive(archive))
            path, fault = archives[archive].unpack(member, folder / str(number))
            if fault is not None:
                raise fault
            paths.append(path)
        yield paths
