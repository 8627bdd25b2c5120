"""What lies in an archive: folders of any depth, files and zip archives -> scans, each of which is one series to
read."""

import collections.abc
import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
import zipfile

from curia2_jax.data import readers
from curia2_jax.data.readers.series import Found, series_of
from curia2_jax.data.readers.volume import Header, Refusal, Volume

# A file inside of an archive is written ARCHIVE!MEMBER.
INSIDE = "!"
_ZIP_BYTES = 64 << 30  # most that an archive may unpack to

Count = collections.abc.Callable[[Header], int]  # bounds the slices that a volume gives; raises Refusal


@dataclasses.dataclass
class Scan:
    """One volume to read: `name` is where it came from, `series` tells it from every other series, `slices` bounds the
    slices it can give. `labels` are (file, label set) of its label maps."""

    name: str
    format: str
    files: list[str]
    series: str
    frame: int
    slices: int
    labels: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    @property
    def gathered(self) -> bool:
        """Whether its format spreads a series over many files."""
        return readers.reader_of(self.format).count_frames is not None


def walk(root: pathlib.Path) -> collections.abc.Iterator[pathlib.Path]:
    """Files below a folder, or the file itself, sorted; links to folders are not followed."""
    if root.is_file():
        yield readers.header_of(root) or root
        return
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            yield pathlib.Path(folder, file)


def look(file: str, count: Count) -> list[Found | tuple[str, str, str]]:
    """What a file is, from its header: what belongs to a scan, and (file, reason, detail) of what does not."""
    path = pathlib.Path(file)
    if path.suffix.lower() == ".zip":
        return _look_into(path, count)
    try:
        return [item for item in [_classify(path, file, count)] if item]
    except Refusal as refusal:
        return [(file, refusal.reason, refusal.detail)]
    except Exception as error:
        return [(file, "reader_failed", f"{type(error).__name__}: {error}")]


def _classify(path: pathlib.Path, file: str, count: Count) -> Found | None:
    """`path` is where the file lies and `file` its name; None for the voxels of a header beside it."""
    if readers.header_of(path):
        return None
    reader = readers.reader_for(path)
    if reader is not None:
        header = reader.look(path)
        group = file
        if reader.count_frames:  # a series without a name is what lies in one folder
            group = header.series or os.path.dirname(file)
        depth = 1 if header.across is None else header.shape[header.across]
        stack = (header.owner, header.stack, header.place)
        return Found(file, reader.format, group, header.frames, count(header), depth, *stack)
    try:
        if path.stat().st_size and not os.access(path, os.R_OK):
            raise Refusal("unreadable", "no permission")
    except OSError as error:
        raise Refusal("unreadable", error.strerror or str(error)) from None
    raise Refusal("other_file", path.suffix or "no suffix")


def _look_into(path: pathlib.Path, count: Count) -> list[Found | tuple[str, str, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir()]
        unsafe = [m.filename for m in members if not _stays_inside(m)]
        if unsafe:
            raise Refusal("unsafe_archive", f"the member {unsafe[0]!r} would be written outside of the archive")
        if sum(m.file_size for m in members) > _ZIP_BYTES:
            raise Refusal("unsafe_archive", f"unpacks to more than {_ZIP_BYTES >> 30} GiB")
        with opened([f"{path}{INSIDE}{m.filename}" for m in members]) as files:
            out = []
            for file, member in zip(files, members, strict=True):
                name = f"{path}{INSIDE}{member.filename}"
                if member.filename.lower().endswith(".zip"):
                    out.append((name, "other_file", "an archive inside of an archive"))
                    continue
                try:
                    out += [item for item in [_classify(file, name, count)] if item]
                except Refusal as refusal:
                    out.append((name, refusal.reason, refusal.detail))
            return out
    except Refusal as refusal:
        return [(str(path), refusal.reason, refusal.detail)]
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return [(str(path), "corrupt", f"zip: {error}")]


def _stays_inside(member: zipfile.ZipInfo) -> bool:
    path = pathlib.PurePosixPath(member.filename.replace("\\", "/"))
    link = member.external_attr >> 16 & 0o170000 == 0o120000
    return not (path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or link)


@contextlib.contextmanager
def opened(files: list[str]) -> collections.abc.Iterator[list[pathlib.Path]]:
    """Paths of files, those inside of archives unpacked into a folder that is removed afterwards.

    Raises:
      Refusal: an archive is damaged.
    """
    if not any(INSIDE in file for file in files):
        yield [pathlib.Path(file) for file in files]
        return
    with tempfile.TemporaryDirectory(prefix="curia-") as folder, contextlib.ExitStack() as stack:
        archives: dict[str, zipfile.ZipFile] = {}
        out = []
        try:
            for file in files:
                path, _, member = file.partition(INSIDE)
                if path not in archives:
                    archives[path] = stack.enter_context(zipfile.ZipFile(path))
                out.append(pathlib.Path(folder, str(list(archives).index(path)), member))
                for part in _with_data(member, archives[path]):
                    target = out[-1].with_name(os.path.basename(part))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archives[path].open(part) as source, open(target, "wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)  # stops at the promised size and checks the CRC
        except (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
            raise Refusal("corrupt", f"zip: {error}") from None
        yield out


def _with_data(member: str, archive: zipfile.ZipFile) -> list[str]:
    """The member, and the files that a detached header speaks of: those of its folder with the same stem."""
    stem, suffix = os.path.splitext(member)
    if not any(suffix.lower() in reader.detached for reader in readers.READERS):
        return [member]
    return [name for name in archive.namelist() if name.startswith(f"{stem}.") and "/" not in name[len(stem) :]]


def scans(found: list[Found], roots: list[pathlib.Path], every_frame: bool) -> list[Scan]:
    """Scans in an order that depends on names alone."""
    out = []
    for (name_of_format, group), items in series_of(found).items():
        files = sorted(item.file for item in items)
        name = relative(files[0], roots)
        if len(files) > 1:
            name = os.path.dirname(name) or name
        own = sum(item.depth for item in items) if every_frame else len(items)
        slices = own + max(item.slices for item in items) if len(items) > 1 else items[0].slices
        series = relative(group, roots) if group == files[0] else group
        for frame in range(items[0].frames if every_frame else 1):
            out.append(Scan(name, name_of_format, files, series if frame == 0 else f"{series}#{frame}", frame, slices))
    return sorted(out, key=lambda scan: (scan.name, scan.series, scan.frame))


def relative(file: str, roots: list[pathlib.Path]) -> str:
    """Path of a file below the root that holds it, with the name of the root in front where there are several."""
    for root in roots:
        with contextlib.suppress(ValueError):
            inner = pathlib.Path(file).relative_to(root)
            inner = inner if inner.parts else pathlib.Path(root.name)
            return str(inner if len(roots) == 1 else pathlib.Path(root.name, inner))
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
        files = list(walk(path))
        for reader in readers.READERS:
            claimed = [file for file in files if reader.count_frames and reader.claims(file)]
            if claimed:
                return reader.read(claimed)
        raise Refusal("other_file", "a folder without the files of a series")
    reader = readers.reader_for(path)
    if reader is None:
        raise Refusal("other_file", path.suffix or "no suffix")
    return reader.read([path])
