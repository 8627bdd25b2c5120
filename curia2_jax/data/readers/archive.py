"""What lies in an archive: folders of any depth, files and zip archives -> scans, each of which is one series to
read."""

import collections
import collections.abc
import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
import zipfile

import numpy as np

from curia2_jax.data.readers import dicom, itk, nifti
from curia2_jax.data.readers.volume import Refusal, Volume, from_xyz, planes_of

# A file inside of an archive is written ARCHIVE!MEMBER.
INSIDE = "!"
_ZIP_BYTES = 64 << 30  # most that an archive may unpack to


@dataclasses.dataclass(frozen=True)
class Found:
    """One file that belongs to a scan. `group` is equal for the files of one series, `slices` bounds what it gives."""

    file: str
    kind: str  # nifti, nrrd, dicom
    group: str
    frames: int
    slices: int


@dataclasses.dataclass
class Scan:
    """One volume to read: `name` is where it came from, `series` tells it from every other series, `slices` bounds the
    slices it can give. `labels` are (file, kind) of its label maps."""

    name: str
    kind: str
    files: list[str]
    series: str
    frame: int
    slices: int
    labels: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def walk(root: pathlib.Path) -> collections.abc.Iterator[pathlib.Path]:
    """Files below a folder, or the file itself, sorted; links to folders are not followed."""
    if root.is_file():
        header = root.with_suffix(".hdr")
        yield header if root.suffix == ".img" and header.exists() else root
        return
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            yield pathlib.Path(folder, file)


def look(file: str, planes: tuple[str, ...]) -> list[Found | tuple[str, str, str]]:
    """What a file is, from its header: what belongs to a scan, and (file, reason, detail) of what does not."""
    path = pathlib.Path(file)
    if path.suffix.lower() == ".zip":
        return _look_into(path, planes)
    try:
        return [item for item in [_classify(path, file, planes)] if item]
    except Refusal as refusal:
        return [(file, refusal.reason, refusal.detail)]
    except Exception as error:
        return [(file, "reader_failed", f"{type(error).__name__}: {error}")]


def _classify(path: pathlib.Path, file: str, planes: tuple[str, ...]) -> Found | None:
    name = path.name.lower()
    if _belongs_to_header(path):
        return None
    if nifti.is_nifti(name):
        header = nifti.read_header(path)
        return Found(file, "nifti", file, header.shape[3], _count(header.shape, header.affine, planes))
    if itk.is_nrrd(name):
        shape, affine = itk.read_shape(path)
        return Found(file, "nrrd", file, shape[3], _count(shape, affine, planes))
    if dicom.is_dicom(path):
        header = dicom.read_header(path)
        group = header.series or os.path.dirname(file)  # a series without a UID is what lies in one folder
        across = 0 if len(planes) == 1 else header.rows + header.columns
        return Found(file, "dicom", group, 1, header.frames + across)
    try:
        if path.stat().st_size and not os.access(path, os.R_OK):
            raise Refusal("unreadable", "no permission")
    except OSError as error:
        raise Refusal("unreadable", error.strerror or str(error)) from None
    raise Refusal("other_file", path.suffix or "no suffix")


def _belongs_to_header(path: pathlib.Path) -> bool:
    """Whether a file holds the voxels of a header beside it."""
    headers = {".img": (".hdr",), ".raw": (".mhd", ".nhdr"), ".zraw": (".mhd",), ".gz": (".nhdr",)}
    stem = path.name.removesuffix(path.suffix).removesuffix(".raw")
    return any(path.with_name(stem + suffix).exists() for suffix in headers.get(path.suffix.lower(), ()))


def _count(shape: tuple[int, ...], affine: np.ndarray | None, planes: tuple[str, ...]) -> int:
    """Slices that a volume gives, from its header."""
    if affine is None:
        return sum(shape[:3])
    volume = from_xyz(np.broadcast_to(np.int8(0), shape[:3]), affine)
    across = {"axial": 0, "coronal": 1, "sagittal": 2}
    return sum(volume.raw.shape[across[p]] for p in planes_of(volume.raw.shape, volume.spacing, planes))


def _look_into(path: pathlib.Path, planes: tuple[str, ...]) -> list[Found | tuple[str, str, str]]:
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
                    out += [item for item in [_classify(file, name, planes)] if item]
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
    """Paths of files, those inside of archives unpacked into a folder that is removed afterwards. Raises Refusal."""
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
    if suffix.lower() not in (".hdr", ".mhd", ".nhdr"):
        return [member]
    return [name for name in archive.namelist() if name.startswith(f"{stem}.") and "/" not in name[len(stem) :]]


def scans(found: list[Found], roots: list[pathlib.Path], every_frame: bool) -> list[Scan]:
    """Scans in an order that depends on names alone."""
    groups: dict[tuple[str, str], list[Found]] = collections.defaultdict(list)
    for item in found:
        groups[item.kind, item.group].append(item)
    out = []
    for (kind, group), items in groups.items():
        files = sorted(item.file for item in items)
        name = relative(files[0], roots)
        if kind == "dicom":
            name = os.path.dirname(name) if len(files) > 1 and os.path.dirname(name) else name
        slices = len(items) + max(item.slices for item in items) if len(items) > 1 else items[0].slices
        series = group if kind == "dicom" else relative(group, roots)
        for frame in range(items[0].frames if every_frame else 1):
            out.append(Scan(name, kind, files, series if frame == 0 else f"{series}#{frame}", frame, slices))
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
    """Volume of a scan. Raises Refusal."""
    with opened(scan.files) as paths:
        if scan.kind == "dicom":
            return dicom.read(paths, scan.frame)
        if scan.kind == "nrrd":
            return itk.read(paths[0], scan.frame)
        return nifti.read(paths[0], scan.frame, orientation)


def read_any(path: pathlib.Path) -> Volume:
    """Volume of one file or of a folder with one DICOM series. Raises Refusal."""
    if path.is_dir():
        return dicom.read([file for file in walk(path) if dicom.is_dicom(file)])
    if itk.is_nrrd(path.name):
        return itk.read(path)
    if nifti.is_nifti(path.name):
        return nifti.read(path)
    if dicom.is_dicom(path):
        return dicom.read([path])
    raise Refusal("other_file", path.suffix or "no suffix")
