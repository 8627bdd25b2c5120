"""Where the body is in a slice: a foreground mask and the Gaussian that summarizes it.

Found on block means of at most 128 pixels a side, which costs a tenth of full resolution and moves center and spread by
less than two pixels. A CT is cut at a fixed HU, an MR at Otsu's threshold of its whole volume (per slice it would split
the noise of empty slices in two). In CT an opening takes off table and cloth, but not the walls of a hollow phantom;
components much smaller than the largest are dropped, which leaves arms and legs in; holes such as lungs and bowel are
filled.
"""

import dataclasses

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

# Half way between air (-1000 HU) and water.
CT_THRESHOLD = -500
# Slices with less foreground than this fraction of their area are not stored: the tips of a scan, and slices beyond it.
MIN_FOREGROUND = 0.02
# A component smaller than this fraction of the largest in its slice is a piece of table or an artefact; an arm
# has about 8 % of the abdomen's area.
_MIN_COMPONENT = 0.04
# A component smaller than this fraction of the slice is noise, which is all that some slices have.
_MIN_AREA = 0.001
# Air shut in by walls is the inside of a hollow body when, with what stands in it, it has at least this share of the
# area of the solid parts, and holds a circle of at least this radius per root of its area: 0.56 is a circle, 0.35 a
# rectangle twice as wide as high.
_MIN_HOLLOW, _MIN_ROUNDNESS = 0.5, 0.35
_SIDE = 128
# In-plane neighbors only: the slices of a block share nothing.
_CROSS = np.zeros((3, 3, 3), bool)
_CROSS[1] = ndimage.generate_binary_structure(2, 1)
_SQUARE = np.zeros((3, 3, 3), bool)
_SQUARE[1] = True


@dataclasses.dataclass(frozen=True)
class Foreground:
    """Foreground of n slices: `fraction` of the area (n,), centroid `y`, `x` and standard deviations `std_y`, `std_x`
    (n,) in pixels of the slice, pixel i covering [i, i + 1); all float32. Without foreground the center of the slice
    and infinite spread."""

    fraction: np.ndarray
    y: np.ndarray
    x: np.ndarray
    std_y: np.ndarray
    std_x: np.ndarray


