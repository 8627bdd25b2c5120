"""NRRD and MetaImage files, through SimpleITK."""

import pathlib
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from curia2_jax.data.readers import itk_header
from curia2_jax.data.readers.volume import Header, Refusal, Volume, assumed_affine, from_xyz

NRRD = (".nrrd", ".nhdr")
META_IMAGE = (".mha", ".mhd")
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def claims(path: pathlib.Path) -> bool:
    """Whether the name of a file is that of a NRRD or MetaImage one."""
    return path.name.lower().endswith(NRRD + META_IMAGE)


def look(path: pathlib.Path) -> Header:
    """Header of a file.

    Raises:
      Refusal: it is damaged, or no volume of plain numbers.
    """
    stored = itk_header.read(path)
    stored.check_size()
    return _look(path, stored)


def _look(path: pathlib.Path, stored: itk_header.Stored) -> Header:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in NRRD else "MetaImageIO")
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise Refusal("wrong_format", str(error).strip().splitlines()[-1]) from None
    if reader.GetNumberOfComponents() != 1:
        raise Refusal("unsupported_pixel_type", f"{reader.GetNumberOfComponents()} numbers a voxel")
    size = reader.GetSize()
    if len(size) not in (3, 4):
        raise Refusal("unsupported_dimensions", " x ".join(map(str, size)))
    dimensions = len(size)
    direction = np.array(reader.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(reader.GetSpacing()[:3]) * stored.unit
    affine[:3, 3] = np.array(reader.GetOrigin()[:3]) * stored.unit
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Header(tuple(size[:3]), (*size, 1)[3], to_ras @ affine if stored.placed else None)


def read(files: Sequence[pathlib.Path], frame: int = 0, orientation: str | None = None) -> Volume:
    """One frame of a NRRD or MetaImage file. `orientation`, such as "RAS", is taken for files without a space.

    Raises:
      Refusal: it is damaged, has no such frame, or says no orientation.
    """
    (path,) = files
    stored = itk_header.read(path)
    stored.check()
    header = _look(path, stored)
    if not 0 <= frame < header.frames:
        raise Refusal("unsupported_dimensions", f"no frame {frame}, the file has {header.frames}")
    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise Refusal("corrupt", str(error).strip().splitlines()[-1]) from None
    if array.dtype.kind not in "iuf":
        raise Refusal("unsupported_pixel_type", array.dtype.name)
    array = array[frame] if array.ndim == 4 else array
    notes = [("frame", f"frame {frame} of {header.frames}")] if header.frames > 1 else []
    affine = header.affine
    if affine is None:
        if orientation is None or len(stored.spacings) < 3:
            raise Refusal("no_geometry", "no space and orientation in the header; name it with --orientation")
        affine = assumed_affine(orientation, np.array(stored.spacings[:3]) * stored.unit)
        notes.append(("orientation_assumed", orientation))
    return from_xyz(array.transpose(2, 1, 0), affine, notes=notes)
