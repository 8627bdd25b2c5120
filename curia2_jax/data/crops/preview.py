"""Pictures of what training will see: foreground, Gaussian, boxes and masks over slices of a corpus."""

import pathlib
import random

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse, Rectangle

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.crops.boxes import DRAWS, CropsConfig, draw_boxes, gaussians
from curia2_jax.data.crops.gaussian import PatchGaussian, into_crop
from curia2_jax.data.crops.loader import geometry_of
from curia2_jax.data.crops.masks import MasksConfig, draw_mask
from curia2_jax.data.crops.placement import Body

_COLUMNS, _ROWS = 4, 3  # a series a row; each gives as many slices as there are columns


def draw_pages(
    corpus: Corpus,
    folder: pathlib.Path,
    pages: int,
    body: Body,
    crops_config: CropsConfig,
    masks_config: MasksConfig,
    grid: int,
    *,
    seed: int = 0,
) -> list[pathlib.Path]:
    """PNG pages in `folder`, three series a page, four slices of each: the contour of the foreground in red, one and
    two standard deviations of its Gaussian in yellow, global boxes in green, local boxes in blue, and the iBOT mask
    (grid x grid patches) of the first global crop in gray. Returns their paths."""
    rng = np.random.default_rng(seed)
    first, count = corpus.series()
    chosen = rng.permutation(len(first))[: pages * _ROWS]
    paths = []
    for page in range(-(-len(chosen) // _ROWS)):
        figure, axes = plt.subplots(_ROWS, _COLUMNS, figsize=(4 * _COLUMNS, 4 * _ROWS), squeeze=False)
        for row, series in zip(axes, chosen[page * _ROWS : (page + 1) * _ROWS], strict=False):
            for axis, place in zip(row, np.linspace(0.15, 0.85, _COLUMNS), strict=True):
                record = int(first[series]) + int(place * count[series])
                _draw_slice(axis, corpus, record, body)
                _draw_views(axis, corpus, record, rng, crops_config, masks_config, grid)
        for axis in axes.flat:
            axis.axis("off")
        figure.tight_layout()
        paths.append(folder / f"page_{page:02d}.png")
        figure.savefig(paths[-1], dpi=70)
        plt.close(figure)
    return paths


def _draw_slice(axis: plt.Axes, corpus: Corpus, record: int, body: Body) -> None:
    """The slice, the contour of its foreground, and its title."""
    pixels, at = corpus.read(record), np.array([record])
    row = {name: corpus.take(name, at)[0] for name in ("modality", "plane", "position", "foreground")}
    height, width = pixels.shape
    low, high = (-200, 300) if row["modality"] == "CT" else np.percentile(pixels, [1, 99])
    axis.imshow(pixels, cmap="gray", vmin=low, vmax=high, extent=(0, width, height, 0))
    mask, cell = body(record)
    if mask.any() and not mask.all():
        y, x = ((np.arange(n) + 0.5) * cell for n in mask.shape)
        axis.contour(x, y, mask, [0.5], colors="red", linewidths=0.8)
    axis.set_title(
        f"{row['modality']} {row['plane']} {row['position']:g}, foreground {row['foreground']:.2f}", fontsize=9
    )


def _draw_views(
    axis: plt.Axes,
    corpus: Corpus,
    record: int,
    rng: np.random.Generator,
    crops_config: CropsConfig,
    masks_config: MasksConfig,
    grid: int,
) -> None:
    """The Gaussian of a slice, its boxes, and the mask of the first one."""
    geometry = geometry_of(corpus.rows(np.array([record])))
    (height, width), (y, x), (std_y, std_x) = geometry.extent[0], geometry.mean[0], geometry.std[0]
    for times in (1, 2) if np.isfinite(std_y) else ():
        axis.add_patch(Ellipse((x, y), 2 * times * std_x, 2 * times * std_y, fill=False, color="yellow", linewidth=0.8))
    uniform = rng.random((1, 2 + crops_config.num_local, DRAWS))
    boxes, local, flips = draw_boxes(uniform, geometry, crops_config)
    for (y0, x0, y1, x1), color in [*((b, "lime") for b in boxes[0]), *((b, "deepskyblue") for b in local[0])]:
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=color, linewidth=0.8))
    mean, std = into_crop(*gaussians(geometry, masks_config.placement), boxes, flips[:, :2], (grid, grid))
    target = int(grid**2 * np.mean(masks_config.ratio))
    law = PatchGaussian(mean[0, 0], std[0, 0], (grid, grid))
    mask = draw_mask(random.Random(int(rng.integers(1 << 32))), target, law).reshape(grid, grid)
    mask = mask[:, ::-1] if flips[0, 0] else mask
    y0, x0, y1, x1 = boxes[0, 0]
    shade = np.where(mask, 1.0, np.nan)
    axis.imshow(shade, cmap="gray", vmin=0, vmax=2, alpha=0.45, extent=(x0, x1, y1, y0), interpolation="nearest")
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
