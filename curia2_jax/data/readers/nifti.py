"""NIfTI-1 and NIfTI-2: .nii, .nii.gz and .hdr + .img pairs, checked to the last byte.

The gzip stream is read to its end, where its CRC-32 is, before a voxel is believed: readers that stop after the last
voxel take three of four flipped bits for data.
"""

import contextlib
import dataclasses
import gzip
import mmap
import pathlib
import struct
import tempfile
import typing
import zlib
from collections.abc import Iterator, Sequence

import imagecodecs
import nibabel as nib
import numpy as np

from curia2_jax.data.readers.volume import Header, Refusal, Volume, assumed_affine, from_xyz

# Voxels above this many bytes are unpacked into a temporary file instead of memory.
IN_MEMORY = 512 << 20
_CHUNK = 1 << 20
_FNAME = 8  # the flag of a gzip member that begins with the name of a file
_MILLIMETERS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}  # of the lower bits of xyzt_units: none, metre, millimeter, micron
_MAX_TRAILING_BYTES = 64 << 20  # bytes after the voxels that are read and dropped before a file counts as broken


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the voxels lie and what they mean: `shape` (X, Y, Z, frames), numpy `dtype` as stored, byte `offset` of
    the voxels, scaling, sizes of a voxel, and the affine to RAS+ (None when the file has none)."""

    shape: tuple[int, int, int, int]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    zooms: tuple[float, float, float]
    affine: np.ndarray | None
    mirrored: bool = False  # the sform and the qform differ in which side is left

    @property
    def stop(self) -> int:
        """Byte after the last voxel."""
        return self.offset + int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def claims(path: pathlib.Path) -> bool:
    """Whether the name of a file is that of a NIfTI one. The .img of a pair belongs to its .hdr."""
    return path.name.lower().endswith((".nii", ".nii.gz", ".hdr"))


def look(path: pathlib.Path) -> Header:
    """Header of a file or of a pair's .hdr, at the cost of its first kilobyte.

    Raises:
      Refusal: it is damaged, or no volume of plain numbers.
    """
    layout = _look(path)
    _check_size(layout, path if path.suffix.lower() != ".hdr" else _image_of(path))
    return Header(layout.shape[:3], layout.shape[3], layout.affine)


def _look(path: pathlib.Path) -> _Layout:
    with _opened(path) as stream:
        return _header(stream.read(544), path)


def read(files: Sequence[pathlib.Path], frame: int = 0, orientation: str | None = None) -> Volume:
    """One frame of a NIfTI file. `orientation`, such as "RAS", is taken for files without an affine.

    Raises:
      Refusal: it is damaged, has no such frame, or says no orientation.
    """
    (path,) = files
    image = path
    if path.name.lower().endswith(".hdr"):
        header = _look(path)
        image = _image_of(path)
        with _opened(image) as stream:
            data = _voxels(stream, header, b"", image)
    else:
        with _opened(path) as stream:
            start = stream.read(544)
            try:
                header = _header(start, path)
            except Refusal as refusal:
                if refusal.reason == "wrong_format":
                    _drain(stream, _MAX_TRAILING_BYTES)  # a broken stream is corrupt, whatever it begins with
                raise
            data = _voxels(stream, header, start, image)
    if not 0 <= frame < header.shape[3]:
        raise Refusal("unsupported_dimensions", f"no frame {frame}, the file has {header.shape[3]}")
    raw = np.frombuffer(data, header.dtype, int(np.prod(header.shape)), header.offset)
    raw = raw.reshape(header.shape, order="F")[..., frame]
    affine, notes = header.affine, []
    if affine is None:
        if orientation is None:
            raise Refusal("no_geometry", "qform_code and sform_code are 0; name the orientation with --orientation")
        affine = assumed_affine(orientation, np.array(header.zooms))
        notes.append(("orientation_assumed", orientation))
    if header.mirrored:
        notes.append(("mirrored_qform", "sform and qform differ in which side is left; the sform counts"))
    if header.shape[3] > 1:
        notes.append(("frame", f"frame {frame} of {header.shape[3]}"))
    return from_xyz(raw, affine, slope=header.slope, intercept=header.intercept, notes=notes)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[typing.BinaryIO]:
    """The content of a file, unpacked while it is read.

    Raises:
      Refusal: the file cannot be opened, or, while it is read, turns out to be damaged.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 closed below
    except OSError as error:
        raise Refusal("unreadable", f"{error.strerror}") from None
    with file:
        magic = file.peek(2)[:2]
        if not magic:
            raise Refusal("corrupt", "an empty file")
        zipped, named = magic == b"\x1f\x8b", path.name.lower().endswith(".gz")
        if zipped != named:
            raise Refusal("wrong_format", f"{'a' if zipped else 'no'} gzip stream in a file named {path.suffix}")
        if not zipped:
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file) as stream:
                yield typing.cast(typing.BinaryIO, stream)
        except EOFError:
            raise Refusal("corrupt", "the gzip stream ends before its checksum") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise Refusal("corrupt", f"gzip: {error}") from None


