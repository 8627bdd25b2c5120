"""The nodes on which two volumes are compared: evenly spaced in millimeters whatever the voxels, and never too many."""

from typing import NamedTuple

import numpy as np

FINE = 2  # voxels between nodes, along the axis with the finest ones; ConvexAdam's spacing for Adam
POOLED = 3  # nodes to a side of a cell of the search, which is 6 voxels wide then, as ConvexAdam's and FlexiCT's
NODES = 96 * 80 * 96  # about, at most: those of 192 x 160 x 192 voxels; larger volumes have nodes farther apart


class Grid(NamedTuple):
    """Nodes that fill a volume as voxels do: node i of n lies at (i + 0.5) / n of a side. Axes: slice, row, column.

    `nodes` is a whole number of cells; `step` (3,) mm between nodes, `ratio` (3,) voxels to a node.
    """

    nodes: tuple[int, int, int]
    step: np.ndarray
    ratio: np.ndarray

    @property
    def cells(self) -> tuple[int, int, int]:
        """Of the search."""
        x, y, z = (count // POOLED for count in self.nodes)
        return x, y, z


def grid_of(shape: tuple[int, ...], spacing: np.ndarray) -> Grid:
    """For voxels (S, H, W) that are `spacing` (3,) mm apart."""
    extent = np.array(shape) * spacing
    step = max(FINE * float(spacing.min()), float((extent.prod() / NODES) ** (1 / 3)))
    x, y, z = (POOLED * max(1, round(side / (POOLED * step))) for side in extent.tolist())
    nodes = np.array([x, y, z])
    return Grid((x, y, z), extent / nodes, np.array(shape) / nodes)
