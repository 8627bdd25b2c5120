"""Linear Dice from sums alone, beside scikit-learn's ridge on the tokens themselves and Dice of its answers."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from curia2_jax.telemetry.linear_dice import PENALTY, Moments, joined, linear_dice


def patches(seed: int, count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (count, 12), one dimension constant, and shares (count, 3) that they tell, in part."""
    rng = np.random.default_rng(seed)
    shares = np.clip(rng.normal(0.1, 0.4, (count, 3)), 0, 1)
    mix = np.random.default_rng(9).normal(size=(3, 12))
    tokens = 20 + shares @ mix + noise * rng.normal(size=(count, 12))
    tokens[:, 4] = 7
    return tokens, shares


def of(*sets: tuple[np.ndarray, np.ndarray]) -> Moments:
    """By the definition, of the half to learn from and the half to test."""
    both = [np.concatenate(one, 1) for one in sets]
    apart = [one - one.mean(0) for one in both]
    return Moments(
        np.array([len(one) for one in both]),
        np.array([one.mean(0) for one in both]),
        np.array([one.T @ one for one in apart]),
    )


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_it_is_the_dice_of_what_ridge_regression_says(noise):
    fit, test = patches(0, 200, noise), patches(1, 150, noise)
    model = make_pipeline(StandardScaler(), Ridge(PENALTY * 200)).fit(*fit)
    answers, truth = model.predict(test[0]), test[1]
    expected = 2 * (answers * truth).sum(0) / ((answers**2).sum(0) + (truth**2).sum(0))
    assert linear_dice(of(fit, test), 12) == pytest.approx(expected.mean(), rel=1e-9)
    assert 0.2 < expected.mean() < 0.999


def test_of_masks_it_is_the_dice_of_masks():
    """Tokens that are the masks: every answer is right. Tokens that are the same everywhere: every answer is the mean
    share s, whose Dice beside a mask is 2 s / (1 + s)."""
    rng = np.random.default_rng(3)
    fit, test = (np.tile((rng.random((100, 2)) < 0.3).astype(float), (2, 1)) for _ in range(2))
    assert linear_dice(of((fit, fit), (test, test)), 2) > 0.99
    alike = np.ones((200, 2))
    share = test.mean(0)
    assert linear_dice(of((alike, test), (alike, test)), 2) == pytest.approx((2 * share / (1 + share)).mean())


def test_chunks_join_to_the_whole_and_an_empty_one_adds_nothing():
    fit, test = patches(0, 60, 0.5), patches(1, 50, 0.5)
    cut = [of(tuple(x[:20] for x in fit), test), of(tuple(x[20:] for x in fit), test)]
    empty = Moments(np.zeros(2), np.zeros((2, 15)), np.zeros((2, 15, 15)))
    twice = tuple(np.concatenate([x, x]) for x in test)
    for found, expected in zip(joined(joined(*cut), empty), of(fit, twice), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-9)


def test_what_is_no_number_is_no_score():
    fit = patches(0, 30, 0.5)
    broken = of(fit, (np.full_like(fit[0], np.nan), fit[1]))
    assert np.isnan(linear_dice(broken, 12))
