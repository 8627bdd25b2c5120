"""Pictures of what training will see: foreground, Gaussian, boxes and masks over slices of a corpus, and how much of
them lies on the body."""

import pathlib
import random
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse, Rectangle

from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.crops import boxes as crops
from curia2_jax.data.crops import masks, placement_picture
from curia2_jax.data.crops import placement as placement_statistics

_CROPS = crops.CropsConfig(
    placement="anatomical",
    global_size=256,
    local_size=96,
    num_local=8,
    unit="area",
    global_area=(0.32, 1.0),
    local_area=(0.05, 0.32),
    global_mm=(0.0, 0.0),
    local_mm=(0.0, 0.0),
    aspect=(3 / 4, 4 / 3),
    flip_rate=0.0,
)
_MASKS = masks.MasksConfig(placement="anatomical", probability=0.5, ratio=(0.1, 0.5))
Body = Callable[[int], tuple[np.ndarray, int]]  # number of a slice -> its foreground in cells, pixels along a cell
_GRID = 16
_COLUMNS, _ROWS = 4, 3
_SERIES = 3  # of a page; each gives as many slices as there are columns


def draw(folder: pathlib.Path, body: Body, pages: int, seed: int = 0) -> list[pathlib.Path]:
    """PNG pages in `CORPUS/preview/`, three series a page, four slices of each: the contour of the foreground in red,
    one and two standard deviations of its Gaussian in yellow, global boxes in green, local boxes in blue, and the iBOT
    mask of the first global crop in grey. Returns their paths. Raises UserError when the folder is not a corpus."""
    corpus, rng = Corpus(folder), np.random.default_rng(seed)
    first, count = corpus.series()
    chosen = rng.permutation(len(first))[: pages * _SERIES]
    (folder / layout.PREVIEW).mkdir(exist_ok=True)
    out = []
    for page in range(-(-len(chosen) // _SERIES)):
        figure, axes = plt.subplots(_ROWS, _COLUMNS, figsize=(4 * _COLUMNS, 4 * _ROWS), squeeze=False)
        for row, one in zip(axes, chosen[page * _SERIES : (page + 1) * _SERIES], strict=False):
            mine = first[one] + np.arange(count[one])
            for axis, place in zip(row, np.linspace(0.15, 0.85, _COLUMNS), strict=True):
                _draw_slice(axis, corpus, int(mine[int(place * len(mine))]), body, rng)
        for axis in axes.flat:
            axis.axis("off")
        figure.tight_layout()
        out.append(folder / layout.PREVIEW / f"page_{page:02d}.png")
        figure.savefig(out[-1], dpi=70)
        plt.close(figure)
    return out


def draw_placement(folder: pathlib.Path, body: Body) -> tuple[pathlib.Path, list[placement_statistics.Row]]:
    """What anatomical placement buys on this corpus: the picture, `CORPUS/preview/placement.png`, and its table. Raises
    UserError when the folder is not a corpus."""
    (folder / layout.PREVIEW).mkdir(exist_ok=True)
    path = folder / layout.PREVIEW / "placement.png"
    rows = placement_statistics.placement_statistics(Corpus(folder), body, _CROPS, _MASKS, _GRID)
    placement_picture.draw(rows, path)
    return path, rows


def _draw_slice(axis: plt.Axes, corpus: Corpus, record: int, body: Body, rng: np.random.Generator) -> None:
    pixels, at = corpus.read(record), np.array([record])
    row = {name: corpus.take(name, at)[0] for name in ("modality", "plane", "position", "foreground")}
    height, width = pixels.shape
    low, high = (-200, 300) if row["modality"] == "CT" else np.percentile(pixels, [1, 99])
    axis.imshow(pixels, cmap="gray", vmin=low, vmax=high, extent=(0, width, height, 0))
    mask, cell = body(record)
    if mask.any() and not mask.all():
        grid = [(np.arange(n) + 0.5) * cell for n in mask.shape]
        axis.contour(grid[1], grid[0], mask, [0.5], colors="red", linewidths=0.8)
    geometry = crops.Geometry(
        *(
            np.stack([corpus.take(a, at), corpus.take(b, at)], -1)
            for a, b in (
                ("height", "width"),
                ("spacing_y", "spacing_x"),
                ("anatomy_y", "anatomy_x"),
                ("anatomy_std_y", "anatomy_std_x"),
            )
        )
    )
    (y, x), (std_y, std_x) = geometry.mean[0], geometry.std[0]
    for times in (1, 2):
        axis.add_patch(Ellipse((x, y), 2 * times * std_x, 2 * times * std_y, fill=False, color="yellow", linewidth=0.8))
    boxes, local, flips = crops.draw(rng.random((1, 2 + _CROPS.num_local, crops.DRAWS)), geometry, _CROPS)
    for box, color in [*((b, "lime") for b in boxes[0]), *((b, "deepskyblue") for b in local[0])]:
        axis.add_patch(
            Rectangle((box[1], box[0]), box[3] - box[1], box[2] - box[0], fill=False, color=color, linewidth=0.8)
        )
    mean, std = masks.into_crop(*crops.anatomy(geometry, "anatomical"), boxes, flips[:, :2], (_GRID, _GRID))
    prior = masks.Prior(mean[0, 0], std[0, 0], (_GRID, _GRID)) if np.isfinite(std[0, 0]).all() else None
    hidden = masks.draw(random.Random(int(rng.integers(1 << 32))), _GRID, _GRID, int(0.3 * _GRID**2), prior)
    y0, x0, y1, x1 = boxes[0, 0]
    shade = np.where(hidden.reshape(_GRID, _GRID), 1.0, np.nan)
    axis.imshow(shade, cmap="gray", vmin=0, vmax=2, alpha=0.45, extent=(x0, x1, y1, y0), interpolation="nearest")
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_title(
        f"{row['modality']} {row['plane']} {row['position']:g}, foreground {row['foreground']:.2f}", fontsize=9
    )
