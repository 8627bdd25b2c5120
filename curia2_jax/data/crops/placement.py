"""What anatomical placement buys on real slices: how much of the crops and masks lies on the body, as a table and as a
picture.

corpus = Corpus("corpus")
for row in statistics(corpus, bodies.finder(corpus), crops_config, masks_config, grid=16):
    print(row)
"""

import dataclasses
import pathlib
import random
from collections.abc import Callable
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.crops.boxes import DRAWS, CropsConfig, Geometry, draw_boxes, gaussians
from curia2_jax.data.crops.gaussian import PatchGaussian, Placement, into_crop
from curia2_jax.data.crops.loader import geometry_of
from curia2_jax.data.crops.masks import MasksConfig, draw_mask

# Number of a slice -> its foreground, bool (h, w) in cells, and the pixels along a cell.
Body = Callable[[int], tuple[np.ndarray, int]]

_PLACEMENTS: tuple[Placement, ...] = ("uniform", "anatomical")
_BORDER = 1.0  # pixel
_BINS = np.linspace(0, 1, 26)
_COLORS = {"uniform": "0.45", "anatomical": "tab:blue"}


class Row(NamedTuple):
    """Means over the sampled slices, and what they are the means of; all shares in [0, 1]."""

    what: str  # global crops, local crops, masked patches
    placement: str
    on_foreground: float  # share of the area
    at_border: float  # share of the boxes with an edge within a pixel of the slice's; NaN for masks
    nearly_empty: float  # share of the boxes (masks) with less than a tenth of their area on the foreground
    shares: np.ndarray  # (n,) share of the area of each box (mask) on the foreground


def statistics(
    corpus: Corpus,
    body: Body,
    crops_config: CropsConfig,
    masks_config: MasksConfig,
    grid: int,
    *,
    images: int = 500,
    seed: int = 0,
) -> list[Row]:
    """Rows for both placements of the crops and, in anatomical crops, of the masks (grid x grid patches).

    Both placements get the same random numbers, and the masks the same boxes.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(corpus), min(images, len(corpus)), replace=False))
    integrals = [_integral(*body(int(i))) for i in chosen]
    geometry = geometry_of(corpus.rows(chosen))
    uniform = rng.random((len(chosen), 2 + crops_config.num_local, DRAWS))
    rows: list[Row] = []
    for placement in _PLACEMENTS:
        crops = dataclasses.replace(crops_config, placement=placement)
        global_boxes, local_boxes, flips = draw_boxes(uniform, geometry, crops)
        for what, boxes in (("global crops", global_boxes), ("local crops", local_boxes)):
            shares = np.array([share(integral, b) for integral, b in zip(integrals, boxes, strict=True)])
            gap = np.minimum(boxes[..., :2], geometry.extent[:, None] - boxes[..., 2:]).min(-1)
            rows.append(Row(what, placement, *_shares(shares, gap)))
    for placement in _PLACEMENTS:
        masks = dataclasses.replace(masks_config, placement=placement)
        # In the crops of the placement drawn last, the anatomical one.
        shares = _mask_shares(integrals, geometry, global_boxes[:, :1], flips[:, :1], masks, grid, seed)
        rows.append(Row("masked patches", placement, *_shares(shares, None)))
    return rows


def _mask_shares(
    integrals: list[tuple[np.ndarray, int]],
    geometry: Geometry,
    boxes: np.ndarray,
    flips: np.ndarray,
    config: MasksConfig,
    grid: int,
    seed: int,
) -> np.ndarray:
    """Share of the area of the mask of each crop on the foreground, (n,); boxes (n, 1, 4), flips (n, 1)."""
    mean, std = into_crop(*gaussians(geometry, config.placement), boxes, flips, (grid, grid))
    target = int(grid * grid * np.mean(config.ratio))
    shares = []
    for i, integral in enumerate(integrals):
        mask = draw_mask(random.Random(seed + i), target, PatchGaussian(mean[i, 0], std[i, 0], (grid, grid)))
        shares.append(share(integral, _patches(boxes[i, 0], bool(flips[i, 0]), grid)[mask]).mean())
    return np.array(shares)


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


def draw_histograms(rows: list[Row], path: pathlib.Path) -> None:
    """Write a PNG: how the share of the area on the foreground is spread over the boxes (masks), its mean as a line."""
    kinds = list(dict.fromkeys(row.what for row in rows))
    figure, axes = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 3.4), squeeze=False)
    for axis, what in zip(axes[0], kinds, strict=True):
        for row in (row for row in rows if row.what == what):
            color, label = _COLORS[row.placement], f"{row.placement}: mean {row.on_foreground:.2f}"
            percent = np.full(len(row.shares), 100 / len(row.shares))
            axis.hist(row.shares, _BINS, weights=percent, color=color, alpha=0.3)
            axis.hist(row.shares, _BINS, weights=percent, color=color, histtype="step", linewidth=1.2)
            axis.axvline(row.on_foreground, ymax=0.78, color=color, linestyle="--", linewidth=1.2, label=label)
        axis.set_title(what)
        axis.set_xlim(0, 1)
        axis.set_xlabel("share of the area on the body")
        axis.set_ylabel(f"% of {what}" if what != "masked patches" else "% of masks")
        axis.set_ylim(top=1.28 * axis.get_ylim()[1])  # the legend is above the lines
        axis.legend(frameon=False, fontsize=9, loc="upper left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
