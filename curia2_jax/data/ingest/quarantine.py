"""The page of what was refused: how much of the archive each reason cost, and pictures of the first cases.

It names no file: a case is a line of the CSV beside it. Pictures are 96 pixels a side, in which no writing can be read;
what often has names burned in has none.
"""

import base64
import collections
import collections.abc
import io
import math
import pathlib
from typing import cast

import jinja2
import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from curia2_jax import files
from curia2_jax.data.readers import archive
from curia2_jax.data.readers.archive import Refused
from curia2_jax.data.readers.volume import REASONS

_CASES, _SIDE = 4, 96
_NO_PICTURE = ("derived_object", "wrong_modality", "not_an_image", "other_file", "unreadable", "reader_failed")
_MOST_BYTES, _MOST_VOXELS = 64 << 20, 1 << 29  # of a file that is read for a picture


def count(refused: collections.abc.Iterable[Refused]) -> dict[str, dict[str, int]]:
    """What was lost to each reason, in order of their names: lines `listed`, `files` and `bytes`."""
    lost: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for item in refused:
        lost[item.reason].update(listed=1, files=item.files, bytes=item.size)
    return {reason: dict(lost[reason]) for reason in sorted(lost)}


def write_page(
    path: pathlib.Path,
    refused: collections.abc.Iterable[Refused],
    lost: dict[str, dict[str, int]],
    total: int,
    size: int,
) -> None:
    """Writes the page for rows `refused` in the order of the CSV; `lost` is their `count`, `total` files and `size`
    bytes are the whole archive. Raises OSError."""
    cases: dict[str, list[dict]] = collections.defaultdict(list)
    for line, item in enumerate(refused, 2):  # the first line of the CSV is its head
        if len(cases[item.reason]) < _CASES:
            cases[item.reason].append({"line": line, "picture": _picture(item)})
    reasons = [
        {"name": name, "means": REASONS[name], "cases": cases[name], "share": of["bytes"] / max(size, 1), **of}
        for name, of in sorted(lost.items(), key=lambda one: -one[1]["bytes"])
    ]
    template = pathlib.Path(__file__).with_name("quarantine.html.j2").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    files.write_text(path, page.render(reasons=reasons, files=total, bytes=size))


def _picture(item: Refused) -> str:
    """A data URL, or "" where there is nothing to see."""
    if item.reason in _NO_PICTURE or not item.example or item.size > _MOST_BYTES * max(item.files, 1):
        return ""
    try:
        with archive.opened([item.example]) as (path,):
            pixels = _pixels(path)
    except Exception:  # it was refused, so nothing of it can be relied on
        return ""
    low, high = np.percentile(pixels, [1, 99])
    gray = np.clip((pixels - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    image = Image.fromarray(gray)
    image.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _pixels(path: pathlib.Path) -> np.ndarray:
    """A slice (height, width) float32 from the middle of a file. Only what needs no decoder is read: a decoder may be
    what refused it."""
    if path.name.lower().endswith((".nii", ".nii.gz", ".hdr")):
        image = cast(nib.Nifti1Image, nib.load(path))
        if math.prod(image.shape) > _MOST_VOXELS:
            raise ValueError("too large for a picture")
        middle = tuple(side // 2 for side in image.shape[2:])
        return np.nan_to_num(np.asarray(image.dataobj[(slice(None), slice(None), *middle)], np.float32)).T[::-1]
    if read_file_meta_info(path).TransferSyntaxUID not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        raise ValueError("compressed")
    pixels = pydicom.dcmread(path).pixel_array
    return np.nan_to_num(np.asarray(pixels[len(pixels) // 2] if pixels.ndim == 3 else pixels, np.float32))