def _header(start: bytes, path: pathlib.Path) -> _Layout:
    kinds = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    sizes = {int.from_bytes(start[:4], order): order for order in ("little", "big")}
    size = next((s for s in kinds if s in sizes), None)
    if size is None:
        raise Refusal("wrong_format", "no NIfTI header")
    if len(start) < size:
        raise Refusal("corrupt", f"{len(start)} bytes are no NIfTI header")
    endianness = "<" if sizes[size] == "little" else ">"
    fields = kinds[size](start[:size], endianness=endianness, check=False)
    magic = bytes(fields["magic"].tobytes())[:3]
    if magic not in (b"n+1", b"ni1", b"n+2", b"ni2"):
        if not magic.strip(b"\0") and path.name.lower().endswith(".hdr"):
            raise Refusal("no_geometry", "an Analyze header, which does not say where left is")
        raise Refusal("wrong_format", "no NIfTI magic number in the header")
    if (magic[1:2] == b"i") != path.name.lower().endswith(".hdr"):
        raise Refusal("wrong_format", "the header is that of a .hdr + .img pair" if magic[1:2] == b"i" else "no pair")
    dim = fields["dim"].astype(int).tolist()
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise Refusal("corrupt", f"dimensions {dim}")
    shape = dim[1 : dim[0] + 1]
    if len(shape) < 3 or any(n > 1 for n in shape[4:]):
        raise Refusal("unsupported_dimensions", " x ".join(map(str, shape)))
    try:
        dtype = fields.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError):
        raise Refusal("corrupt", f"data type {int(fields['datatype'])}, which NIfTI does not have") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise Refusal("unsupported_pixel_type", str(fields["datatype"]) if dtype.kind == "V" else dtype.name)
    slope, intercept = _scaling(fields)
    offset = float(fields["vox_offset"])
    if not (0 <= offset < 1 << 31 and offset == int(offset)) or (magic[1:2] == b"+" and offset < size):
        raise Refusal("corrupt", f"voxels at byte {offset}")
    shape = (*shape, 1)[:4]
    if shape[2] == 1 < shape[3]:
        raise Refusal(
            "unsupported_dimensions", f"{' x '.join(map(str, shape))}: times of one slice, or slices as times"
        )
    unit = _MILLIMETERS.get(int(fields["xyzt_units"]) & 7)
    if unit is None:
        raise Refusal("no_geometry", f"xyzt_units {int(fields['xyzt_units'])}")
    x, y, z = ((abs(float(size)) or 1.0) * unit for size in fields["pixdim"][1:4])
    affine = _affine(fields)
    if affine is not None:
        affine[:3] *= unit
    return _Layout(shape, dtype, int(offset), slope, intercept, (x, y, z), affine, _mirrored(fields))


def _mirrored(fields: nib.Nifti1Header) -> bool:
    if fields["sform_code"] <= 0 or fields["qform_code"] <= 0:
        return False
    try:
        sides = [np.linalg.det(form[:3, :3]) for form in (fields.get_sform(), fields.get_qform())]
    except (nib.spatialimages.HeaderDataError, ValueError, np.linalg.LinAlgError):
        return False
    return bool(sides[0] * sides[1] < 0)


