"""The nodes of a volume: even in millimeters, whole cells, and bounded."""

import numpy as np
import pytest

from curia2_jax.curiabench.registration.grid import NODES, grid_of


@pytest.mark.parametrize(
    ("shape", "spacing", "nodes"),
    [
        ((192, 160, 192), (1, 1, 1), (96, 81, 96)),  # 2 voxels between nodes, 6 to a cell
        ((48, 48, 48), (1, 1, 1), (24, 24, 24)),
        ((12, 48, 48), (4, 1, 1), (24, 24, 24)),  # thick slices: as many millimeters between nodes in every direction
        ((2, 3, 100), (1, 1, 1), (3, 3, 51)),  # a cell at least
    ],
)
def test_nodes_are_two_voxels_apart_in_millimeters_and_fill_whole_cells(shape, spacing, nodes):
    grid = grid_of(shape, np.array(spacing, float))
    assert grid.nodes == nodes and grid.cells == tuple(count // 3 for count in nodes)
    np.testing.assert_allclose(grid.step * nodes, np.multiply(shape, spacing))
    np.testing.assert_allclose(grid.ratio * nodes, shape)


def test_no_volume_has_many_more_nodes():
    for shape, spacing in (((1000, 512, 512), (0.7, 0.7, 0.7)), ((400, 700, 300), (3, 0.5, 0.5))):
        grid = grid_of(shape, np.array(spacing))
        assert 0.8 * NODES < np.prod(grid.nodes) < 1.1 * NODES
        assert grid.step.max() / grid.step.min() < 1.1
