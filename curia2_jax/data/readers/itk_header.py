"""What the text of a NRRD or MetaImage header says of the voxels: where they lie, how they are packed, and how many
bytes they are; checked before a library makes room for them.

NRRD: https://teem.sourceforge.net/nrrd/format.html; MetaImage: https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

import bz2
import dataclasses
import gzip
import pathlib
import re
import zlib

import numpy as np

from curia2_jax.data.readers.volume import Refusal

_HEADER = 1 << 20  # bytes that a header may take
_CHUNK = 1 << 20
_SPARE = 64 << 20  # bytes behind the voxels
_MOST_PER_BYTE = {"raw": 1, "text": 8, "zlib": 1032, "gzip": 1032, "bzip2": 1 << 16}  # that a byte can unpack to
_MILLIMETERS = {
    "": 1.0,
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1000.0),
    **dict.fromkeys(("um", "µm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"), 1e-3),
}
_SPACES = {
    *("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las"),
    *("left-posterior-superior-time", "lpst", "right-anterior-superior-time", "rast"),
    *("left-anterior-superior-time", "last"),
}
_NRRD_ENCODINGS = {
    **{"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"},
    **dict.fromkeys(("txt", "text", "ascii", "hex"), "text"),
}
_BYTES = [
    (1, r"(signed |unsigned |u)?char|u?int8(_t)?|met_u?char"),
    (2, r"(signed |unsigned |u)?short( int)?|u?int16(_t)?|met_u?short"),
    (4, r"(signed |unsigned |u)?int|u?int32(_t)?|float|met_(u?int|u?long|float)"),
    (8, r"(signed |unsigned |u)?long ?long( int)?|u?int64(_t)?|double|met_(u?long_long|double)"),
]


@dataclasses.dataclass(frozen=True)
class Stored:
    """The voxels of a header: `size` bytes, packed as `encoding` from byte `offset` of the file `data`. `placed` is
    whether the header says where left is, `unit` the millimeters of its unit, `spacings` mm where it says nothing
    else."""

    encoding: str
    size: int
    data: pathlib.Path
    offset: int
    placed: bool
    unit: float
    spacings: tuple[float, ...]

    def check_size(self) -> None:
        """That the file can hold what the header promises.

        Raises:
          Refusal: it cannot, or is not there.
        """
        if not self.data.is_file():
            raise Refusal("corrupt", f"the data file {self.data.name} is not there")
        most = max(0, self.data.stat().st_size - self.offset) * _MOST_PER_BYTE[self.encoding]
        if self.size > most:
            raise Refusal("corrupt", f"{most} bytes at most, the header promises {self.size}")

    def check(self) -> None:
        """That the packed voxels are as many as promised and equal to their checksum, read to the last byte.

        Raises:
          Refusal: they are not.
        """
        self.check_size()
        if self.encoding in ("raw", "text"):
            return
        try:
            with open(self.data, "rb") as file:
                file.seek(self.offset)
                found = _unpacked(file, self.encoding, self.size + _SPARE)
        except EOFError:
            raise Refusal("corrupt", f"the {self.encoding} stream ends before its checksum") from None
        except (OSError, zlib.error) as error:
            raise Refusal("corrupt", f"{self.encoding}: {error}") from None
        if not self.size <= found <= self.size + _SPARE:
            raise Refusal("corrupt", f"{found} bytes, the header promises {self.size}")


def _unpacked(file, encoding: str, most: int) -> int:
    """Bytes that a stream unpacks to, or more than `most`."""
    count = 0
    if encoding == "zlib":
        inflate = zlib.decompressobj()
        while not inflate.eof and count <= most:
            packed = inflate.unconsumed_tail or file.read(_CHUNK)
            if not packed:
                raise EOFError
            count += len(inflate.decompress(packed, _CHUNK))
        return count
    with gzip.GzipFile(fileobj=file) if encoding == "gzip" else bz2.BZ2File(file) as stream:
        while count <= most and (piece := stream.read(_CHUNK)):
            count += len(piece)
    return count


def read(path: pathlib.Path) -> Stored:
    """What the header of a file says.

    Raises:
      Refusal: it is none, or names a file outside of its folder.
    """
    with open(path, "rb") as file:
        start = file.read(_HEADER)
    if not start:
        raise Refusal("corrupt", "an empty file")
    try:
        return _nrrd(path, start) if path.suffix.lower() in (".nrrd", ".nhdr") else _meta_image(path, start)
    except Refusal:
        raise
    except (KeyError, ValueError) as error:
        raise Refusal("wrong_format", f"no header of a {path.suffix} file: {error}") from None


def data_file(start: bytes) -> str:
    """Name of the file in which a header that begins so says its voxels are, "" where it names none."""
    found = re.search(rb"^(?:data ?file:|ElementDataFile\s*=)[ \t]*([^\r\n]+)", start, re.MULTILINE | re.IGNORECASE)
    return found[1].decode("latin-1").strip() if found else ""


def _nrrd(path: pathlib.Path, start: bytes) -> Stored:
    if start[:4] != b"NRRD":
        raise Refusal("wrong_format", "no NRRD magic number")
    end = re.search(rb"\r?\n\r?\n", start)
    head, body = (end.start(), end.end()) if end else (len(start), 0)
    text = start[:head].decode("latin-1")
    lines = [
        line.partition(":") for line in text.splitlines()[1:] if ":" in line and line[0] != "#" and ":=" not in line
    ]
    fields = {name.strip().lower().replace(" ", ""): value.strip() for name, _, value in lines}
    sizes = _sizes(fields["sizes"], fields["dimension"])
    name = fields.get("datafile")
    if name is None and end is None:
        raise Refusal("corrupt", "a NRRD header without its end")
    vectors = re.findall(r"\(([^)]*)\)", fields.get("spacedirections", ""))
    lengths = [float(np.linalg.norm([float(n) for n in vector.split(",")])) for vector in vectors]
    units = {unit.lower() for unit in re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))} or {""}
    return Stored(
        _NRRD_ENCODINGS[fields["encoding"].lower()],
        _product(sizes) * _item(fields["type"]),
        path if name is None else _beside(path, name),
        0 if name is not None else body,
        bool(vectors) and fields.get("space", "").lower() in _SPACES,
        _unit(units),
        tuple(lengths or (float(n) for n in fields.get("spacings", "").split() if n.lower() != "nan")),
    )


def _meta_image(path: pathlib.Path, start: bytes) -> Stored:
    found = re.search(rb"^ElementDataFile\s*=[ \t]*([^\r\n]*)\r?(\n|$)", start, re.MULTILINE)
    if not found:
        raise Refusal("wrong_format", "no ElementDataFile in a MetaImage header")
    text = start[: found.start()].decode("latin-1")
    fields = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in text.splitlines())}
    name = found[1].decode("latin-1").strip()
    local = name.upper() == "LOCAL"
    encoding = "raw" if fields.get("BinaryData", "True").lower() == "true" else "text"
    if fields.get("CompressedData", "False").lower() == "true":
        encoding = "zlib"
    skip = int(fields.get("HeaderSize", 0))
    sizes = _sizes(fields["DimSize"], fields["NDims"])
    channels = int(fields.get("ElementNumberOfChannels", 1))
    spacings = fields.get("ElementSpacing", fields.get("ElementSize", "")).split()
    return Stored(
        encoding,
        _product(sizes) * channels * _item(fields["ElementType"].removesuffix("_ARRAY")),
        path if local else _beside(path, name),
        found.end() if local else max(0, skip),
        any(key in fields for key in ("TransformMatrix", "Rotation", "Orientation")),
        _unit({fields.get("DistanceUnits", "").lower()}),
        tuple(float(n) for n in spacings),
    )


def _sizes(text: str, dimensions: str) -> list[int]:
    """The sizes of a grid; ITK takes the number of them on trust and ends the process over a wrong one."""
    sizes = [int(n) for n in text.split()]
    if int(dimensions) != len(sizes):
        raise Refusal("corrupt", f"{dimensions} dimensions and {len(sizes)} sizes")
    return sizes


def _product(sizes: list[int]) -> int:
    if not sizes or min(sizes) < 1:
        raise Refusal("corrupt", f"sizes {sizes}")
    return int(np.prod(np.array(sizes, object)))


def _item(name: str) -> int:
    for size, names in _BYTES:
        if re.fullmatch(names, name.strip().lower()):
            return size
    raise Refusal("unsupported_pixel_type", name)


def _unit(units: set[str]) -> float:
    known = {_MILLIMETERS.get(unit) for unit in units}
    if len(known) > 1 or None in known:
        raise Refusal("no_geometry", f"units {', '.join(sorted(units))}")
    return _MILLIMETERS[units.pop()]


def _beside(path: pathlib.Path, name: str) -> pathlib.Path:
    """The data file in the folder of its header.

    Raises:
      Refusal: it lies elsewhere, or is several.
    """
    if name.upper().startswith("LIST") or "%" in name:
        raise Refusal("unsupported_dimensions", "slices in files of their own")
    data = path.with_name(name) if name and not re.search(r"[/\\:\0]", name) and name not in (".", "..") else None
    if data is None or data.is_symlink():
        raise Refusal("unsafe_archive", f"the header names {name}, which is no file in its folder")
    return data