def reduce(slices: np.ndarray, side: int = _SIDE) -> np.ndarray:
    """Means of k x k blocks of int16 (n, h, w), float32 (n, ceil(h / k), ceil(w / k)), with the least k that gives
    sides of at most `side`. Blocks that hang over the edge repeat it."""
    n, h, w = slices.shape
    k = -(-max(h, w) // side)
    if k == 1:
        return slices.astype(np.float32)
    if h % k or w % k:
        slices = np.pad(slices, ((0, 0), (0, -h % k), (0, -w % k)), mode="edge")
    rows = np.add.reduce(slices.reshape(n, -1, k, slices.shape[2]), axis=2, dtype=np.int32)
    return np.add.reduce(rows.reshape(n, rows.shape[1], -1, k), axis=3).astype(np.float32) / np.float32(k**2)


def mr_threshold(values: np.ndarray) -> float:
    """Otsu's threshold (1979) of MR intensities (n,) between background and body; bright fluid and fat are compressed
    first, since Otsu would otherwise part them from the rest of the body. -inf for a constant."""
    low, high = np.percentile(values, [1, 99])
    if not high > low:
        return float(low) if values.min() == values.max() else float(np.mean(values))
    root = np.sqrt(np.clip(values - low, 0, high - low))
    return float(threshold_otsu(root) ** 2 + low)


def body(reduced: np.ndarray, threshold: float, couch: bool) -> np.ndarray:
    """Body in block means (n, h, w): bool of the same shape. `couch` says that one may touch the body, as in CT."""
    mask = reduced > threshold
    if couch:
        solid = ndimage.binary_opening(mask, _SQUARE)
        hollow = _hollow(mask, solid)
        mask = solid if hollow is None else ndimage.binary_opening(mask | hollow, _SQUARE)
    labels, count = ndimage.label(mask, _CROSS)
    if count:
        area = np.bincount(labels.ravel(), minlength=count + 1)
        area[0] = 0
        largest = area[labels].reshape(len(mask), -1).max(axis=1)
        home = np.zeros(count + 1, np.int64)
        where = np.nonzero(labels)
        home[labels[where]] = where[0]
        least = np.maximum(_MIN_COMPONENT * largest[home], _MIN_AREA * mask[0].size)
        mask &= (area >= least)[labels]
    mask |= ndimage.binary_closing(mask, _SQUARE)  # whether a skull or a lung is closed must not depend on one pixel
    return mask | _enclosed(mask)


def _enclosed(mask: np.ndarray) -> np.ndarray:
    """Background of (n, h, w) that is shut off from the edges of its slice."""
    outside, count = ndimage.label(~mask, _CROSS)
    open_air = np.zeros(count + 1, bool)
    for edge in (outside[:, 0], outside[:, -1], outside[:, :, 0], outside[:, :, -1]):
        open_air[edge.ravel()] = True
    open_air[0] = True  # the body itself
    return ~open_air[outside]


def _hollow(mask: np.ndarray, solid: np.ndarray) -> np.ndarray | None:
    """Insides of hollow bodies, whose thin walls an opening would take off with the table: bool (n, h, w), None where
    there is none. A table may be hollow too, but it is flat, and small beside what is solid of the body."""
    air = _enclosed(mask)
    least = np.maximum(_MIN_HOLLOW * solid.sum((1, 2)), _MIN_AREA * mask[0].size)
    found = None
    for z in np.flatnonzero(air.sum((1, 2)) >= least):
        labels, count = ndimage.label(air[z])
        for hole in range(1, count + 1):
            inside = ndimage.binary_fill_holes(labels == hole)  # with what stands in it
            area = np.count_nonzero(inside)
            if area < least[z] or ndimage.distance_transform_edt(inside).max() < _MIN_ROUNDNESS * np.sqrt(area):
                continue
            found = np.zeros_like(mask) if found is None else found
            found[z] |= inside
    return found


def summarize(mask: np.ndarray, shape: tuple[int, int]) -> Foreground:
    """Foreground of slices of `shape` (height, width) from their masks at any resolution, bool (n, h, w)."""
    h, w = mask.shape[1:]
    k = -(-max(shape) // max(h, w))
    center_y, weight_y = _cells(h, k, shape[0])
    center_x, weight_x = _cells(w, k, shape[1])
    rows = mask @ weight_x * weight_y  # (n, h) pixels of foreground
    columns = np.einsum("nhw,h->nw", mask, weight_y, optimize=True) * weight_x
    area = rows.sum(axis=1)
    full = np.where(area > 0, area, 1)

    def moments(
        profile: np.ndarray, center: np.ndarray, weight: np.ndarray, side: int
    ) -> tuple[np.ndarray, np.ndarray]:
        mean = profile @ center / full
        spread = profile @ (center**2 + (weight**2 - 1) / 12) / full - mean**2
        std = np.sqrt(np.maximum(spread, 0))
        return np.where(area > 0, mean, side / 2).astype(np.float32), np.where(area > 0, std, np.inf).astype(np.float32)

    y, std_y = moments(rows, center_y, weight_y, shape[0])
    x, std_x = moments(columns, center_x, weight_x, shape[1])
    return Foreground((area / (shape[0] * shape[1])).astype(np.float32), y, x, std_y, std_x)


def find(slices: np.ndarray, threshold: float, couch: bool) -> Foreground:
    """Foreground of int16 slices (n, height, width); `threshold` in stored numbers, `couch` as in `body`."""
    return summarize(body(reduce(slices), threshold, couch), slices.shape[1:])


def _cells(count: int, k: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Centers and widths of `count` cells of k pixels, the last one cut off at `side`."""
    edges = np.minimum(np.arange(count + 1) * k, side).astype(np.float64)
    return (edges[1:] + edges[:-1]) / 2, np.diff(edges)
