"""Which structures lie in a slice, by the label maps of a corpus."""

import pathlib
import zipfile

import numpy as np

from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.planes import in_plane
from curia2_jax.errors import UserError

# With fewer pixels of it a slice does not show a structure: less than an eighth of a 16 x 16 patch says little.
MIN_PIXELS = 32


def label_maps(folder: pathlib.Path, series: np.ndarray) -> dict[str, np.ndarray]:
    """{series: (S, P, L) uint16} of the kind of labels that most have; a name in a file is KIND-NUMBER.

    Raises:
      UserError: a file of them is lost or damaged.
    """
    by_kind: dict[str, dict[str, np.ndarray]] = {}
    for one in series.tolist():
        path = folder / layout.label_maps(one)
        try:
            with np.load(path) as file:
                for name in file.files:
                    if name != "affine":
                        by_kind.setdefault(name.rpartition("-")[0], {})[one] = file[name]
        except (OSError, ValueError, zipfile.BadZipFile) as e:
            raise UserError(f"{path}: label maps cannot be read ({type(e).__name__}); put the file back") from e
    return max(by_kind.values(), key=len, default={})


def present(maps: dict[str, np.ndarray], series: np.ndarray, planes: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(n, K) bool: label k has at least MIN_PIXELS pixels in slice `position` of a plane of its series; column 0 is
    what has no label. Every one of `series` (n,) is in `maps`."""
    out = np.zeros((len(series), 1 + max((int(one.max()) for one in maps.values()), default=0)), bool)
    for row, (name, plane, number) in enumerate(zip(series, planes, position, strict=True)):
        pixels = np.bincount(in_plane(maps[name], plane)[number].ravel(), minlength=out.shape[1])
        out[row] = pixels >= MIN_PIXELS
    return out
