"""The table of `placement_statistics` as a picture: one histogram for each kind of crop, both placements in it."""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from curia2_jax.data.crops.placement import Row

_BINS = np.linspace(0, 1, 26)
_COLORS = {"uniform": "0.45", "anatomical": "tab:blue"}


def draw(rows: list[Row], path: pathlib.Path) -> None:
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
