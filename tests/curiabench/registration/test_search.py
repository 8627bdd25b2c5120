"""The coupled convex search against plain loops in NumPy, and what it finds."""

import numpy as np
import torch
from scipy import ndimage

from curia2_jax.curiabench.registration import search


def features(seed, shape, channels=3, sigma=1.2):
    noise = np.random.default_rng(seed).normal(size=(channels, *shape))
    smooth = np.stack([ndimage.gaussian_filter(one, sigma) for one in noise])
    return torch.from_numpy(smooth / smooth.std())


def mean(values):
    return ndimage.uniform_filter(values, 3, mode="nearest")


def test_costs_and_agreement_are_those_of_plain_loops():
    fixed, moving = features(0, (4, 5, 3)), features(1, (4, 5, 3))
    tried = search.displacements(1)
    found = search.costs(fixed, moving, tried)
    sides = np.array(fixed.shape[1:])
    expected = np.empty((27, *sides))
    for number, one in enumerate(tried.numpy()):
        for place in np.ndindex(*sides):
            there = np.clip(place + one, 0, sides - 1)
            expected[number][place] = ((fixed[:, *place] - moving[:, *there]) ** 2).sum()
        expected[number] = mean(expected[number])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    steps = tried.numpy().astype(float)
    smooth = np.stack([mean(steps[expected.argmin(0)][..., axis]) for axis in range(3)])
    for firmness in search.COUPLING:
        held = expected + firmness * ((steps[:, :, None, None, None] - smooth) ** 2).sum(1)
        smooth = np.stack([mean(steps[held.argmin(0)][..., axis]) for axis in range(3)])
    np.testing.assert_allclose(search.agreed(found, tried), smooth, atol=1e-6)


def test_displacements_are_a_cube_the_shortest_first():
    tried = search.displacements(4)
    assert len(np.unique(tried, axis=0)) == len(tried) == 729 and tried.abs().max() == 4
    lengths = tried.square().sum(1)
    assert lengths[0] == 0 and (lengths.diff() >= 0).all()


def test_a_translation_is_found_and_what_is_alike_stays():
    whole = features(2, (22, 22, 22))
    fixed, moving = whole[:, 4:18, 4:18, 4:18], whole[:, 2:16, 5:19, 4:18]  # moving(x + (2, -1, 0)) = fixed(x)
    found = search.search(fixed, moving)
    inner = found[:, 4:-4, 4:-4, 4:-4].flatten(1)
    np.testing.assert_allclose(inner.mean(1), [2, -1, 0], atol=0.1)
    assert torch.equal(search.search(fixed, fixed), torch.zeros(3, 14, 14, 14, dtype=torch.float64))
    nothing = torch.zeros(1, 5, 5, 5)
    assert torch.equal(search.search(nothing, nothing), torch.zeros(3, 5, 5, 5))
