"""Curves, calibration and residuals against counting by hand."""

import numpy as np
import pytest

from curia2_jax.curiabench.pages import curves


@pytest.fixture(scope="module")
def binary():
    rng = np.random.default_rng(0)
    positive = rng.random(300) < 0.3
    return positive, np.round(rng.normal(positive, 1.0), 1)  # with ties


def test_every_point_of_a_roc_curve_is_a_count(binary):
    """Shares of both sides at or above a score; the area is that of pairs in the right order."""
    positive, score = binary
    curve = curves.roc(positive, score)
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
    counted = {
        (np.mean(score[~positive] >= cut), np.mean(score[positive] >= cut)) for cut in (*np.unique(score), np.inf)
    }
    assert set(zip(curve.x.tolist(), curve.y.tolist(), strict=True)) <= counted
    above = score[positive][:, None] - score[~positive][None]
    assert curve.area == pytest.approx(np.mean(np.where(above == 0, 0.5, above > 0)))


def test_every_point_of_a_precision_recall_curve_is_a_count(binary):
    """The area is the precision at each positive that is newly found, averaged."""
    positive, score = binary
    curve = curves.precision_recall(positive, score)
    cuts = np.unique(score)[::-1]
    recall = np.array([np.mean(score[positive] >= cut) for cut in cuts])
    precision = np.array([np.mean(positive[score >= cut]) for cut in cuts])
    counted = {(0.0, 1.0), *zip(recall.tolist(), precision.tolist(), strict=True)}
    assert set(zip(curve.x.tolist(), curve.y.tolist(), strict=True)) <= counted
    assert curve.x[0] == 0 and curve.x[-1] == 1
    assert curve.area == pytest.approx(np.sum(np.diff(recall, prepend=0) * precision))


@pytest.mark.parametrize("all_are", [True, False])
def test_one_class_alone_has_no_roc_curve(all_are):
    """Nor has a class without a sample a curve of precision."""
    positive, score = np.full(5, all_are), np.arange(5.0)
    assert curves.roc(positive, score) is None
    assert (curves.precision_recall(positive, score) is None) == (not all_are)


def test_a_curve_of_many_points_is_thin_and_the_same():
    """No point is further from its neighbor than a pixel, none is moved, and there are few."""
    rng = np.random.default_rng(1)
    positive = rng.random(200_000) < 0.5
    score = rng.normal(positive, 1.0)
    curve = curves.roc(positive, score)
    assert len(curve.x) <= 2 * curves.MOST_STEPS + 2
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
    full = np.sort(score[~positive]), np.sort(score[positive])
    for x, y in zip(curve.x[::50], curve.y[::50], strict=True):
        cut = full[0][len(full[0]) - round(x * len(full[0]))] if x else np.inf
        assert y == pytest.approx(1 - np.searchsorted(full[1], cut) / len(full[1]), abs=1e-3)


def test_reliability_is_counted_in_bins_of_confidence():
    """Ends belong to the lower bin; the error is weighted by counts."""
    probabilities = np.array([[0.5, 0.5], [0.55, 0.45], [0.4, 0.6], [0.05, 0.95], [1.0, 0.0]])
    bins = curves.reliability(np.array([0, 1, 1, 1, 1]), probabilities)
    assert [(one.low, one.high, one.samples) for one in bins] == [(0.4, 0.5, 1), (0.5, 0.6, 2), (0.9, 1.0, 2)]
    assert [one.confidence for one in bins] == pytest.approx([0.5, 0.575, 0.975])
    assert [one.right for one in bins] == [1.0, 0.5, 0.5]
    assert curves.calibration_error(bins) == pytest.approx((0.5 + 2 * 0.075 + 2 * 0.475) / 5)


def test_residuals_have_the_sign_of_too_much():
    """Predicted minus true."""
    assert curves.residuals(np.array([10.0, 20.0]), np.array([13.0, 19.0])) == pytest.approx((2.0, np.sqrt(5), 1.0))
