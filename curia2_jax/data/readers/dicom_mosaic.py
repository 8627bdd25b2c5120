"""Siemens mosaics: the slices of a volume as the tiles of one picture.

Number and normal of the slices come from the vendor's own header (CSA 2, https://nipy.org/nibabel/dicom/siemens_csa.html).
As
ImagePositionPatient is that of a picture as large as the mosaic around the center of a slice, the first pixel of a
tile lies half the difference further (https://nipy.org/nibabel/dicom/dicom_mosaic.html).
"""

import dataclasses
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom

from curia2_jax.data.readers.dicom_file import element
from curia2_jax.data.readers.volume import Refusal

_WANTED = ("NumberOfImagesInMosaic", "SliceNormalVector", "ProtocolSliceNumber")


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """`count` tiles, `side` in each row of the picture, in the order of slices along `normal` (3,), a unit vector in
    LPS."""

    count: int
    side: int
    normal: np.ndarray


def says_mosaic(dataset: pydicom.Dataset) -> bool:
    """Whether ImageType has the word, which objects keep that are none any more."""
    return "MOSAIC" in [str(value).upper() for value in element(dataset, "ImageType") or []]


def mosaic_of(dataset: pydicom.Dataset) -> Mosaic | None:
    """The mosaic that a single-frame object is; None where the vendor's header has none.

    Raises:
      Refusal: it is one, and its geometry is not complete.
    """
    try:
        csa = _csa(_private(dataset, 0x0029, "SIEMENS CSA HEADER", 0x10))
        known = _private(dataset, 0x0019, "SIEMENS MR HEADER", 0x0A)
        known = int.from_bytes(known, "little") if isinstance(known, bytes) else known
        count = int((csa.get("NumberOfImagesInMosaic") or [known or 0])[0])
        normal = np.array(csa.get("SliceNormalVector") or [0, 0, 0], float)
        numbering = int((csa.get("ProtocolSliceNumber") or [0])[0])
    except Exception as error:  # of struct, or of pydicom, which may raise any
        raise Refusal("corrupt", f"CSA header: {type(error).__name__}: {error}") from None
    if count < 2:
        return None
    side = int(np.ceil(np.sqrt(count)))
    if is_one_slice(dataset):
        return None  # the header of a mosaic stayed with a slice made from it
    if (
        normal.shape != (3,)
        or not np.isclose(np.linalg.norm(normal), 1, atol=1e-2)
        or not element(dataset, "SpacingBetweenSlices")
    ):
        raise Refusal("irregular_geometry", f"a mosaic of {count} slices without their normal or distance")
    if dataset.Rows % side or dataset.Columns % side or numbering > 1:
        raise Refusal("irregular_geometry", f"a mosaic of {count} slices in {dataset.Rows} x {dataset.Columns} pixels")
    return Mosaic(count, side, normal)


def is_one_slice(dataset: pydicom.Dataset) -> bool:
    """Whether the picture is no larger than what was acquired of a slice."""
    acquired = element(dataset, "AcquisitionMatrix")
    sizes = [n for n in (acquired if isinstance(acquired, Sequence) else []) if isinstance(n, int)]
    return bool(sizes) and max(dataset.Rows, dataset.Columns) <= max(sizes)


def _private(dataset: pydicom.Dataset, group: int, creator: str, element: int) -> Any:
    """Value of a private element, None where there is none."""
    for block in range(0x10, 0x18):
        if (group << 16 | block) in dataset and str(dataset[group << 16 | block].value).strip() == creator:
            tag = group << 16 | block << 8 | element
            return dataset[tag].value if tag in dataset else None
    return None


def _csa(data: object) -> dict[str, list[float]]:
    """Numbers in a CSA 2 header, by name; what is no number is left out.

    Raises:
      struct.error, ValueError: it is damaged.
    """
    if not isinstance(data, bytes) or data[:4] != b"SV10":
        return {}
    out: dict[str, list[float]] = {}
    (tags,), at = struct.unpack_from("<I", data, 8), 16
    for _ in range(min(tags, 1000)):
        name, _, _, _, items, _ = struct.unpack_from("<64si4s3i", data, at)
        at += 84
        values = []
        for _ in range(items):
            length = struct.unpack_from("<4i", data, at)[1]
            if not 0 <= length <= len(data):
                raise ValueError(f"an item of {length} bytes")
            values.append(data[at + 16 : at + 16 + length].split(b"\0")[0].strip())
            at += 16 + (length + 3) // 4 * 4
        name = name.split(b"\0")[0].decode("latin-1")
        if name in _WANTED:
            out[name] = [float(value) for value in values if value]
    return out


def origins(
    mosaic: Mosaic, first: np.ndarray, axes: np.ndarray, pixel: tuple[float, float], size: tuple[int, int], step: float
) -> np.ndarray:
    """(count, 3) first pixels of the tiles in LPS mm, from that of the picture; `size` is that of a tile.

    Raises:
      Refusal: the normal is not that of the slices.
    """
    if abs(float(np.cross(*axes) @ mosaic.normal)) < 0.999:
        raise Refusal("irregular_geometry", "the normal of a mosaic is not that of ImageOrientationPatient")
    half = (mosaic.side - 1) / 2
    corner = first + axes[0] * pixel[1] * size[1] * half + axes[1] * pixel[0] * size[0] * half
    return corner + np.arange(mosaic.count)[:, None] * mosaic.normal * step


def tiles(pixels: np.ndarray, side: int) -> np.ndarray:
    """(1, rows, columns) -> (side * side, rows of a tile, columns of a tile), a view where numpy can make one."""
    rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
    return pixels.reshape(side, rows, side, columns).swapaxes(1, 2).reshape(side * side, rows, columns)
