"""A study, whatever it is, becomes a Volume: READERS is the list of the file formats."""

import collections.abc
import pathlib
import types
from typing import NamedTuple, Protocol

from curia2_jax.data.readers import dicom, itk, nifti
from curia2_jax.data.readers.volume import Header, Volume


class Read(Protocol):
    """Volume of one frame of one series. `orientation`, such as "RAS", is for files that do not say.

    Raises:
      Refusal: the files are no such volume.
    """

    def __call__(
        self, files: collections.abc.Sequence[pathlib.Path], frame: int = 0, orientation: str | None = None
    ) -> Volume: ...


class Reader(NamedTuple):
    """A file format.

    Attributes:
      format: its name.
      claims: whether a file is of this format, by its name or its first bytes.
      look: the header of a file; raises Refusal.
      read: the volume of the files of a series.
      count_frames: where a series is spread over many files, the number of volumes that they are; raises Refusal.
        None where a file is a series.
      detached: suffixes of headers whose voxels lie in another file, and the suffixes which that can have.
    """

    format: str
    claims: collections.abc.Callable[[pathlib.Path], bool]
    look: collections.abc.Callable[[pathlib.Path], Header]
    read: Read
    count_frames: collections.abc.Callable[[collections.abc.Sequence[pathlib.Path]], int] | None = None
    detached: collections.abc.Mapping[str, tuple[str, ...]] = types.MappingProxyType({})


# The first one that claims a file reads it.
READERS = (
    Reader("nifti", nifti.claims, nifti.look, nifti.read, detached={".hdr": (".img",)}),
    Reader("itk", itk.claims, itk.look, itk.read, detached={".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".gz")}),
    Reader("dicom", dicom.claims, dicom.look, dicom.read, dicom.count_frames),
)


def reader_for(path: pathlib.Path) -> Reader | None:
    """The reader that claims a file."""
    return next((reader for reader in READERS if reader.claims(path)), None)


def reader_of(name: str) -> Reader:
    """The reader of a format."""
    return next(reader for reader in READERS if reader.format == name)


def header_of(path: pathlib.Path) -> pathlib.Path | None:
    """The header beside a file that holds the voxels of one."""
    stem = path.name.removesuffix(path.suffix).removesuffix(".raw")
    headers = (
        path.with_name(stem + suffix)
        for reader in READERS
        for suffix, data in reader.detached.items()
        if path.suffix.lower() in data
    )
    return next((header for header in headers if header.exists()), None)
