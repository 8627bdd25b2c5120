"""Dice and surface distances against MONAI, and against brute force over pairs of surface voxels."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from scipy.spatial import distance

from curia2_jax.curiabench import overlap


def blob(shape, seed, shift=0):
    """A mask with holes and islands."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    ball = ((grid - np.array(shape) / 2 - shift) ** 2).sum(-1) < (min(shape) / 3) ** 2
    return ball ^ (rng.random(shape) < 0.03)


def surface(mask):
    """Coordinates of the voxels that have a face neighbor outside, the border of the array included."""
    padded, points = np.pad(mask, 1), []
    for index in np.argwhere(mask):
        steps = np.concatenate([np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)])
        if not all(padded[tuple(index + 1 + step)] for step in steps):
            points.append(index)
    return np.array(points, float)


@pytest.mark.parametrize(
    "shape, spacing", [((24, 20), (1.0, 1.0)), ((24, 20), (0.5, 2.0)), ((10, 9, 8), (3.0, 1.0, 0.7))]
)
def test_agreement_is_brute_force(shape, spacing):
    found, truth = blob(shape, 0), blob(shape, 1, shift=1.5)
    got = overlap.agreement(found, truth, spacing, tolerance=1.2)
    gaps = distance.cdist(surface(found) * spacing, surface(truth) * spacing)
    one, other = gaps.min(1), gaps.min(0)
    assert got.dice == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()), abs=1e-12)
    assert got.hd95 == pytest.approx(max(np.percentile(one, 95), np.percentile(other, 95)), abs=1e-9)
    right = (one <= 1.2).sum() + (other <= 1.2).sum()
    assert got.surface_dice == pytest.approx(right / (len(one) + len(other)), abs=1e-12)


def test_agreement_is_monais():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = pytest.importorskip("monai.metrics")
    for shape, spacing in itertools.product([(24, 20), (10, 9, 8)], (1.0, 2.0)):
        found, truth = blob(shape, 2), blob(shape, 3, shift=1)
        pair = [torch.from_numpy(mask)[None, None].float() for mask in (found, truth)]
        got = overlap.agreement(found, truth, (spacing,) * len(shape), tolerance=2.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dice = metrics.compute_dice(*pair).item()
            hd95 = metrics.compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
            near = metrics.compute_surface_dice(*pair, [2.0], include_background=True, spacing=spacing)
        np.testing.assert_allclose(got, [dice, hd95.item(), near.item()], rtol=0, atol=1e-6)


def test_an_empty_mask_is_said_and_not_scored_as_right():
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert np.isnan(overlap.agreement(empty, empty, (1, 1), 1.0)).all()
    assert overlap.agreement(empty, full, (1, 1), 1.0) == (0.0, np.inf, 0.0)
    assert overlap.agreement(full, full, (1, 1), 0.0) == (1.0, 0.0, 1.0)
