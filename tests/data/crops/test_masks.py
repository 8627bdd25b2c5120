"""Masks against the reference's exact draws and statistics, and against scipy's Gaussian."""

import json
import pathlib
import random

import numpy as np
import pytest
from scipy import stats

from curia2_jax.data.crops import masks
from curia2_jax.data.crops.gaussian import PatchGaussian, into_crop
from curia2_jax.data.crops.masks import MasksConfig

REFERENCE = json.loads((pathlib.Path(__file__).parents[2] / "reference_values.json").read_text())["masking"]
CONFIG = MasksConfig(placement="anatomical", probability=0.5, ratio=(0.1, 0.5))


def uniform(grid):
    """The law where no anatomy is known."""
    return PatchGaussian((0.0, 0.0), (np.inf, np.inf), (grid, grid))


def indices(bits):
    return [i for i in range(bits.bit_length()) if bits >> i & 1]


def test_exact_masks_of_the_reference():
    """Bit for bit, from Python's generator with the same seed."""
    rng = random.Random(0)
    for expected in REFERENCE["exact_masks_python_random_seed0_grid14_consecutive_calls"]:
        bits, count = masks.blocks(rng, expected["target"], masks.largest_block(14, 14), uniform(14))
        assert count == expected["count"]
        assert indices(bits) == expected["indices_row_major"]


@pytest.mark.parametrize("block", ["img224_patch16", "img224_patch14", "img518_patch14"])
def test_statistics_of_the_reference(block):
    """1000 draws a target, as in the reference: means within four standard errors, the same shares of exact hits."""
    expected = REFERENCE[block]
    grid, rng = expected["grid"], random.Random(1)
    assert masks.largest_block(grid, grid) == expected["max_num_patches"]
    for key, law in expected.items():
        if not key.startswith("target_"):
            continue
        target = int(key.removeprefix("target_"))
        counts = [masks.blocks(rng, target, masks.largest_block(grid, grid), uniform(grid))[1] for _ in range(1000)]
        assert abs(np.mean(counts) - law["mean"]) < 4 * np.hypot(law["std"], np.std(counts)) / np.sqrt(1000)
        exact = np.mean(np.array(counts) == target)
        assert abs(exact - law["frac_exact"]) < 4 * np.sqrt(2 * exact * (1 - exact) / 1000)
        assert max(counts) <= target


@pytest.mark.parametrize(
    ("images", "patches", "name"),
    [
        (64, 196, "collate_B64_img224_p16"),
        (32, 256, "collate_B32_img224_p14"),
        (12, 256, "collate_B12_img224_p14"),
        (4, 196, "collate_B4_img224_p16"),
    ],
)
def test_ladder_has_the_totals_of_the_reference(images, patches, name):
    """For each of its batch sizes."""
    targets = masks.ladder(images, patches, CONFIG)
    assert targets.shape == (2 * images,)
    assert (targets > 0).sum() == REFERENCE[name]["n_samples_masked"]
    assert targets.sum() == masks.masked_per_group(images, patches, CONFIG) == REFERENCE[name]["upperbound"]
    assert (np.diff(targets[targets > 0]) >= 0).all()
    assert targets.max() == patches // 2


def truncated_starts(mean, std, length, size):
    """Probabilities of the first row of a block: the Gaussian's mass within half a patch of the block's center."""
    edges = np.arange(length - size + 2) + size / 2 - 0.5
    law = stats.truncnorm((edges[0] - mean) / std, (edges[-1] - mean) / std, mean, std)
    return np.diff(law.cdf(edges))


@pytest.mark.parametrize("size", [1, 4, 5, 13])
@pytest.mark.parametrize(("mean", "std"), [(4.3, 2.5), (9.9, 4.0), (-6.0, 5.0), (25.0, 3.0), (7.0, 1e6)])
def test_block_starts_follow_the_truncated_gaussian(mean, std, size):
    """The last one is the limit of uniform placement."""
    law, rng = PatchGaussian((mean, 7.0), (std, 3.0), (14, 14)), random.Random(2)
    starts = np.bincount([law.start(rng, 0, size) for _ in range(4000)], minlength=15 - size)
    expected = truncated_starts(mean, std, 14, size) * 4000
    assert len(starts) == 15 - size
    likely = expected > 5
    assert starts[~likely].sum() <= 4 * expected[~likely].sum() + 8
    if likely.sum() > 1:
        share = starts[likely].sum() / expected[likely].sum()
        assert stats.chisquare(starts[likely], expected[likely] * share).pvalue > 0.001


