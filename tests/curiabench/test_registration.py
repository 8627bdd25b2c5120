"""Registration by features against a plain NumPy search, and on volumes whose motion is known."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from curia2_jax.curiabench.heads import registration
from curia2_jax.curiabench.heads.problem import one_thread


def textured(shape, channels, seed=0):
    """Smooth random features (C, X, Y, Z)."""
    rng = np.random.default_rng(seed)
    return (
        np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(channels)]).astype(np.float32) * 8
    )


def plain_convex(fixed, moving, spacing, reach):
    """The coupled search voxel by voxel."""
    size = [n // spacing for n in fixed.shape[1:]]
    pool = lambda v: v.reshape(len(v), size[0], spacing, size[1], spacing, size[2], spacing).mean((2, 4, 6))  # noqa: E731
    a, b = pool(fixed.astype(np.float64)), pool(moving.astype(np.float64))
    steps = [
        (x, y, z) for x in range(-reach, reach + 1) for y in range(-reach, reach + 1) for z in range(-reach, reach + 1)
    ]
    cost = np.zeros((len(steps), *size))
    for number, step in enumerate(steps):
        for place in np.ndindex(*size):
            other = tuple(np.clip(np.add(place, step), 0, np.array(size) - 1))
            cost[number][place] = ((a[(slice(None), *place)] - b[(slice(None), *other)]) ** 2).mean()

    def smooth(field):
        out = np.zeros_like(field)
        for x, y, z in np.ndindex(*size):
            near = field[max(x - 1, 0) : x + 2, max(y - 1, 0) : y + 2, max(z - 1, 0) : z + 2]
            out[x, y, z] = near.reshape(-1, 3).mean(0)
        return out

    moves = np.array(steps, float)
    field = smooth(moves[cost.argmin(0)])
    for coupling in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
        away = ((field[None] - moves[:, None, None, None]) ** 2).sum(-1)
        field = smooth(moves[(cost + coupling * away).argmin(0)])
    return field.transpose(3, 0, 1, 2)


def test_the_convex_search_is_the_plain_one():
    fixed, moving = textured((12, 8, 8), 3), textured((12, 8, 8), 3, seed=1)
    got = registration.convex(*map(torch.from_numpy, (fixed, moving)), registration.Scheme(spacing=2, reach=2))
    np.testing.assert_allclose(got, plain_convex(fixed, moving, 2, 2), atol=1e-5)


@one_thread()
def test_a_known_motion_is_found_and_does_not_fold():
    """A smooth motion of up to five voxels: landmarks come near, labels overlap, the field is regular."""
    shape = (27, 27, 18)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"))
    true = 3 * np.stack([np.sin(grid[1] / 12), np.cos(grid[0] / 14), np.full(shape, 0.7)])
    moving = textured(shape, 4)
    fixed = np.stack([ndimage.map_coordinates(one, grid + true, order=1, mode="nearest") for one in moving])
    scheme = registration.Scheme(spacing=3, reach=3, steps=40)
    field = registration.register(*map(torch.from_numpy, (fixed.astype(np.float32), moving)), scheme).numpy()
    rng = np.random.default_rng(0)
    places = np.stack([rng.integers(6, n - 6, 40) for n in shape], 1)
    wanted = places + true[:, places[:, 0], places[:, 1], places[:, 2]].T
    before = registration.target_error(np.zeros_like(field), places, wanted, (1, 1, 2))
    after = registration.target_error(field, places, wanted, (1, 1, 2))
    assert before.mean() > 4 and after.mean() < 1.5
    spread, folds = registration.folding(field)
    assert folds == 0 and spread < 0.5


def test_sampling_is_scipys():
    rng = np.random.default_rng(0)
    volume, field = rng.normal(size=(1, 6, 7, 5)), rng.normal(size=(3, 6, 7, 5))
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape[1:]), indexing="ij"))
    expected = ndimage.map_coordinates(volume[0], grid + field, order=1, mode="nearest")
    np.testing.assert_allclose(registration.sample(*map(torch.from_numpy, (volume, field)))[0], expected, atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_folding_of_a_field_that_scales_evenly(scale):
    """No spread; a mirror folds everywhere."""
    grid = np.stack(np.meshgrid(*(np.arange(6.0),) * 3, indexing="ij"))
    np.testing.assert_allclose(registration.folding((scale - 1) * grid), (0, 0), atol=1e-9)
    mirrored = grid * np.array([-2, 0, 0])[:, None, None, None]
    assert registration.folding(mirrored)[1] == 1


def test_common_channels_are_principal_components():
    """Of both volumes together: their Gram matrix is kept, up to one scale."""
    fixed, moving = textured((4, 4, 4), 5), textured((4, 4, 4), 5, seed=2)
    got = registration.common_channels(*map(torch.from_numpy, (fixed, moving)), channels=5)
    rows = np.concatenate([one.reshape(5, -1).T for one in (fixed, moving)]).astype(np.float64)
    rows -= rows.mean(0)
    kept = np.concatenate([one.numpy().reshape(5, -1).T for one in got])
    np.testing.assert_allclose(kept @ kept.T, rows @ rows.T / (rows**2).mean(), atol=1e-4)
