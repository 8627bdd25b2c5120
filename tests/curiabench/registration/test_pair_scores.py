"""Scores over pairs, and how a patient of several pairs counts."""

import numpy as np
import pytest

from curia2_jax.curiabench import intervals
from curia2_jax.curiabench.registration import pair_scores


def outputs_of(values):
    """Rows whose TRE is `values`; two structures, of which the second is in no pair but the first."""
    rows = [[8, 10, 10, 3.0, 0.5, 1, 2, 4, 5.0, 0.5, one, 0.1, 0.2] for one in values]
    for row in rows[1:]:
        row[5:10] = [0, 3, 0, np.nan, np.nan]
    return np.array(rows, float)


def test_a_pair_counts_as_the_product_of_its_patients_and_once_where_they_are_one():
    groups = np.array([[0, 0], [0, 1], [2, 1]])
    weights = np.array([[1.0, 1, 1], [0.5, 1, 1], [0, 1, 3]])
    expected = [[1, 1, 1], [0.5, 0.5, 1], [0, 0, 3]]
    np.testing.assert_array_equal(pair_scores.weights_of_pairs(groups, weights), expected)
    np.testing.assert_array_equal(pair_scores.weights_of_pairs(np.array([2, 0, 1]), weights)[1], [1, 0.5, 1])
    found = pair_scores.minus_tre(np.empty(0), outputs_of([1, 2, 6]), groups, weights)
    np.testing.assert_allclose(found, [-3, -(0.5 + 1 + 6) / 2, -6])


def test_structures_count_where_the_fixed_volume_has_them():
    outputs, groups, one = outputs_of([1, 2, 6]), np.array([[0, 0], [0, 1], [2, 1]]), np.ones((1, 3))
    parts, patients = pair_scores.dice_parts(np.empty(0), outputs, groups)
    np.testing.assert_allclose(parts, [0.8, 2 / 6])
    assert patients.tolist() == [3, 1]
    assert pair_scores.dice(np.empty(0), outputs, groups, one)[0] == pytest.approx((0.8 + 2 / 6) / 2)
    assert pair_scores.surface_dice(np.empty(0), outputs, groups, one)[0] == 0.5
    assert pair_scores.surface_dice_parts(np.empty(0), outputs, groups)[1].tolist() == [3, 1]
    assert pair_scores.minus_hd95(np.empty(0), outputs, groups, one)[0] == pytest.approx(-4)
    assert pair_scores.minus_sd_log_j(np.empty(0), outputs, groups, one)[0] == pytest.approx(-0.1)
    assert pair_scores.minus_folded(np.empty(0), outputs, groups, one)[0] == pytest.approx(-0.2)
    outputs[:, -3] = np.nan
    assert np.isnan(pair_scores.minus_tre(np.empty(0), outputs, groups, one)[0])


EVERY = [(i, j) for i in range(12) for j in range(i)]  # of 12 patients
ALONE = [(i, i) for i in range(12)]
ONCE = [(i, i + 1) for i in range(0, 24, 2)]  # of 24 patients, each in one pair


@pytest.mark.parametrize(
    ("pairs", "true", "wider"),
    [(EVERY, 2 / np.sqrt(12), 1), (ALONE, 2 / np.sqrt(12), 1), (ONCE, 1 / np.sqrt(6), 2**0.5)],
)
def test_the_error_is_that_of_patients_with_an_effect_each(pairs, true, wider):
    """Of every pair of 12 patients, 66 values, the mean has the error of twice the mean of 12 effects: pairs that are
    taken for independent would have less than half of it. Where everybody is in one pair it is root two too wide."""
    rng, groups = np.random.default_rng(0), np.array(pairs)
    errors, means = [], []
    patients = int(groups.max()) + 1
    for _ in range(200):
        values = rng.normal(size=patients)[groups].sum(1)
        found = intervals.estimate(
            pair_scores.minus_tre, np.empty(0), outputs_of(values), groups, np.arange(patients), patients
        )
        errors.append(found.error)
        means.append(found.value)
    assert np.std(means) == pytest.approx(true, rel=0.12)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(wider * true, rel=0.12)
