"""The truncated Gaussian against scipy's, and how the index says that nothing is known."""

import numpy as np
import pytest
from scipy import stats

from curia2_jax.data.crops.gaussian import from_index, truncated


@pytest.mark.parametrize(
    ("mean", "std", "low", "high"),
    [(0.0, 1.0, -1.0, 2.0), (200.0, 60.0, 10.0, 500.0), (900.0, 30.0, 10.0, 500.0), (-700.0, 25.0, 50.0, 400.0)],
)
def test_truncated_is_scipys_truncnorm(mean, std, low, high):
    """The last two intervals lie 13 and 30 standard deviations away from the mean."""
    uniform = np.random.default_rng(0).random(4000)
    ours = truncated(uniform, *(np.full(4000, x) for x in (mean, std, low, high)))
    law = stats.truncnorm((low - mean) / std, (high - mean) / std, mean, std)
    np.testing.assert_allclose(ours, law.ppf(uniform), rtol=1e-7)
    assert stats.kstest(ours, law.cdf).pvalue > 0.01


def test_truncated_far_away_is_exponential():
    """Ten thousand standard deviations out the law is exponential with the rate (low - mean) / std**2."""
    uniform = np.linspace(0.0, 1.0, 11, endpoint=False)
    ours = truncated(uniform, np.zeros(11), np.ones(11), np.full(11, 1e4), np.full(11, 2e4))
    np.testing.assert_allclose((ours - 1e4) * 1e4, -np.log1p(-uniform), atol=2e-4)
    mirrored = truncated(1 - uniform, np.zeros(11), np.ones(11), np.full(11, -2e4), np.full(11, -1e4))
    np.testing.assert_allclose(mirrored, -ours, atol=1e-6)


def test_what_the_index_does_not_know_has_an_infinite_spread_in_both_axes():
    """No foreground, a spread of zero in one axis, or numbers that are none; a spread below a thousandth is a point."""
    mean = np.array([[1, 2], [1, 2], [1, 2], [np.nan, 2], [1, 2], [1, 2]], np.float32)
    std = np.array([[3, 4], [3, 4], [0, 4], [3, 4], [np.inf, 4], [3, 1e-6]], np.float32)
    known, spread = from_index(mean, std, np.array([0.5, 0, 0.5, 0.5, 0.5, 0.5], np.float32))
    assert known.tolist() == [[1, 2], [0, 0], [0, 0], [0, 0], [0, 0], [1, 2]]
    assert spread.tolist() == [[3, 4], *[[np.inf, np.inf]] * 4, [3, 1e-3]]
