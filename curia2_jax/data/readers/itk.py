"""NRRD and MetaImage files, through SimpleITK."""

import pathlib

import numpy as np
import SimpleITK as sitk

from curia2_jax.data.readers.volume import Refusal, Volume, from_xyz

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def is_nrrd(name: str) -> bool:
    """Whether a file name claims NRRD or MetaImage."""
    return name.lower().endswith(SUFFIXES)


def read_shape(path: pathlib.Path) -> tuple[tuple[int, ...], np.ndarray]:
    """((X, Y, Z, frames), (4, 4) affine to RAS+ mm) from the header. Raises Refusal."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in SUFFIXES[:2] else "MetaImageIO")
        reader.ReadImageInformation()
    except RuntimeError as error:
        if path.stat().st_size == 0:
            raise Refusal("corrupt", "an empty file") from None
        raise Refusal("wrong_format", str(error).strip().splitlines()[-1]) from None
    if reader.GetNumberOfComponents() != 1:
        raise Refusal("unsupported_pixel_type", f"{reader.GetNumberOfComponents()} numbers a voxel")
    size = reader.GetSize()
    if len(size) not in (3, 4):
        raise Refusal("unsupported_dimensions", " x ".join(map(str, size)))
    dimensions = len(size)
    direction = np.array(reader.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    return (*size, 1)[:4], np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def read(path: pathlib.Path, frame: int = 0) -> Volume:
    """One frame of a NRRD or MetaImage file. Raises Refusal."""
    shape, affine = read_shape(path)
    if not 0 <= frame < shape[3]:
        raise Refusal("unsupported_dimensions", f"no frame {frame}, the file has {shape[3]}")
    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:
        raise Refusal("corrupt", str(error).strip().splitlines()[-1]) from None
    if array.dtype.kind not in "iuf":
        raise Refusal("unsupported_pixel_type", array.dtype.name)
    array = array[frame] if array.ndim == 4 else array
    notes = [("frame", f"frame {frame} of {shape[3]}")] if shape[3] > 1 else []
    return from_xyz(array.transpose(2, 1, 0), affine, notes=notes)
