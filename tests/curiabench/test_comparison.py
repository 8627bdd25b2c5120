"""Rows compared on the same patients, within tasks and over tasks that share them."""

import numpy as np
import pytest
from scipy import stats

from curia2_jax.curiabench import comparison, protocol
from curia2_jax.curiabench.answers import Answers

SCORING = protocol.scoring_of("classification")
NAMES = [row.name for row in (protocol.TRAINED, protocol.RANDOM, protocol.PIXELS)]


def answers(seed=0, task="organs", patients=None, same=(), seeds=1):
    """60 samples of ten patients, 3 classes; rows `same` answer as the first one does."""
    rng = np.random.default_rng(seed)
    names = np.array(patients if patients is not None else [f"p{i}" for i in range(10)])
    outputs = {}
    for row in NAMES:
        for head in SCORING.heads:
            drawn = [rng.dirichlet(np.ones(3), 60) for _ in range(seeds if row == "random" else 1)]
            outputs[row, head.name] = outputs[NAMES[0], head.name] if row in same else drawn
    samples = np.arange(60).astype(str)
    who = names[np.arange(60) // 6]
    targets = np.random.default_rng(9).permutation(np.arange(60) % 3)
    return Answers(task, "classification", ["a", "b", "c"], samples, who, samples, targets, outputs)


def test_the_same_predictions_differ_by_nothing():
    """Pairs are taken away together: equal rows have the interval [0, 0], however wide their own are."""
    (found,) = comparison.estimates([answers(same=["random"])], SCORING)
    compared = comparison.compare(found)
    for head in SCORING.heads:
        for metric in SCORING.metrics:
            value, low, high = compared["rows"]["trained"][head.name][metric.name]
            assert low < value < high
            assert compared["trained_minus"]["random"][head.name][metric.name] == [0, 0, 0]
            assert compared["trained_minus"]["pixels"][head.name][metric.name] != [0, 0, 0]


def accuracy_per_patient(one, row="trained", head="knn"):
    right = one.outputs[row, head][0].argmax(1) == one.targets
    return np.array([right[one.patients == p].mean() for p in np.unique(one.patients)])


def test_a_difference_of_accuracies_has_the_interval_of_a_paired_t_test():
    """With as many samples of every patient the jackknife is the paired test of the textbook."""
    one = answers()
    got = comparison.compare(comparison.estimates([one], SCORING)[0])["trained_minus"]["pixels"]["knn"]["accuracy"]
    test = stats.ttest_rel(accuracy_per_patient(one), accuracy_per_patient(one, "pixels"))
    expected = test.confidence_interval(0.95)
    np.testing.assert_allclose(got[1:], [expected.low, expected.high], rtol=1e-9)


@pytest.mark.parametrize("shared", [True, False])
def test_the_mean_of_tasks_counts_a_patient_of_several_tasks_once(shared):
    """Shared patients: the t interval of each patient's mean. Others: the variances of the tasks add up."""
    tasks = [answers(seed, f"task {seed}", None if shared else [f"{seed} {i}" for i in range(10)]) for seed in range(4)]
    mean = comparison.mean(comparison.estimates(tasks, SCORING))
    key = ("trained", "knn", "accuracy")
    per_task = np.array([accuracy_per_patient(one) for one in tasks])
    error = mean[key][0].error
    if shared:
        assert error == pytest.approx(stats.sem(per_task.mean(0)))
    else:
        assert error == pytest.approx(np.sqrt((stats.sem(per_task, axis=1) ** 2).sum()) / 4)
    assert mean[key][0].value == pytest.approx(per_task.mean())


def test_rows_that_a_task_lacks_are_not_in_the_mean():
    """A mean is of what all tasks have."""
    one, other = answers(0, "one"), answers(1, "other")
    other = other._replace(outputs={key: seeds for key, seeds in other.outputs.items() if key[0] != "pixels"})
    found = comparison.compare(comparison.mean(comparison.estimates([one, other], SCORING)))
    assert list(found["rows"]) == ["trained", "random"] and list(found["trained_minus"]) == ["random"]


def test_seeds_are_averaged_and_shown():
    """The row is the mean of its seeds; the single values stand beside it, in no interval."""
    one = answers(seeds=3)
    found = comparison.compare(comparison.estimates([one], SCORING)[0])
    values = found["seeds"]["random"]["linear"]["accuracy"]
    expected = [np.mean(seed.argmax(1) == one.targets) for seed in one.outputs["random", "linear"]]
    np.testing.assert_allclose(values, expected)
    assert found["rows"]["random"]["linear"]["accuracy"][0] == pytest.approx(np.mean(values))
    assert list(found["seeds"]) == ["random"]


def test_one_patient_alone_is_judged_by_slices():
    """The unit changes, and there is no interval of a single slice."""
    one = answers(patients=["p"] * 10)
    assert (one.unit, len(np.unique(one.units))) == ("slice", 60)
    single = one._replace(slices=np.full(60, "s"))
    found = comparison.compare(comparison.estimates([single], SCORING)[0])
    assert found["rows"]["trained"]["knn"]["accuracy"][1:] == [None, None]
