"""What lies in an archive: folders of any depth, files and zip archives -> scans, each of which is one series to
read."""

import collections.abc
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import stat
from typing import NamedTuple

from curia2_jax.data import readers
from curia2_jax.data.readers import zips
from curia2_jax.data.readers.faults import machine_fault
from curia2_jax.data.readers.series import Found
from curia2_jax.data.readers.volume import Header, Refusal, Volume

Count = collections.abc.Callable[[Header], int]  # bounds the slices that a volume gives; raises Refusal
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how Python writes such bytes of a name


class Refused(NamedTuple):
    """What gives no slices: its `name`, a key of REASONS, and what was found; the number of `files` that it is, their
    `size` in bytes, and one of them that could be looked at."""

    name: str
    reason: str
    detail: str
    files: int = 1
    size: int = 0
    example: str = ""


@dataclasses.dataclass
class Scan:
    """One volume to read: `name` is where it came from, `series` tells it from every other series, `slices` bounds the
    slices it can give. `labels` are (file, label set) of its label maps, `size` the bytes of its files."""

    name: str
    format: str
    files: list[str]
    series: str
    frame: int
    slices: int
    labels: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    size: int = 0

    def refused(self, reason: str, detail: str) -> Refused:
        """This scan as one that gives no slices."""
        return Refused(self.name, reason, detail, len(self.files), self.size, self.files[len(self.files) // 2])

    @property
    def gathered(self) -> bool:
        """Whether its format spreads a series over many files."""
        return readers.reader_of(self.format).count_frames is not None


def walk(root: pathlib.Path) -> collections.abc.Iterator[str | Refused]:
    """Files below a folder, or the file itself, in an order that depends on names alone; and what cannot be walked:
    folders that cannot be entered, and links to folders, which are not followed."""
    if not root.is_dir():
        yield str(readers.header_of(root) or root)
        return
    folders = [str(root)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if fault := machine_fault(error):
                raise fault from error
            yield Refused(folder, "unreadable", f"a folder: {error.strerror}")
            continue
        inner = []
        for entry in entries:
            if _is_folder(entry):
                inner.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                yield Refused(entry.path, "other_file", "a link to a folder; links to folders are not followed")
            else:
                yield entry.path
        folders += reversed(inner)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False  # `look` tells what is wrong with it


def look(file: str, count: Count) -> list[Found | Refused]:
    """What a file is, from its header: what belongs to a scan, and what does not.

    Raises:
      MachineFault: the machine cannot read on.
    """
    path, size = pathlib.Path(file), 0
    try:
        size = check_plain(path)
        if path.suffix.lower() == zips.SUFFIX:
            return _look_into(file, count)
    except Refusal as refusal:
        return [Refused(file, refusal.reason, refusal.detail, 1, size, file)]
    item = _look(path, file, size, count)
    return [] if item is None else [item]


def check_plain(path: pathlib.Path) -> int:
    """That a path, and what is read with it, are files with an end: no pipe, socket or device; returns their bytes.

    Raises:
      Refusal: one is not.
    """
    size = 0
    for one in [path, *_data_of(path)]:
        try:
            found = os.stat(one)
        except (OSError, ValueError) as error:
            if fault := machine_fault(error):
                raise fault from error
            raise Refusal("unreadable", getattr(error, "strerror", None) or str(error)) from None
        mode = found.st_mode
        if not stat.S_ISREG(mode):
            kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
            raise Refusal("other_file", f"{kinds.get(stat.S_IFMT(mode), 'a device')}, no file")
        size += found.st_size
    return size


def _data_of(path: pathlib.Path) -> list[pathlib.Path]:
    """The files beside a header that can hold its voxels."""
    ends = [end for reader in readers.READERS for end in reader.detached.get(path.suffix.lower(), ())]
    paths = (path.with_suffix(change(end)) for end in ends for change in (str.lower, str.upper))
    return [one for one in dict.fromkeys(paths) if os.path.lexists(one)]


@contextlib.contextmanager
def _plainly_named(paths: list[pathlib.Path]) -> collections.abc.Iterator[list[pathlib.Path]]:
    """Links with names in UTF-8 to the files whose names are not: libraries in C++ end the process over such a name."""
    if not any(_NOT_UTF8.search(str(path)) for path in paths):
        yield paths
        return
    with zips.temporary_folder() as folder:
        out = []
        for number, path in enumerate(paths):
            (folder / str(number)).mkdir()
            for one in [path, *_data_of(path)]:
                (folder / str(number) / _NOT_UTF8.sub("_", one.name)).symlink_to(one.absolute())
            out.append(folder / str(number) / _NOT_UTF8.sub("_", path.name))
        yield out


@contextlib.contextmanager
def opened(files: list[str]) -> collections.abc.Iterator[list[pathlib.Path]]:
    """Paths of files, those inside of archives unpacked into a folder that is removed afterwards.

    Raises:
      Refusal: an archive or a member is damaged.
      MachineFault: there is no room to unpack them.
    """
    with zips.unpacked(files) as paths, _plainly_named(paths) as plain:
        yield plain


def _look(path: pathlib.Path, file: str, size: int, count: Count) -> Found | Refused | None:
    """`path` is where the file lies and `file` its name; None for the voxels of a header beside it."""
    try:
        found = _classify(path, file, count)
        return None if found is None else dataclasses.replace(found, size=size)
    except Exception as error:
        if fault := machine_fault(error):
            raise fault from error
        if isinstance(error, Refusal):
            return Refused(file, error.reason, error.detail, 1, size, file)
        return Refused(file, "reader_failed", f"{type(error).__name__}: {error}", 1, size, file)


def _classify(path: pathlib.Path, file: str, count: Count) -> Found | None:
    if readers.header_of(path):
        return None
    reader = readers.reader_for(path)
    if reader is not None:
        with _plainly_named([path]) as (plain,):
            header = reader.look(plain)
        group = file
        if reader.count_frames:  # a series without a name is what lies in one folder
            group = header.series or folder_of(file)
        depth = 1 if header.across is None else header.shape[header.across]
        stack = (header.owner, header.stack, header.place)
        return Found(file, reader.format, group, header.frames, count(header), depth, *stack)
    if path.stat().st_size and not os.access(path, os.R_OK):
        raise Refusal("unreadable", "no permission")
    raise Refusal("other_file", path.suffix or "no suffix")


def _look_into(file: str, count: Count) -> list[Found | Refused]:
    """One member unpacked at a time. A damaged one stays with its series, which is refused when it is read."""
    out: list[Found | Refused] = []
    with zips.Archive(file) as archive, zips.temporary_folder() as folder:
        for number, (member, info) in enumerate(archive.members.items()):
            name, size = f"{file}{zips.INSIDE}{member}", info.compress_size
            if member.lower().endswith(zips.SUFFIX):
                out.append(Refused(name, "other_file", "an archive inside of an archive", 1, size))
                continue
            try:
                path, fault = archive.unpack(member, folder / str(number))
            except Refusal as refusal:
                out.append(Refused(name, refusal.reason, refusal.detail, 1, size))
                continue
            item = _look(path, name, size, count)
            if item is not None and fault is not None and not isinstance(item, Found):
                item = Refused(name, fault.reason, fault.detail, 1, size)
            out += [] if item is None else [item]
            shutil.rmtree(path.parent, ignore_errors=True)
    return out


def scans(items: list[Found], roots: list[pathlib.Path], every_frame: bool) -> list[Scan]:
    """The scans of one series, whose files are `items`, one a frame."""
    files = sorted(item.file for item in items)
    first = items[0]
    name = relative(files[0], roots)
    if len(files) > 1:
        in_zip = zips.split(files[0]) is not None
        name = relative(folder_of(files[0]), roots) if in_zip else os.path.dirname(name) or name
    own = sum(item.depth for item in items) if every_frame else len(items)
    slices = own + max(item.slices for item in items) if len(items) > 1 else first.slices
    series = relative(first.group, roots) if first.group == files[0] else first.group
    size = sum(item.size for item in items)
    return [
        Scan(name, first.format, files, series if frame == 0 else f"{series}#{frame}", frame, slices, size=size)
        for frame in range(first.frames if every_frame else 1)
    ]


def folder_of(file: str) -> str:
    """The folder of a file, or of a member in its archive; of one at the top of an archive, that."""
    inside = zips.split(file)
    if inside is None:
        return os.path.dirname(file)
    archive, member = inside
    return f"{archive}{zips.INSIDE}{os.path.dirname(member)}" if "/" in member else archive


def relative(file: str, roots: list[pathlib.Path]) -> str:
    """Path of a file below the root that holds it, with the name of the root in front where there are several, and its
    whole path where several are called the same."""
    for root in roots:
        with contextlib.suppress(ValueError):
            inner = pathlib.Path(file).relative_to(root)
            inner = inner if inner.parts else pathlib.Path(root.name)
            alike = sum(other.name == root.name for other in roots)
            return str(inner if len(roots) == 1 else pathlib.Path(root.name if alike == 1 else root, inner))
    return file


def read(scan: Scan, orientation: str | None = None) -> Volume:
    """Volume of a scan.

    Raises:
      Refusal: its files are no volume.
    """
    with opened(scan.files) as paths:
        return readers.reader_of(scan.format).read(paths, scan.frame, orientation)


def each_frame(scan: Scan) -> list[Scan]:
    """The scan once for each of its volumes, where only the files of the series together tell how many these are.

    Raises:
      Refusal: its files are no volumes.
    """
    count_frames = readers.reader_of(scan.format).count_frames
    if count_frames is None:
        return [scan]
    with opened(scan.files) as paths:
        count = count_frames(paths)
    names = [scan.series, *(f"{scan.series}#{frame}" for frame in range(1, count))]
    return [dataclasses.replace(scan, frame=frame, series=name) for frame, name in enumerate(names)]


def read_any(path: pathlib.Path) -> Volume:
    """Volume of one file, or of a folder with the files of one series.

    Raises:
      Refusal: it is of no known format, or no volume.
    """
    if path.is_dir():
        files = [pathlib.Path(file) for file in walk(path) if isinstance(file, str) and os.path.isfile(file)]
        for reader in readers.READERS:
            claimed = [file for file in files if reader.count_frames and reader.claims(file)]
            if claimed:
                return reader.read(claimed)
        raise Refusal("other_file", "a folder without the files of a series")
    with opened([str(path)]) as (file,):
        check_plain(file)
        suited = readers.reader_for(file)
        if suited is None:
            raise Refusal("other_file", path.suffix or "no suffix")
        return suited.read([file])
