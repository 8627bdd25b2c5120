"""Segmentation from folders to the report, and its scores against counts over pixels."""

import json

import numpy as np
import pytest

from curia2_jax.curiabench import answers, evaluate, map_scores, segmentation, tasks
from curia2_jax.curiabench.pages.classes import per_structure
from curia2_jax.errors import UserError
from tests import small_benchmark


def test_dice_is_over_all_slices_of_a_patient_and_a_mean_over_those_who_have_the_structure():
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 3, (2, 6, 9, 9))
    groups = np.array([0, 0, 1, 1, 2, 2])
    truth[4:][truth[4:] == 2] = 0  # patient 2 lacks structure 2; one slice lacks structure 1
    truth[0][truth[0] == 1] = 0
    outputs = np.stack([segmentation.measures(*pair, 2, (1.0, 1.0), False) for pair in zip(found, truth, strict=True)])
    dice = np.full((3, 2), np.nan)
    for patient in range(3):
        for label in (1, 2):
            one, other = (x[groups == patient] == label for x in (found, truth))
            if other.any():
                dice[patient, label - 1] = 2 * (one & other).sum() / (one.sum() + other.sum())
    weights = np.array([[1.0, 1, 1], [2, 0.5, 0]])
    got = map_scores.dice(np.empty(0), outputs, groups, weights)
    assert np.isnan(dice).sum() == 1
    expected = [np.nanmean(np.nanmean(dice, 0)), np.mean((2 * dice[0] + 0.5 * dice[1]) / 2.5)]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    parts, patients = map_scores.dice_parts(np.empty(0), outputs, groups)
    np.testing.assert_allclose(parts, np.nanmean(dice, 0))
    assert patients.tolist() == [3, 2]


def test_surfaces_are_of_slices_that_show_the_structure_and_a_missed_one_is_a_diagonal_away():
    truth, found = np.zeros((2, 3, 6, 8), int)
    truth[:2, 2:4, 2:4] = 1
    found[0], found[2] = truth[0], 1  # right, missed, and one where nothing is
    spacing = (3.0, 0.5)
    outputs = np.stack([segmentation.measures(*pair, 1, spacing, True) for pair in zip(found, truth, strict=True)])
    one, groups = np.ones((1, 1)), np.zeros(3, int)
    assert map_scores.minus_hd95(np.empty(0), outputs, groups, one)[0] == pytest.approx(-np.hypot(18, 4) / 2)
    assert map_scores.surface_dice(np.empty(0), outputs, groups, one)[0] == 0.5
    assert [part.tolist() for part in map_scores.surface_dice_parts(np.empty(0), outputs, groups)] == [[0.5], [1]]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    model = small_benchmark.write_model(tmp_path_factory.mktemp("model"), patch=4)
    data = tmp_path_factory.mktemp("data")
    small_benchmark.write_segmentation(data / "organs", spacing=(1.5, 1.5))
    output = tmp_path_factory.mktemp("report")
    return evaluate.evaluate(model, data, ["organs"], output, began=[str(model)], say=lambda line: None), output, data


def test_every_row_at_both_sizes_of_the_input(scored):
    results, output, data = scored
    (task,) = results["tasks"].values()
    assert list(task["rows"]) == ["trained", "random", "pixels-linear"]
    for row in task["rows"].values():
        assert list(row) == ["dense", "dense-2x"]
        for scores in row.values():
            assert 0 < scores["dice"][0] < 1 and 0 < scores["surface_dice"][0] < 1 and scores["minus_hd95"][0] < 0
    assert task["heads"]["trained"]["dense-2x"]["patches"] == 4 * task["heads"]["trained"]["dense"]["patches"]
    better = [task["rows"]["pixels-linear"][head]["dice"][0] for head in ("dense", "dense-2x")]
    assert better[1] > better[0]  # organs of phantoms are a few patches wide
    assert "confusion" not in task and task["test"]["per_class"] == []
    (kept,) = answers.read(output)
    pixels = kept.outputs["trained", "dense"][0].reshape(len(kept.samples), -1, 5)
    test = tasks.read_task(data, "organs").test
    truth = [np.load(path.with_name(path.stem + ".mask.npy")) for path in test.images]
    counts = [[(one == label).sum() for label in test.labels] for one in truth]
    np.testing.assert_array_equal(pixels[:, :, 2], counts)
    assert "Dice" in (output / "report.html").read_text()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (77, "found the label [0-9]+ without a name; add it to classes"),
        (np.zeros((9, 9), np.uint8), r"found uint8 of shape \(9, 9\); write integers of shape"),
        (np.zeros((48, 48)), "found float64"),
        (None, "write the label map of the image"),
    ],
)
def test_a_label_map_at_fault_is_one_line(tmp_path, labels, words):
    folder = small_benchmark.write_segmentation(tmp_path / "organs")
    path = next((folder / "test" / "images").glob("*.mask.npy"))
    path.unlink() if labels is None else np.save(path, labels if np.ndim(labels) else np.load(path) + np.uint8(labels))
    with pytest.raises(UserError, match=words):
        segmentation.hashes(tasks.read_task(tmp_path, "organs").test)
    told = json.loads((folder / "task.json").read_text())
    assert told["kind"] == "segmentation" and "mask" not in told


def test_its_page_has_a_line_a_structure_and_cases_by_dice(scored):
    """The means of the lines are the scores of the task; every slice has its label map beside it."""
    results, output, _ = scored
    page = (output / "pages" / "organs.html").read_text()
    (answered,) = answers.read(output)
    facts = per_structure(answered, "trained", "dense")
    scores = results["tasks"]["organs"]["rows"]["trained"]["dense"]
    assert np.mean([one.dice[0] for one in facts]) == pytest.approx(scores["dice"][0])
    assert np.mean([one.minus_hd95[0] for one in facts]) == pytest.approx(scores["minus_hd95"][0])
    for one in facts:
        assert f"<td>{one.dice[0]:.3f}<small>" in page
    assert page.count('alt="labels, slice') == page.count('alt="trained backbone, slice') > 0
    assert page.count("<strong>Dice 0.") + page.count("<strong>Dice 1.") == page.count('<figure class="case">') > 0
