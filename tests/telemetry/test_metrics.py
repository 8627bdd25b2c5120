"""Figures that are made on the host."""

import math

import numpy as np
import pytest

from curia2_jax.telemetry.metrics import rankme


def with_singular_values(values: np.ndarray, n: int, d: int) -> np.ndarray:
    """(n, d) float32 with these singular values in random directions."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (n, d))
    return ((left * values) @ right.T).astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_rankme_is_the_exponential_of_an_entropy(shape):
    # k equal values: k. Values 2, 1, 1: p = 1/2, 1/4, 1/4 and exp(1.5 ln 2).
    for values, expected in ((np.ones(7), 7), (np.array([2.0, 1, 1]), 2**1.5), (np.ones(1), 1)):
        assert rankme(with_singular_values(values, *shape)) == pytest.approx(expected, rel=1e-4)
    assert rankme(np.eye(24, dtype=np.float32)) == pytest.approx(24)


def test_rankme_sees_what_is_small():
    """A large common part and a thousandth beside it in 20 directions: from squares in float32 that would be lost."""
    values = np.array([1.0, *[1e-3] * 20])
    p = values / values.sum()
    expected = math.exp(-(p * np.log(p)).sum())
    assert expected > 1.15
    assert rankme(with_singular_values(values, 64, 32)) == pytest.approx(expected, rel=1e-3)


def test_rankme_of_nothing():
    assert math.isnan(rankme(np.zeros((4, 3), np.float32)))
    assert math.isnan(rankme(np.full((4, 3), np.nan, np.float32)))
