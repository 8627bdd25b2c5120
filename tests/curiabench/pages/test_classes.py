"""The table of classes against scikit-learn, SciPy and the scores of the whole task."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from curia2_jax.curiabench import comparison, protocol
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.pages.classes import per_class

KEY = ("trained", "linear")


def answers(targets, patients, outputs, classes="abcd"):
    names = np.array([f"{i:03}" for i in range(len(targets))])
    return Answers("t", "classification", list(classes), names, patients, names, targets, {KEY: [outputs]})


@pytest.fixture(scope="module")
def one():
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 3, 120)  # nobody has class d
    targets[:2] = 2
    outputs = rng.random((120, 4)) + 0.6 * np.eye(4)[targets]
    outputs[:, 3] = 0.01
    return answers(targets, np.array([f"p{i // 8:02}" for i in range(120)]), outputs / outputs.sum(1, keepdims=True))


def test_values_are_those_of_scikit_learn(one):
    """Recall, precision, AUROC one against the rest, and counts."""
    outputs = one.outputs[KEY][0]
    found = per_class(one, *KEY)
    assert [line.name for line in found] == ["a", "b", "c"]
    said = outputs.argmax(1)
    precision, recall, _, count = metrics.precision_recall_fscore_support(one.targets, said, labels=[0, 1, 2])
    np.testing.assert_allclose([line.recall[0] for line in found], recall)
    np.testing.assert_allclose([line.precision for line in found], precision)
    areas = [metrics.roc_auc_score(one.targets == k, outputs[:, k]) for k in range(3)]
    np.testing.assert_allclose([line.auroc[0] for line in found], areas)
    assert [line.samples for line in found] == count.tolist()
    assert [line.patients for line in found] == [len(set(one.patients[one.targets == k])) for k in range(3)]
    assert all(low < value < high for line in found for value, low, high in (line.recall, line.auroc))


def test_their_means_are_the_scores_of_the_task(one):
    """What the page says of classes and what results.json says of the task is one and the same."""
    estimates = comparison.estimates([one], protocol.scoring_of("classification"))[0]
    found = per_class(one, *KEY)
    for metric, part in (("balanced_accuracy", "recall"), ("auroc", "auroc")):
        mean = np.mean([getattr(line, part)[0] for line in found])
        assert estimates[*KEY, metric][0].value == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("patients", [2, 12])
def test_a_class_that_is_always_right_has_the_exact_interval(patients):
    """Clopper and Pearson's, of the patients who have the class and not of the others."""
    targets = np.array([0] * patients + [1] * 20)
    names = np.array([f"p{i}" for i in range(patients + 20)])
    outputs = np.eye(2)[targets]
    recall = per_class(answers(targets, names, outputs, "ab"), *KEY)[0].recall
    exact = stats.binomtest(patients, patients).proportion_ci(0.95, "exact")
    assert recall == pytest.approx([1.0, exact.low, 1.0])


def test_a_class_of_one_patient_has_no_interval():
    """And a class that nobody was given has no precision."""
    targets, names = np.array([0, 0, 1, 1]), np.array(["p", "p", "q", "r"])
    first, second = per_class(answers(targets, names, np.tile([0.1, 0.9], (4, 1)), "ab"), *KEY)
    assert first.recall == [0.0, None, None] and first.precision is None
    assert second.recall[0] == 1.0 and second.precision == 0.5 and second.patients == 2
