"""Boxes of the global and local crops of a slice, drawn around the anatomy.

DINOv2 (appendix B.1, "RandomResizedCrop") takes crops anywhere in a photograph. A CT or MR slice is air for a good
part, so Curia-2 draws their centers from a Gaussian around the anatomy ("Gaussian-weighted anatomical cropping"). The
paper gives no formula; here the Gaussian is the axis-aligned one of the slice's foreground, *truncated* to where the
box fits into the slice. With an infinite spread this is the uniform placement of DINOv2, which slices without anatomy
get too.

Everything is vectorized over images and a fixed function of five uniform numbers a view, so that a draw costs the same
for every slice and a row of a batch can be made anywhere.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Integer

from curia2_jax.data.crops.gaussian import Placement, spread, truncated

DRAWS = 5  # uniform numbers a view: size, aspect, center y, center x, flip


@dataclasses.dataclass(frozen=True)
class CropsConfig:
    """Two global and `num_local` local crops of every slice. `*_size` are pixels of the crop after resizing."""

    placement: Placement  # of the centers
    global_size: int
    local_size: int
    num_local: int
    unit: Literal["area", "mm"]  # whether `*_area` or `*_mm` rules the size of a box
    global_area: tuple[float, float]  # fractions of the slice's area, drawn uniformly
    local_area: tuple[float, float]
    global_mm: tuple[float, float]  # geometric mean of a box's sides in millimeters, drawn uniformly
    local_mm: tuple[float, float]
    aspect: tuple[float, float]  # width over height in millimeters, drawn log-uniformly
    flip_rate: float  # of left-right flips; laterality is a label, hence 0 in every recipe


class Geometry(NamedTuple):
    """What boxes depend on, for B slices, rows first."""

    extent: Integer[np.ndarray, "B 2"]  # height and width in pixels
    spacing: Float[np.ndarray, "B 2"]  # millimeters a pixel
    mean: Float64[np.ndarray, "B 2"]  # center of the anatomy in continuous pixels (pixel i covers [i, i + 1))
    std: Float64[np.ndarray, "B 2"]  # its spread in pixels; infinite where no anatomy is known


def gaussians(geometry: Geometry, placement: Placement) -> tuple[Float[np.ndarray, "B 2"], Float[np.ndarray, "B 2"]]:
    """Mean and spread of the places that `placement` asks for."""
    return geometry.mean, spread(geometry.std, placement)


def draw_boxes(
    uniform: Float64[np.ndarray, "B views draws"], geometry: Geometry, config: CropsConfig
) -> tuple[Float32[np.ndarray, "B 2 4"], Float32[np.ndarray, "B local 4"], Bool[np.ndarray, "B views"]]:
    """Boxes and flips of B slices.

    The area of a box follows its range exactly: the log-uniform aspect is confined to what fits into the slice for that
    area, where RandomResizedCrop redraws both up to ten times and so thins out large areas. Only when no aspect of the
    range fits (a long and narrow slice) is the box clipped, its aspect kept in the range, as RandomResizedCrop does in
    the end. Area and aspect are those of millimeters, so that anisotropic pixels do not distort a crop further.

    Args:
      uniform: in [0, 1), DRAWS numbers for each of the 2 + num_local views, global ones first.

    Returns:
      global and local boxes, y0, x0, y1, x1 in continuous pixel coordinates inside [0, height] x [0, width]; flips,
      True for columns reversed.
    """
    of_size, of_aspect, of_center, of_flip = uniform[..., 0], uniform[..., 1], uniform[..., 2:4], uniform[..., 4]
    extent = geometry.extent.astype(np.float64)[:, None]  # (B, 1, 2)
    spacing = geometry.spacing.astype(np.float64)[:, None]
    height, width = np.moveaxis(extent * spacing, -1, 0)  # (B, 1), millimeters
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
    mean, std = gaussians(geometry, config.placement)
    center = truncated(of_center, mean[:, None], std[:, None], half, extent - half)
    boxes = np.concatenate([np.clip(center - half, 0.0, extent), np.clip(center + half, 0.0, extent)], -1)
    boxes = boxes.astype(np.float32)  # whole numbers such as the extent are exact, so rounding leaves no box outside
    return boxes[:, :2], boxes[:, 2:], of_flip < config.flip_rate
