"""Intervals against SciPy and by enumeration."""

import numpy as np
import pytest
from scipy import stats

from curia2_jax.curiabench import intervals, scores
from curia2_jax.curiabench.intervals import Estimate


def accuracy_of(right):
    """An estimate of the accuracy of one sample a patient."""
    right = np.asarray(right, int)
    outputs = np.stack([1 - right, right], axis=1).astype(float)
    targets, groups = np.ones(len(right), int), np.arange(len(right))
    found = intervals.estimate(scores.accuracy, targets, outputs, groups, groups, len(right))
    return intervals.bounded(found, *scores.accuracy_parts(targets, outputs, groups))


@pytest.mark.parametrize("right", [[1] * 7, [0] * 7, [1] * 40, [1], [0, 0]])
def test_all_and_none_have_the_interval_of_clopper_and_pearson(right):
    """Where no patient moves the score, the exact interval of SciPy; one patient has none."""
    got = intervals.interval(accuracy_of(right))
    expected = stats.binomtest(sum(right), len(right)).proportion_ci(0.95, "exact")
    if len(right) == 1:
        assert got == [1, None, None]
    else:
        np.testing.assert_allclose(got, [right[0], expected.low, expected.high], rtol=1e-12)


def test_a_mean_over_patients_has_the_t_interval():
    """Without a logit, as differences are: SciPy's t interval of the values of the patients."""
    right = np.random.default_rng(0).integers(0, 2, 23)
    found = accuracy_of(right)._replace(share=False)
    expected = stats.ttest_1samp(right, 0).confidence_interval(0.95)
    np.testing.assert_allclose(intervals.interval(found)[1:], [expected.low, expected.high], rtol=1e-9)
    assert found.weight.sum() == pytest.approx(1)


def test_a_class_of_one_patient_widens_the_interval_and_moves_it_nowhere():
    """Never found, the score is 0.5: what one patient may hide reaches upwards, and 0.5 stays inside."""
    targets, groups = np.array([0] * 20 + [1]), np.arange(21)
    outputs = np.tile([1.0, 0.0], (21, 1))
    found = intervals.estimate(scores.balanced_accuracy, targets, outputs, groups, groups, 21)
    value, low, high = intervals.interval(intervals.bounded(found, *scores.recalls(targets, outputs, groups)))
    one, twenty = (stats.binomtest(n, n).proportion_ci(0.95, "exact").low for n in (1, 20))
    assert value == 0.5
    assert high == pytest.approx(0.5 + (1 - one) / 2) and low == pytest.approx(0.5 - (1 - twenty) / 2)


def test_common_classes_are_judged_by_their_patients_alone():
    """With classes of many patients, of which some are all right, the interval is that of the jackknife."""
    rng = np.random.default_rng(1)
    targets, groups = np.arange(60) % 3, np.arange(60)
    outputs = np.eye(3)[np.where((targets == 2) & (rng.random(60) < 0.5), 0, targets)]
    found = intervals.estimate(scores.balanced_accuracy, targets, outputs, groups, groups, 60)
    bounded = intervals.bounded(found, *scores.recalls(targets, outputs, groups))
    assert (bounded.below, bounded.above) == (0, 0)
    recall = (outputs.argmax(1) == targets)[targets == 2]
    assert found.error == pytest.approx(recall.std() / np.sqrt(20) / 3, rel=0.05)


def test_an_undefined_score_has_no_interval():
    """One class has no AUROC."""
    targets, groups = np.zeros(5, int), np.arange(5)
    outputs = np.tile([0.5, 0.5], (5, 1))
    found = intervals.estimate(scores.auroc, targets, outputs, groups, groups, 5)
    assert intervals.interval(intervals.bounded(found, *scores.areas(targets, outputs, groups))) == [None] * 3


def test_a_difference_that_no_patient_moves_keeps_the_doubt_of_both_scores():
    """All right against none right of three: not [1, 1], and not beyond what the scores can be."""
    gain = intervals.minus(accuracy_of([1] * 3), accuracy_of([0] * 3))
    value, low, high = intervals.interval(gain)
    assert value == high == 1 and 0 < 1 - low < 1.1
    assert intervals.interval(intervals.minus(accuracy_of([1] * 3), accuracy_of([1] * 3))) == [0, 0, 0]


@pytest.mark.parametrize("count", [3, 6, 30])
def test_sign_flips_are_the_permutation_test_of_scipy(count):
    """Exact for few patients, and within the error of the draws for many."""
    values = np.random.default_rng(count).normal(0.4, 1, count)
    weight = np.full(count, 1 / count)
    mean = values.mean()
    gain = Estimate(mean, (values - mean) / count, weight, count)
    flips = 200_000 if count > 14 else np.inf
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=flips, random_state=0
    ).pvalue
    assert intervals.sign_flips(gain) == pytest.approx(expected, abs=0 if count < 15 else 0.02, rel=1e-9)


def test_every_patient_alike_is_not_nothing():
    """A difference that no patient moves, because all have it, is as significant as signs can say."""
    gain = Estimate(0.1, np.zeros(10), np.full(10, 0.1), 10)
    assert intervals.sign_flips(gain) == pytest.approx(2 / 2**10)


def test_holm_is_stepwise_and_keeps_the_order():
    """The example of Holm's paper in words: smallest p times all, the next times one fewer, never falling."""
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.6, 0.9]) == [1, 1]


def test_many_patients_are_scored_in_blocks():
    """More deletions than a block: the same as all at once."""
    right = np.random.default_rng(2).integers(0, 2, 600)
    assert accuracy_of(right).error == pytest.approx(stats.sem(right), rel=1e-9)
