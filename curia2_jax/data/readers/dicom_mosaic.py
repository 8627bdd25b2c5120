"""Mosaics: the slices of a volume as the tiles of one picture.

Siemens: number and normal of the slices come from the vendor's own header (CSA 2,
https://nipy.org/nibabel/dicom/siemens_csa.html; of CSA 1 there are two accounts and no public sample). As
ImagePositionPatient is that of a picture as large as the mosaic around the center of a slice, the first pixel of a tile
lies half the difference further (https://nipy.org/nibabel/dicom/dicom_mosaic.html). The order of the tiles is that of
the normal, whichever way the slices were numbered (rordenlab/dcm2niix#40).

United Imaging: a private sequence has the position of every tile (rordenlab/dcm2niix, UIH/README.md).
"""

import dataclasses
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pydicom

from curia2_jax.data.readers.dicom_file import element
from curia2_jax.data.readers.volume import Refusal

_WANTED = ("NumberOfImagesInMosaic", "SliceNormalVector")
_WORDS = {"MOSAIC", "VFRAME"}


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """`count` tiles, of which the picture has `layout` (rows, columns), in the order of slices: along `normal` (3,), a
    unit vector in LPS, or at `places` (count, 3), LPS mm of their first pixels."""

    count: int
    layout: tuple[int, int]
    normal: np.ndarray | None = None
    places: np.ndarray | None = None


def says_mosaic(dataset: pydicom.Dataset) -> bool:
    """Whether ImageType has a vendor's word for it, which objects keep that are none any more."""
    return not _WORDS.isdisjoint(str(value).upper() for value in element(dataset, "ImageType") or [])


def mosaic_of(dataset: pydicom.Dataset) -> Mosaic | None:
    """The mosaic that a single-frame object is; None where the vendor's header has none.

    Raises:
      Refusal: it is one, and its geometry is not complete.
    """
    try:
        mosaic = _siemens(dataset) or _united_imaging(dataset)
    except Refusal:
        raise
    except Exception as error:  # of struct, or of pydicom, which may raise any
        raise Refusal("corrupt", f"CSA header: {type(error).__name__}: {error}") from None
    if mosaic is not None and (dataset.Rows % mosaic.layout[0] or dataset.Columns % mosaic.layout[1]):
        size = f"{dataset.Rows} x {dataset.Columns}"
        raise Refusal("irregular_geometry", f"a mosaic of {mosaic.count} slices in {size} pixels")
    return mosaic


def _siemens(dataset: pydicom.Dataset) -> Mosaic | None:
    csa = _csa(_private(dataset, 0x0029, "SIEMENS CSA HEADER", 0x10))
    known = _private(dataset, 0x0019, "SIEMENS MR HEADER", 0x0A)
    known = int.from_bytes(known, "little") if isinstance(known, bytes) else known
    count = int((csa.get("NumberOfImagesInMosaic") or [known or 0])[0])
    normal = np.array(csa.get("SliceNormalVector") or [0, 0, 0], float)
    if count < 2 or is_one_slice(dataset):  # the header of a mosaic stayed with a slice made from it
        return None
    straight = normal.shape == (3,) and np.isclose(np.linalg.norm(normal), 1, atol=1e-2)
    if not straight or not element(dataset, "SpacingBetweenSlices"):
        raise Refusal("irregular_geometry", f"a mosaic of {count} slices without their normal or distance")
    side = int(np.ceil(np.sqrt(count)))
    return Mosaic(count, (side, side), normal)


def _united_imaging(dataset: pydicom.Dataset) -> Mosaic | None:
    count = int(float(_private(dataset, 0x0065, "Image Private Header", 0x50) or 0))
    if count < 2 or is_one_slice(dataset):
        return None
    items = _private(dataset, 0x0065, "Image Private Header", 0x51) or []
    places = np.array([item.ImagePositionPatient for item in items if "ImagePositionPatient" in item], float)
    first = dataset.get("ImagePositionPatient")
    if places.shape != (count, 3) or (first and not np.allclose(np.array(first, float), places[0], atol=0.01)):
        raise Refusal("irregular_geometry", f"a mosaic of {count} slices, of which {len(places)} say where they lie")
    columns = int(np.ceil(np.sqrt(count)))
    return Mosaic(count, (-(-count // columns), columns), places=places)


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
    """(count, 3) first pixels of the tiles of a mosaic with a normal in LPS mm, from that of the picture; `size` is
    that of a tile.

    Raises:
      Refusal: the normal is not that of the slices.
    """
    assert mosaic.normal is not None
    if abs(float(np.cross(*axes) @ mosaic.normal)) < 0.999:
        raise Refusal("irregular_geometry", "the normal of a mosaic is not that of ImageOrientationPatient")
    down, right = ((tiles - 1) / 2 for tiles in mosaic.layout)
    corner = first + axes[0] * pixel[1] * size[1] * right + axes[1] * pixel[0] * size[0] * down
    return corner + np.arange(mosaic.count)[:, None] * mosaic.normal * step


def tiles(pixels: np.ndarray, layout: tuple[int, int]) -> np.ndarray:
    """(1, rows, columns) -> (tiles, rows of a tile, columns of a tile), a view where numpy can make one."""
    down, right = layout
    rows, columns = pixels.shape[1] // down, pixels.shape[2] // right
    return pixels.reshape(down, rows, right, columns).swapaxes(1, 2).reshape(down * right, rows, columns)
