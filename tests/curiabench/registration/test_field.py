"""Displacement fields against SciPy's interpolation and NumPy's gradients in float64."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from curia2_jax.curiabench.registration import field

SHAPE = (9, 7, 8)


def drawn(seed, channels=3, shape=SHAPE):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(channels, *shape)))


def test_smoothing_is_a_mean_of_neighbors_with_repeated_edges_and_so_is_its_gradient():
    values = drawn(0).requires_grad_(True)
    expected = np.stack([ndimage.uniform_filter(one, 3, mode="nearest") for one in values.detach().numpy()])
    np.testing.assert_allclose(field.smoothed(values).detach(), expected, atol=1e-12)
    twice = np.stack([ndimage.uniform_filter(one, 3, mode="nearest") for one in expected])
    np.testing.assert_allclose(field.smoothed(values, 2).detach(), twice, atol=1e-12)
    assert torch.autograd.gradcheck(field.smoothed, (drawn(1, 1, (3, 4, 2)).requires_grad_(True),))


def test_warping_is_linear_interpolation_in_nodes_with_repeated_edges():
    values, moved = drawn(0, 2), 2 * drawn(1)
    places = np.indices(SHAPE) + moved.numpy()
    expected = [ndimage.map_coordinates(one, places, order=1, mode="nearest") for one in values.numpy()]
    np.testing.assert_allclose(field.warped(values, moved), expected, atol=1e-6)


def test_a_field_in_cells_keeps_its_millimeters_in_nodes():
    """A displacement of one cell is one of three nodes."""
    finer = field.on_nodes(torch.ones(3, 4, 2, 3), (12, 6, 9))
    assert finer.shape == (3, 12, 6, 9) and torch.equal(finer, torch.full_like(finer, 3))


def test_determinants_are_those_of_numpys_gradient_in_millimeters():
    moved, step = 0.3 * drawn(2), [2.0, 0.5, 1.5]
    slopes = np.array([np.gradient(one * scale, *step) for one, scale in zip(moved.numpy(), step, strict=True)])
    expected = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3))
    np.testing.assert_allclose(field.determinants(moved, step), expected, atol=1e-6)
    spread, folded = field.roughness(moved, step)
    assert folded == (expected <= 0).mean() > 0
    assert spread == pytest.approx(np.log(np.maximum(expected, 1e-9)).std(), abs=1e-6)
    assert field.roughness(torch.zeros(3, *SHAPE), step) == (0, 0)


def test_a_field_and_its_inverse_are_left_alone_and_others_meet_in_the_middle():
    there = torch.zeros(3, *SHAPE)
    there[0], there[2] = 1.5, -0.5
    torch.testing.assert_close(field.consistent(there, -there, 5), there)
    torch.testing.assert_close(field.consistent(there, torch.zeros_like(there), 1), there / 2)
