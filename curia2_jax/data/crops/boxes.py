"""Boxes of the global and local crops of a slice, drawn around the anatomy.

DINOv2 (appendix B.1, "RandomResizedCrop") takes crops anywhere in a photograph. A CT or MR slice is air for a good
part, so Curia-2 draws their centres from a Gaussian around the anatomy ("Gaussian-weighted anatomical cropping"). The
paper gives no formula; here the Gaussian is the axis-aligned one of the slice's foreground, *truncated* to where the
box fits into the slice. With an infinite spread this is the uniform placement of DINOv2, which slices without anatomy
get too.

Everything is vectorised over images and a fixed function of five uniform numbers a view, so that a draw costs the same
for every slice and a row of a batch can be made anywhere.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import log_ndtr, ndtri_exp

DRAWS = 5  # uniform numbers a view: size, aspect, centre y, centre x, flip
_NARROWEST = 1e-3  # pixels; a smaller spread is a point


@dataclasses.dataclass(frozen=True)
class CropsConfig:
    """Two global and `num_local` local crops of every slice. `*_size` are pixels of the crop after resizing."""

    placement: Literal["anatomical", "uniform"]  # of the centres
    global_size: int
    local_size: int
    num_local: int
    unit: Literal["area", "mm"]  # whether `*_area` or `*_mm` rules the size of a box
    global_area: tuple[float, float]  # fractions of the slice's area, drawn uniformly
    local_area: tuple[float, float]
    global_mm: tuple[float, float]  # geometric mean of a box's sides in millimetres, drawn uniformly
    local_mm: tuple[float, float]
    aspect: tuple[float, float]  # width over height in millimetres, drawn log-uniformly
    flip_rate: float  # of left-right flips; laterality is a label, hence 0 in every recipe


class Geometry(NamedTuple):
    """What boxes depend on, for B slices; all arrays (B, 2), rows first."""

    extent: np.ndarray  # int, height and width in pixels
    spacing: np.ndarray  # float, millimetres a pixel
    mean: np.ndarray  # float, centre of the anatomy in continuous pixel coordinates (pixel i covers [i, i + 1))
    std: np.ndarray  # float, its spread in pixels; not finite or not positive: no anatomy is known


def anatomy(geometry: Geometry, placement: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread, (B, 2) float64 each; the spread is infinite where placement is uniform."""
    mean, std = geometry.mean.astype(np.float64), geometry.std.astype(np.float64)
    known = np.isfinite(mean) & np.isfinite(std) & (std > 0)
    known = known.all(-1, keepdims=True) & (placement == "anatomical")
    return np.where(known, mean, 0.0), np.where(known, np.maximum(std, _NARROWEST), np.inf)


def truncated_gaussian(
    uniform: np.ndarray, mean: np.ndarray, std: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Quantiles `uniform` in [0, 1) of a Gaussian truncated to [low, high]; an infinite `std` gives the uniform law.

    Inverse of the distribution function, taken in logarithms in whichever tail is the lower one: exact for an interval
    any number of standard deviations away from the mean.
    """
    a, b = (low - mean) / std, (high - mean) / std
    mirrored = a + b > 0
    a, b = np.where(mirrored, -b, a), np.where(mirrored, -a, b)
    quantile = np.where(mirrored, 1.0 - uniform, uniform)
    log_a, log_b = log_ndtr(a), log_ndtr(b)
    with np.errstate(divide="ignore"):  # quantile 0 is the lower end
        z = ndtri_exp(log_b + np.log(quantile + (1.0 - quantile) * np.exp(log_a - log_b)))
    endless = np.isinf(std)
    z = mean + np.where(endless, 1.0, std) * np.where(mirrored, -z, z)
    return np.clip(np.where(endless, low + uniform * (high - low), z), low, high)


def draw(uniform: np.ndarray, geometry: Geometry, config: CropsConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes and flips of B slices.

    The area of a box follows its range exactly: the log-uniform aspect is confined to what fits into the slice for that
    area, where RandomResizedCrop redraws both up to ten times and so thins out large areas. Only when no aspect of the
    range fits (a long and narrow slice) is the box clipped, its aspect kept in the range, as RandomResizedCrop does in
    the end. Area and aspect are those of millimetres, so that anisotropic pixels do not distort a crop further.

    Args:
      uniform: (B, 2 + num_local, DRAWS) float64 in [0, 1); global views first.
    Returns:
      global boxes (B, 2, 4) and local boxes (B, num_local, 4), float32 y0, x0, y1, x1 in continuous pixel coordinates,
      inside [0, height] x [0, width]; flips (B, 2 + num_local) bool, True for columns reversed.
    """
    of_size, of_aspect, of_center, of_flip = uniform[..., 0], uniform[..., 1], uniform[..., 2:4], uniform[..., 4]
    extent = geometry.extent.astype(np.float64)[:, None]  # (B, 1, 2)
    spacing = geometry.spacing.astype(np.float64)[:, None]
    height, width = np.moveaxis(extent * spacing, -1, 0)  # (B, 1), millimetres
    ranges = (config.global_area, config.local_area) if config.unit == "area" else (config.global_mm, config.local_mm)
    low, high = np.repeat(np.array(ranges), (2, config.num_local), axis=0).T
    size = low + (high - low) * of_size  # (B, views)
    area = size * height * width if config.unit == "area" else np.minimum(np.square(size), height * width)

    narrow, wide = np.log(config.aspect)
    narrow, wide = (
        np.clip(np.log(area / np.square(height)), narrow, wide),
        np.clip(np.log(np.square(width) / area), narrow, wide),
    )
    aspect = np.exp(narrow + (wide - narrow) * of_aspect)
    tall = np.minimum(np.sqrt(area / aspect), height)
    broad = np.minimum(np.minimum(np.sqrt(area * aspect), width), tall * config.aspect[1])
    tall = np.minimum(tall, broad / config.aspect[0])

    half = np.minimum(np.stack([tall, broad], -1) / spacing, extent) / 2  # (B, views, 2), pixels
    mean, std = anatomy(geometry, config.placement)
    center = truncated_gaussian(of_center, mean[:, None], std[:, None], half, extent - half)
    boxes = np.concatenate([np.clip(center - half, 0.0, extent), np.clip(center + half, 0.0, extent)], -1)
    boxes = boxes.astype(np.float32)  # whole numbers such as the extent are exact, so rounding leaves no box outside
    return boxes[:, :2], boxes[:, 2:], of_flip < config.flip_rate