def test_anatomy_far_outside_pulls_blocks_to_its_side():
    """Ten thousand spreads away."""
    rng = random.Random(0)
    for mean, start in ((-1e4, 0), (1e4, 10)):
        law = PatchGaussian((mean, 7.0), (1.0, 1.0), (14, 14))
        assert {law.start(rng, 0, 4) for _ in range(50)} == {start}


@pytest.mark.parametrize("std", [np.inf, 4.0, 1.5, 0.3, 1e-3])
def test_every_mask_meets_its_target(std):
    """However narrow the prior, when the blocks alone fall far short."""
    rng = random.Random(3)
    law = PatchGaussian((5.0, 12.0), (std, std), (16, 16))
    for target in masks.ladder(16, 256, CONFIG)[:16].tolist() * 4:
        mask = masks.draw_mask(rng, target, law)
        assert mask.shape == (256,) and mask.dtype == bool
        assert mask.sum() == target


def test_completion_follows_the_prior():
    """A point-like prior fills the nearest patches; a wide one adds patches in proportion to its density."""
    mask = masks.draw_mask(random.Random(0), 80, PatchGaussian((8.0, 8.0), (1e-3, 1e-3), (16, 16))).reshape(16, 16)
    y, x = np.nonzero(mask)
    assert np.hypot(y + 0.5 - 8, x + 0.5 - 8).max() < 8.0
    density = np.exp(PatchGaussian((3.0, 11.0), (2.0, 5.0), (16, 16)).log_density()).reshape(16, 16)
    at = np.arange(16) + 0.5
    expected = np.outer(stats.norm(3, 2).pdf(at), stats.norm(11, 5).pdf(at))
    np.testing.assert_allclose(density / density.sum(), expected / expected.sum(), rtol=1e-9)


def mean_mask(box, flip, seed=0):
    """Share of 600 masks that hold each patch, for anatomy left of the middle of the slice."""
    boxes, flips = np.array([[box]], np.float32), np.array([[flip]])
    mean, std = into_crop(np.array([[250.0, 150.0]]), np.array([[60.0, 40.0]]), boxes, flips, (16, 16))
    rng, law = random.Random(seed), PatchGaussian(mean[0, 0], std[0, 0], (16, 16))
    return np.mean([masks.draw_mask(rng, 60, law) for _ in range(600)], 0).reshape(16, 16)


def test_masks_follow_the_anatomy_through_the_crop():
    """The center of the masks is the anatomy's, seen from the box; a flip mirrors it."""
    box = (100.0, 50.0, 420.0, 370.0)  # 20 pixels a patch
    plain, flipped = mean_mask(box, False), mean_mask(box, True, seed=1)
    at = np.arange(16) + 0.5
    center = (plain.sum(1) @ at, plain.sum(0) @ at) / plain.sum()
    np.testing.assert_allclose(center, [(250 - 100) / 20, (150 - 50) / 20], atol=0.5)
    assert np.abs(flipped[:, ::-1] - plain).max() < 0.15
    assert np.abs(flipped - plain).max() > 0.5


def test_gaussian_in_the_crop_is_that_of_the_pixels():
    """Points drawn in the slice and moved into the crop (cut, resized, mirrored) have the mapped moments."""
    rng = np.random.default_rng(0)
    mean, std = np.array([[250.0, 150.0]]), np.array([[60.0, 40.0]])
    boxes = np.array([[[20.0, 30.0, 420.0, 230.0], [100.5, -0.0, 300.25, 512.0]]], np.float32)
    flips = np.array([[True, False]])
    center, spread = into_crop(mean, std, boxes, flips, (16, 12))
    points = rng.normal(mean, std, (200_000, 2))
    for view in range(2):
        y0, x0, y1, x1 = boxes[0, view].astype(float)
        v, u = (points[:, 0] - y0) / (y1 - y0) * 16, (points[:, 1] - x0) / (x1 - x0) * 12
        u = 12 - u if flips[0, view] else u
        np.testing.assert_allclose(center[0, view], [v.mean(), u.mean()], rtol=0.01)
        np.testing.assert_allclose(spread[0, view], [v.std(), u.std()], rtol=0.01)
