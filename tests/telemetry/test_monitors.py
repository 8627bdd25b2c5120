"""What tokens say of a network: against the definitions, SciPy's eigenvalues, and tokens made for the answer."""

import math

import numpy as np
import pytest
import scipy.linalg

from curia2_jax.telemetry import monitors


@pytest.mark.parametrize(("images", "views", "dim"), [(40, 4, 12), (9, 2, 30)])
def test_lidar_is_the_rank_of_a_generalized_eigenproblem(images, views, dim):
    """between v = lambda within v, as the paper has it, also with fewer images than dimensions."""
    rng = np.random.default_rng(0)
    objects = rng.normal(size=(images, 1, dim)) * np.linspace(0.1, 2, dim)
    tokens = (objects + 0.5 * rng.normal(size=(images, views, dim))).astype(np.float32)
    within = np.mean([np.cov(one.T) for one in tokens.astype(np.float64)], axis=0) + 1e-4 * np.eye(dim)
    between = np.cov(tokens.astype(np.float64).mean(1).T)
    values = np.clip(scipy.linalg.eigh(between, within, eigvals_only=True), 0, None)
    p = values / values.sum()
    expected = math.exp(-np.sum(p[p > 1e-12] * np.log(p[p > 1e-12])))
    assert monitors.lidar(tokens) == pytest.approx(expected, rel=1e-5)


def test_lidar_tells_noise_of_views_from_what_tells_images_apart():
    rng = np.random.default_rng(1)
    line = rng.normal(size=(200, 1, 1)) * np.eye(16)[:1]
    tokens = np.tile(line, (1, 4, 1))
    tokens[..., 1:] += rng.normal(size=(200, 4, 15))  # a rank of 16 by RankMe, one direction of which is the image
    assert monitors.lidar(tokens) == pytest.approx(1, abs=0.05)
    assert math.isnan(monitors.lidar(np.full((3, 2, 4), np.nan)))
    assert math.isnan(monitors.lidar(np.ones((3, 2, 4))))


def test_spread_is_none_of_one_point_and_one_of_a_sphere():
    rng = np.random.default_rng(2)
    assert monitors.spread(rng.normal(size=(4000, 64))) == pytest.approx(1, rel=0.01)
    assert monitors.spread(np.outer(np.arange(1, 9), np.ones(64))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("choices", "prototypes", "share"),
    [([3, 3, 3, 3], 100, 0.25), ([0, 1, 2, 3], 100, 1.0), ([0, 0, 1, 1] * 4, 2, 1.0), ([0, 0, 0, 1], 4, 0.4387)],
)
def test_first_choices_count_what_is_used(choices, prototypes, share):
    assert monitors.first_choices(np.array(choices), prototypes) == pytest.approx(share, rel=1e-3)
