"""Pictures of a run: the crops it sees, and its curves."""

import math
import pathlib
from collections.abc import Iterable

import numpy as np

Panel = tuple[str, tuple[str, ...]]  # title, metrics
MODULES = ("backbone", "dino_head", "ibot_head", "projector")
# Beside those of the terms of the objective.
PANELS: tuple[Panel, ...] = (
    ("Loss", ("loss",)),
    ("Nats learned, beside the teacher's (DINO)", ("teacher_information", "nats/dino", "nats/ibot")),
    ("Probe by class token: height, modality", ("probe/height_knn", "probe/height_ridge", "probe/modality_knn")),
    ("RankMe and LiDAR of the class tokens", ("rankme", "monitor/rankme", "monitor/lidar")),
    ("Teacher: entropy, and KL to the student", ("teacher_entropy", "teacher_kl")),
    ("Spread of the class tokens", ("feature_std", "monitor/spread")),
    (
        "Of patches: linear Dice, cosine. Of attention: entropy. Prototypes used",
        ("monitor/linear_dice", "monitor/patch_cosine", "monitor/attention_entropy", "monitor/prototypes"),
    ),
    ("Norm of the gradient", tuple(f"grad_norm/{name}" for name in MODULES)),
    ("Norm of the update", tuple(f"update_norm/{name}" for name in MODULES)),
    ("Learning rate", ("lr", "last_layer_lr")),
)


def _figure(rows: int, columns: int, figsize: tuple[float, float]):
    """(figure, (rows, columns) axes); matplotlib is imported here, for most processes of a run draw nothing."""
    from matplotlib.figure import Figure  # not pyplot: nothing global to close

    figure = Figure(figsize=figsize)
    return figure, figure.subplots(rows, columns, squeeze=False)


def crops(
    path: pathlib.Path, global_crops: np.ndarray, local_crops: np.ndarray, masks: np.ndarray, rows: int = 6
) -> None:
    """The crops of the first images of a batch, as the student sees them: one image a row, masked patches dimmed.

    Args:
      global_crops: (2B, R, R, 1). local_crops: (LB, r, r, 1). masks: (B, 2, N) bool.
    """
    images = masks.shape[0]
    rows = min(rows, images)
    num_local = len(local_crops) // images
    side = math.isqrt(masks.shape[-1])
    figure, axes = _figure(rows, 2 + num_local, figsize=(1.4 * (2 + num_local), 1.4 * rows))
    for image in range(rows):
        views = [*global_crops[2 * image : 2 * image + 2], *local_crops[num_local * image : num_local * (image + 1)]]
        for column, (axis, crop) in enumerate(zip(axes[image], views, strict=True)):
            axis.imshow(crop[..., 0], cmap="gray", vmin=-2, vmax=3)
            if column < 2:
                patch = crop.shape[0] // side
                mask = np.kron(masks[image, column].reshape(side, side), np.ones((patch, patch)))
                axis.imshow(np.ma.masked_equal(mask, 0), cmap="winter", alpha=0.35, vmin=0, vmax=1)
            axis.set_axis_off()
            if image == 0:
                axis.set_title(f"global {column + 1}" if column < 2 else f"local {column - 1}", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)


def curves(path: pathlib.Path, rows: list[dict[str, float]], terms: Iterable[Panel]) -> None:
    """What the metrics say over the steps; `terms` are panels more; those without a value are left out."""
    panels = [(t, [n for n in names if any(r.get(n) is not None for r in rows)]) for t, names in (*PANELS, *terms)]
    panels = [(title, names) for title, names in panels if names]
    if not panels:
        return
    height = math.ceil(len(panels) / 4)
    figure, axes = _figure(height, 4, figsize=(16, 3.2 * height))
    for axis, (title, names) in zip(axes.flat, panels, strict=False):
        for name in names:
            points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
            axis.plot(*zip(*points, strict=True), label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.2)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
