"""Rows compared on the same resamples."""

import numpy as np
import pytest

from curia2_jax.curiabench import comparison, heads, protocol, scores

(SCORING,) = protocol.SCORINGS
NAMES = [row.name for row in protocol.ROWS]


def predictions(seed=0, same=()):
    """Probabilities (60, 3) of every row by every head, drawn anew for each; rows `same` get those of the first."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name in NAMES:
        drawn[name] = {h.name: heads.Prediction(rng.dirichlet(np.ones(3), 60), {}) for h in SCORING.heads}
        if name in same:
            drawn[name] = drawn[NAMES[0]]
    return drawn


def targets_and_groups():
    rng = np.random.default_rng(9)
    return rng.integers(0, 3, 60), rng.permutation(np.arange(60) // 6)


def test_the_same_predictions_differ_by_nothing_on_every_resample():
    """Pairs are resampled together: equal rows have the interval [0, 0], however wide their own are."""
    targets, groups = targets_and_groups()
    found = comparison.distribution(predictions(same=["random"]), SCORING, targets, groups, seed=0)
    compared = comparison.compare(found, SCORING)
    for head in SCORING.heads:
        for metric in SCORING.metrics:
            value, low, high = compared["rows"]["trained"][head.name][metric.name]
            assert low < value < high
            assert compared["trained_minus"]["random"][head.name][metric.name] == [0, 0, 0]
            assert compared["trained_minus"]["pixels"][head.name][metric.name] != [0, 0, 0]


@pytest.mark.parametrize("row", ["random", "pixels"])
def test_differences_are_trained_minus_the_other_draw_by_draw(row):
    """Value and both ends, from the arrays themselves."""
    targets, groups = targets_and_groups()
    found = comparison.distribution(predictions(), SCORING, targets, groups, seed=3)
    got = comparison.compare(found, SCORING)["trained_minus"][row]
    for head in SCORING.heads:
        for metric in SCORING.metrics:
            point, drawn = (
                tree["trained", head.name, metric.name] - tree[row, head.name, metric.name] for tree in found
            )
            expected = [point[0], *np.percentile(drawn[~np.isnan(drawn)], [2.5, 97.5])]
            np.testing.assert_allclose(got[head.name][metric.name], expected, rtol=1e-12)


def test_all_rows_heads_and_metrics_share_their_resamples():
    """A distribution is each metric on the weights of its seed, and on ones."""
    targets, groups = targets_and_groups()
    asked = predictions()
    found = comparison.distribution(asked, SCORING, targets, groups, seed=5)
    weights = scores.resample(10, seed=5)
    assert len(found.points) == len(found.draws) == len(NAMES) * len(SCORING.heads) * len(SCORING.metrics)
    for (row, head, metric), drawn in found.draws.items():
        score = next(m.score for m in SCORING.metrics if m.name == metric)
        outputs = asked[row][head].outputs
        np.testing.assert_array_equal(drawn, score(targets, outputs, groups, weights))
        np.testing.assert_array_equal(
            found.points[row, head, metric], score(targets, outputs, groups, np.ones((1, 10)))
        )


def test_the_mean_of_tasks_is_taken_draw_by_draw():
    """Its interval is that of the mean, narrower than those of the tasks, not their mean."""
    targets, groups = targets_and_groups()
    tasks = [comparison.distribution(predictions(seed), SCORING, targets, groups, seed) for seed in range(4)]
    key = ("pixels", "knn", "accuracy")
    mean = comparison.mean(tasks)
    np.testing.assert_allclose(mean.draws[key], sum(task.draws[key] for task in tasks) / 4, rtol=1e-12)
    np.testing.assert_allclose(mean.points[key], sum(task.points[key] for task in tasks) / 4, rtol=1e-12)
    widths = [
        high - low
        for _, low, high in (
            comparison.compare(one, SCORING)["rows"]["pixels"]["knn"]["accuracy"] for one in (mean, *tasks)
        )
    ]
    assert widths[0] < 0.7 * np.mean(widths[1:])  # about half: four tasks, each with draws of its own
