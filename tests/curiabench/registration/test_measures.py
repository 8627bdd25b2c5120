"""What a field does to labels and landmarks, against SciPy and numbers by hand."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from curia2_jax.curiabench.adapters.adapter import Volume
from curia2_jax.curiabench.overlap import agreement
from curia2_jax.curiabench.registration import field as fields
from curia2_jax.curiabench.registration import measures, pairs
from curia2_jax.curiabench.registration.grid import grid_of

SHAPE, SPACING = (6, 20, 18), np.array([3.0, 1.0, 1.5])
GRID = grid_of(SHAPE, SPACING)


def pair_of(fixed, moving, points=(None, None)):
    sides = [
        pairs.Side(Volume(np.zeros(SHAPE, np.float32), "CT"), labels, marks, None)
        for labels, marks in zip((fixed, moving), points, strict=True)
    ]
    return pairs.Pair(*sides, SPACING, True)


def voxel_field(field):
    """(3, S, H, W) in voxels, interpolated by SciPy between nodes."""
    places = (np.indices(SHAPE) + 0.5) / GRID.ratio.reshape(3, 1, 1, 1) - 0.5
    found = [ndimage.map_coordinates(one.numpy(), places, order=1, mode="nearest") for one in field]
    return np.stack(found) * GRID.ratio.reshape(3, 1, 1, 1)


def test_labels_are_moved_to_the_nearest_voxel_and_measured_in_millimeters():
    rng = np.random.default_rng(0)
    field = fields.smoothed(torch.from_numpy(rng.normal(0, 4, (3, *GRID.nodes))), 1)
    fixed, moving = (np.kron(rng.choice([0, 4, 9], (3, 5, 6)), np.ones((2, 4, 3), int)) for _ in range(2))
    places = np.indices(SHAPE) + voxel_field(field)
    nearest = np.floor(places + 0.5).astype(int)
    outside = ((nearest < 0) | (nearest >= np.reshape(SHAPE, (3, 1, 1, 1)))).any(0)
    expected = np.where(outside, 0, moving[tuple(np.clip(nearest, 0, np.reshape(SHAPE, (3, 1, 1, 1)) - 1))])
    assert outside.any()
    found = measures.moved_labels(moving, field, GRID)
    np.testing.assert_array_equal(found, expected)
    rows = measures.measured(pair_of(fixed, moving), GRID, field, (4, 9))
    assert rows.shape == (13,) and np.isnan(rows[-3])
    for label, row in zip((4, 9), rows[:10].reshape(2, 5), strict=True):
        one, other = expected == label, fixed == label
        assert row[:3].tolist() == [(one & other).sum(), one.sum(), other.sum()]
        agreed = agreement(one, other, tuple(SPACING), 2.0)
        assert row[3] == pytest.approx(agreed.hd95) and row[4] == pytest.approx(agreed.surface_dice)
    np.testing.assert_allclose(rows[-2:], fields.roughness(field, GRID.step.tolist()))


def test_landmarks_are_as_far_as_millimeters_say():
    """A field of one voxel down the rows: of two landmarks one is met, one missed by two slices and a row."""
    field = torch.zeros(3, *GRID.nodes, dtype=torch.float64)
    field[1] = 1 / GRID.ratio[1]
    fixed = np.array([[2.0, 5, 5], [1, 9.5, 3]])
    moving = fixed + np.array([[0, 1, 0], [2, 0, 0]])
    (tre, spread, folded) = measures.measured(pair_of(None, None, (fixed, moving)), GRID, field, ())
    assert tre == pytest.approx(np.hypot(6, 1) / 2) and spread == pytest.approx(0, abs=1e-9) and folded == 0
    np.testing.assert_allclose(measures.moves(fixed, field, GRID), [[0, 1, 0]] * 2, atol=1e-9)


def test_between_nodes_a_field_is_linear():
    field = torch.from_numpy(np.random.default_rng(1).normal(size=(3, *GRID.nodes)))
    points = np.argwhere(np.ones(SHAPE))[::37]
    expected = voxel_field(field)[(slice(None), *points.T)].T
    np.testing.assert_allclose(measures.moves(points, field, GRID), expected, atol=1e-6)
