"""Instance optimization: its loss in plain NumPy, and warps that it finds."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from curia2_jax.curiabench.registration import adam
from tests.curiabench.registration.test_search import features

SIDE = 16


def test_the_loss_is_the_sum_of_squares_of_features_and_of_steps():
    fixed, moving = features(0, (5, 4, 6)), features(1, (5, 4, 6))
    field = torch.from_numpy(np.random.default_rng(2).normal(size=(3, 5, 4, 6)))
    places = np.indices((5, 4, 6)) + field.numpy()
    there = np.stack([ndimage.map_coordinates(one, places, order=1, mode="nearest") for one in moving.numpy()])
    rough = sum((np.diff(field.numpy(), axis=axis) ** 2).sum() for axis in (1, 2, 3))
    expected = ((there - fixed.numpy()) ** 2).sum() + 1.25 / 3 * rough
    assert float(adam.loss(fixed, moving, field)) == pytest.approx(expected, rel=1e-6)


def test_a_smooth_warp_is_recovered():
    """moving(x + truth(x)) = fixed(x), so the field is the truth."""
    moving = features(3, (SIDE,) * 3, sigma=1.5).float()
    x, y, z = np.indices((SIDE,) * 3) * np.pi / SIDE
    truth = np.stack([1.5 * np.sin(y) * np.sin(z), -np.sin(x) * np.sin(z), 0.8 * np.sin(2 * x)])
    places = np.indices((SIDE,) * 3) + truth
    fixed = torch.from_numpy(
        np.stack([ndimage.map_coordinates(one, places, order=1, mode="nearest") for one in moving.numpy()])
    )
    found = adam.refined(fixed, moving, torch.zeros(3, SIDE, SIDE, SIDE))
    inner = (slice(None), *[slice(3, -3)] * 3)
    before, after = (np.linalg.norm((one - truth)[inner], axis=0).mean() for one in (0 * truth, found.numpy()))
    assert after < 0.2 < 1.0 < before


def test_what_is_alike_stays_where_it_is():
    one = features(4, (8, 8, 8)).float()
    assert adam.refined(one, one, torch.zeros(3, 8, 8, 8)).abs().max() < 1e-2


def test_the_same_pair_gives_the_same_field():
    pair, start = (features(5, (6, 6, 6)).float(), features(6, (6, 6, 6)).float()), torch.zeros(3, 6, 6, 6)
    assert torch.equal(adam.refined(*pair, start), adam.refined(*pair, start))
