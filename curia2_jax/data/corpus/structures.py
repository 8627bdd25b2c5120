"""Which structures lie in a slice, and where, by the label maps of a corpus."""

import collections
import functools
import pathlib
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.planes import in_plane
from curia2_jax.errors import UserError

# With fewer pixels of it a slice does not show a structure: less than an eighth of a 16 x 16 patch says little.
MIN_PIXELS = 32


def kinds_in(path: pathlib.Path) -> dict[str, list[str]]:
    """{kind of labels: names of its arrays} of a file of label maps, in which a name is KIND-NUMBER.

    Raises:
      UserError: the file is lost or damaged.
    """
    out: dict[str, list[str]] = {}
    for name in _read(path, lambda file: list(file.files)):
        if name != "affine":
            out.setdefault(name.rpartition("-")[0], []).append(name)
    return out


def most_frequent(kinds: Iterable[Iterable[str]]) -> str:
    """The kind of labels that most series have, the first by name of several; "" where there is none."""
    count = collections.Counter(kind for found in kinds for kind in found)
    return min(count, key=lambda kind: (-count[kind], kind), default="")


def of_kind(path: pathlib.Path, names: list[str]) -> np.ndarray:
    """(S, P, L) uint16: the label maps `names` of a series as one; where two of them overlap, the later one.

    Raises:
      UserError: the file is lost or damaged.
    """
    first, *others = _read(path, lambda file: [file[name] for name in names])
    return functools.reduce(lambda one, other: np.where(other > 0, other, one), others, first)


def _read(path: pathlib.Path, what: Callable[[Any], list]) -> list:
    try:
        with np.load(path) as file:
            return what(file)
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise UserError(f"{path}: label maps cannot be read ({type(e).__name__}); put the file back") from e


def label_maps(folder: pathlib.Path, series: np.ndarray) -> dict[str, np.ndarray]:
    """{series: (S, P, L) uint16} of the kind of labels that most have.

    Raises:
      UserError: a file of them is lost or damaged.
    """
    paths = {one: folder / layout.label_maps(one) for one in series.tolist()}
    kinds = {one: kinds_in(path) for one, path in paths.items()}
    kind = most_frequent(kinds.values())
    return {one: of_kind(paths[one], found[kind]) for one, found in kinds.items() if kind in found}


def present(maps: dict[str, np.ndarray], series: np.ndarray, planes: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(n, K) bool: label k has at least MIN_PIXELS pixels in slice `position` of a plane of its series; column 0 is
    what has no label. Every one of `series` (n,) is in `maps`."""
    out = np.zeros((len(series), 1 + max((int(one.max()) for one in maps.values()), default=0)), bool)
    for row, (name, plane, number) in enumerate(zip(series, planes, position, strict=True)):
        pixels = np.bincount(in_plane(maps[name], plane)[number].ravel(), minlength=out.shape[1])
        out[row] = pixels >= MIN_PIXELS
    return out


def shares(
    maps: dict[str, np.ndarray],
    series: np.ndarray,
    planes: np.ndarray,
    position: np.ndarray,
    labels: np.ndarray,
    grid: int,
) -> np.ndarray:
    """(n, grid * grid, K) float32: of each patch of a slice, row by row, the share that each of `labels` (K,) covers.

    The whole slice is `grid` patches high and wide, whatever its shape. Slices are given as to `present`.
    """
    out = np.zeros((len(series), grid * grid, len(labels)), np.float32)
    for row, (name, plane, number) in enumerate(zip(series, planes, position, strict=True)):
        one = in_plane(maps[name], plane)[number]
        down, across = (_coverage(size, grid) for size in one.shape)
        for column in np.flatnonzero(np.isin(labels, np.unique(one))):
            out[row, :, column] = (down @ (one == labels[column]) @ across.T).ravel()
    return out


def _coverage(size: int, grid: int) -> np.ndarray:
    """(grid, size): the share of each cell that each of `size` pixels covers; rows sum to 1."""
    edges, pixels = np.arange(grid + 1)[:, None] * size / grid, np.arange(size)
    overlap = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return np.maximum(overlap, 0) * grid / size