def _scaling(fields: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept, 1 and 0 where there are none.

    Raises:
      Refusal: a slope without an intercept, as nibabel refuses it.
    """
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    if not np.isfinite(intercept):
        raise Refusal("corrupt", f"scl_slope {slope:g} with scl_inter {intercept:g}")
    return slope, intercept


def _affine(fields: nib.Nifti1Header) -> np.ndarray | None:
    """The sform, or the qform where that is none."""
    try:
        if fields["sform_code"] > 0:
            sform = fields.get_sform().astype(np.float64)
            if fields["qform_code"] <= 0 or np.any(sform[:3, :3]):
                return sform
        if fields["qform_code"] > 0:
            return fields.get_qform().astype(np.float64)
    except (nib.spatialimages.HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise Refusal("no_geometry", str(error)) from None
    return None


def _voxels(stream: typing.BinaryIO, header: _Layout, start: bytes, path: pathlib.Path) -> bytearray | mmap.mmap:
    """Bytes of the file up to the last voxel, after the rest of the stream was read and checked as well."""
    stop = header.stop
    whole = _at_once(path, stop) if path.name.lower().endswith(".gz") else None
    if whole is not None:
        return whole
    _check_size(header, path)
    data: bytearray | mmap.mmap
    if stop > IN_MEMORY:
        with tempfile.TemporaryFile() as file:
            file.truncate(stop)
            data = mmap.mmap(file.fileno(), stop)
    else:
        data = bytearray(stop)
    view = memoryview(data)
    view[: len(start)] = start[:stop]
    at = min(len(start), stop)
    while at < stop:
        piece = stream.read(min(_CHUNK, stop - at))
        if not piece:
            raise Refusal("corrupt", f"{at} bytes, the header promises {stop}")
        view[at : at + len(piece)] = piece
        at += len(piece)
    _drain(stream, _MAX_TRAILING_BYTES)
    return data


def _image_of(path: pathlib.Path) -> pathlib.Path:
    """The voxels of a pair's header."""
    image = next((p for p in (path.with_suffix(".img"), path.with_suffix(".IMG")) if p.exists()), None)
    if image is None:
        raise Refusal("corrupt", "the .hdr has no .img beside it")
    return image


def _check_size(header: _Layout, path: pathlib.Path) -> None:
    """That the file with the voxels can hold them."""
    size = path.stat().st_size
    most = size * 1032 + 544 if path.name.lower().endswith(".gz") else size  # deflate cannot do better than 1032 : 1
    if header.stop > most:
        raise Refusal("corrupt", f"{most} bytes at most, the header promises {header.stop}")


def _at_once(path: pathlib.Path, stop: int) -> bytearray | None:
    """Content of a gzip file through libdeflate, in under half the time that zlib takes. None unless it is one plain
    member whose CRC-32 and length are right: what else it may be is for the stream to find out."""
    if not stop <= IN_MEMORY or path.stat().st_size > IN_MEMORY:
        return None
    packed = memoryview(path.read_bytes())
    checksum, length = struct.unpack("<2I", packed[-8:])
    if packed[3] & ~_FNAME or not stop <= length <= stop + _MAX_TRAILING_BYTES or length > 1032 * len(packed):
        return None
    start = 10
    if packed[3] & _FNAME:
        start = bytes(packed[:1024]).find(b"\0", 10) + 1 or len(packed)
    out = bytearray(length)
    try:
        imagecodecs.deflate_decode(typing.cast(typing.Any, packed[start:-8]), out=out, raw=True)  # any buffer will do
    except imagecodecs.DeflateError:
        return None
    return out if zlib.crc32(out) == checksum else None


def _drain(stream: typing.BinaryIO, limit: int) -> None:
    while piece := stream.read(_CHUNK):
        limit -= len(piece)
        if limit < 0:
            raise Refusal("corrupt", "far more bytes than the header promises")
