"""What anatomical placement buys on real slices: how much of the crops and masks lies on the body.

corpus = Corpus("corpus")
for row in placement_statistics(corpus, bodies.finder(corpus), crops_config, masks_config, grid=16):
    print(row)
"""

import dataclasses
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.crops import boxes as crops
from curia2_jax.data.crops import masks
from curia2_jax.data.crops.loader import geometry_of

_BORDER = 1.0  # pixel


class Row(NamedTuple):
    """Means over the sampled slices, and what they are the means of; all shares in [0, 1]."""

    what: str  # global crops, local crops, masked patches
    placement: str
    on_foreground: float  # share of the area
    at_border: float  # share of the boxes with an edge within a pixel of the slice's; NaN for masks
    nearly_empty: float  # share of the boxes (masks) with less than a tenth of their area on the foreground
    shares: np.ndarray  # (n,) share of the area of each box (mask) on the foreground


def placement_statistics(
    corpus: Corpus,
    body: Callable[[int], tuple[np.ndarray, int]],
    crops_config: crops.CropsConfig,
    masks_config: masks.MasksConfig,
    grid: int,
    *,
    images: int = 500,
    seed: int = 0,
) -> list[Row]:
    """Rows for both placements of the crops and, in anatomical crops, of the masks (grid x grid patches).

    Both placements get the same random numbers, and the masks the same boxes. `body` gives the foreground of a slice,
    bool (h, w) in cells, and the pixels along a cell.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(corpus), min(images, len(corpus)), replace=False))
    integrals = [_integral(*body(int(i))) for i in chosen]
    geometry = geometry_of(corpus.rows(chosen))
    uniform = rng.random((len(chosen), 2 + crops_config.num_local, crops.DRAWS))
    rows, boxes, flips = [], None, None
    for placement in ("uniform", "anatomical"):
        config = dataclasses.replace(crops_config, placement=placement)
        boxes, small, flips = crops.draw(uniform, geometry, config)
        for what, some in (("global crops", boxes), ("local crops", small)):
            shares = np.array([share(integral, b) for integral, b in zip(integrals, some, strict=True)])
            gap = np.minimum(some[..., :2], geometry.extent[:, None] - some[..., 2:]).min(-1)
            rows.append(Row(what, placement, *_shares(shares, gap)))
    for placement in ("uniform", "anatomical"):
        mean, std = masks.into_crop(*crops.anatomy(geometry, placement), boxes, flips[:, :2], (grid, grid))
        shares = []
        for i, integral in enumerate(integrals):
            patches = _patches(boxes[i, 0], bool(flips[i, 0]), grid)
            prior = masks.Prior(mean[i, 0], std[i, 0], (grid, grid)) if np.isfinite(std[i, 0, 0]) else None
            target = int(grid * grid * np.mean(masks_config.ratio))
            mask = masks.draw(random.Random(seed + i), grid, grid, target, prior)
            shares.append(share(integral, patches[mask]).mean())
        rows.append(Row("masked patches", placement, *_shares(np.array(shares), None)))
    return rows


def share(integral: tuple[np.ndarray, int], boxes: np.ndarray) -> np.ndarray:
    """Share of the area of each box (n, 4) on the foreground, (n,), from `_integral`; exact for fractional edges."""
    table, block = integral
    corners = boxes.astype(np.float64) / block

    def at(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        # The integral of a mask that is constant in each cell is bilinear in each cell.
        top, left = (np.clip(v.astype(int), 0, n - 2) for v, n in zip((y, x), table.shape, strict=True))
        fy, fx = np.clip(y - top, 0, 1), np.clip(x - left, 0, 1)
        upper = table[top, left] * (1 - fx) + table[top, left + 1] * fx
        lower = table[top + 1, left] * (1 - fx) + table[top + 1, left + 1] * fx
        return upper * (1 - fy) + lower * fy

    y0, x0, y1, x1 = corners.T
    return (at(y1, x1) - at(y0, x1) - at(y1, x0) + at(y0, x0)) / ((y1 - y0) * (x1 - x0))


def _shares(shares: np.ndarray, gap: np.ndarray | None) -> tuple[float, float, float, np.ndarray]:
    border = float("nan") if gap is None else float((gap < _BORDER).mean())
    return float(shares.mean()), border, float((shares < 0.1).mean()), shares.ravel()


def _patches(box: np.ndarray, flip: bool, grid: int) -> np.ndarray:
    """Boxes of the patches of a crop in the slice, (grid * grid, 4)."""
    y = np.linspace(box[0], box[2], grid + 1)
    x = np.linspace(box[1], box[3], grid + 1)
    left, right = (x[:-1], x[1:]) if not flip else (x[:-1][::-1], x[1:][::-1])
    corners = np.broadcast_arrays(y[:-1, None], left[None], y[1:, None], right[None])
    return np.stack(corners, -1).reshape(-1, 4)


def _integral(mask: np.ndarray, cell: int) -> tuple[np.ndarray, int]:
    """Cumulated foreground of a slice, (rows + 1, columns + 1) in cells, and the pixels along a cell."""
    table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    table[1:, 1:] = mask.cumsum(0).cumsum(1)
    return table, cell
