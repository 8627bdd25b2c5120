"""Which cases are shown, with what words, and under what names."""

import numpy as np
import pytest

from curia2_jax.curiabench import pictures, tasks
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.pages import cases
from tests import small_benchmark
from tests.curiabench.test_pictures import decode

KEY = ("trained", "linear")


def test_cases_are_of_as_many_patients_as_there_are():
    """One each in the order given; then second ones."""
    patients = np.array(list("aaabbc"))
    order = [2, 1, 0, 4, 3, 5]
    assert cases.chosen(order, patients, 3) == [2, 4, 5]
    assert cases.chosen(order, patients, 5) == [2, 1, 4, 3, 5]
    assert cases.chosen(order, patients, 9) == order


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(rng.normal(0, 200, (24, 24)), np.eye(24) > 0, n % 2, f"Jane Doe {n // 2}", "CT") for n in range(8)]
    folder = small_benchmark.write_task(tmp_path / "t", {"train": rows[:2], "test": rows}, {0: "a", 1: "b"})
    # The fields of the table hold 16 characters, and no patient is in two splits.
    table = np.load(folder / "train" / "extra_data.npy")
    table["patient_id"] = "other"
    np.save(folder / "train" / "extra_data.npy", table)
    return tasks.read_task(folder.parent, "t").test


def answers(split, outputs, classes):
    names = np.arange(8).astype(str)
    return Answers(
        "t",
        "classification" if classes else "regression",
        classes,
        names,
        split.patients,
        names,
        split.targets,
        {KEY: [outputs]},
    )


def test_worst_and_best_are_by_the_probability_of_the_truth(split):
    """No sample is among both, a wrong answer is named, and the picture is that sample's."""
    sure = np.array([0.9, 0.1, 0.6, 0.3, 0.8, 0.45, 0.2, 0.7])  # of the true class
    outputs = np.where(np.arange(2)[None] == split.targets[:, None], sure[:, None], 1 - sure[:, None])
    one = answers(split, outputs, ["a", "b"])
    found = cases.cases(split, one, *KEY, cases.people(split.patients, salted=False), count=3)
    assert [case.number for case in found.worst] == [1, 6, 3]
    assert [case.number for case in found.best] == [0, 4, 7]
    first = found.worst[0]
    assert (first.truth, first.answer, first.right, first.patient) == ("b (0.10)", "a (0.90)", False, "1")
    assert [case.right for case in found.best] == [True, True, True]
    image, mask = np.load(split.images[1]), np.eye(24) > 0
    expected = pictures.outlined(pictures.windowed(image, "CT"), mask)
    np.testing.assert_array_equal(decode(first.picture), expected)
    shown = repr([case._replace(picture="") for case in (*found.worst, *found.best)])
    assert "Jane" not in shown and "sample" not in shown


def test_values_are_worst_where_they_are_furthest(split):
    """In either direction."""
    one = answers(split, split.targets + np.array([0.1, -9, 0.2, 0.3, 0.4, 8, 0.5, 0.6]), [])
    found = cases.cases(split, one, *KEY, cases.people(split.patients, salted=False), count=2)
    assert [case.number for case in found.worst] == [1, 5]
    assert [case.number for case in found.best] == [0, 2]
    assert (found.worst[0].truth, found.worst[0].answer) == ("1", "-8")


def test_slices_of_a_segmentation_are_by_the_dice_of_what_they_show():
    """A mean over the structures that are there; a slice that shows none is no case."""
    pixels = np.array([[[5, 10, 10], [0, 3, 0]], [[0, 0, 8], [9, 9, 9]], [[0, 7, 0], [0, 0, 0]]], float)
    outputs = np.concatenate([pixels, np.full((3, 2, 2), np.nan)], axis=2).reshape(3, 10)
    names = np.array(list("abc"))
    one = Answers("t", "segmentation", ["x", "y"], names, names, names, np.zeros(3, np.int64), {KEY: [outputs]})
    np.testing.assert_array_equal(cases.goodness(one, *KEY), [0.5, 0.5, np.nan])
    assert cases._words(one, outputs[1], 1) == ("Dice 0.50", "x 0.00, y 1.00", True)


def test_only_salted_keys_are_shown():
    """Names that others gave may be those of people: they become numbers."""
    names = np.array(["b0c1d2e3f4a59687", "Doe^Jane", "b0c1d2e3f4a59687"])
    assert cases.people(names, salted=False) == ["2", "1", "2"]
    assert cases.people(names[[0, 2]], salted=True) == ["b0c1d2e3", "b0c1d2e3"]
