"""Segmentation from folders to the report, and its scores against counts over pixels."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch

from curia2_jax.curiabench import (
    answers,
    asking,
    comparison,
    evaluate,
    features,
    few_shot,
    map_scores,
    others,
    paired,
    protocol,
    report,
    segmentation,
    tasks,
)
from curia2_jax.curiabench.adapters import adapter
from curia2_jax.curiabench.model import load_model
from curia2_jax.curiabench.pages import render
from curia2_jax.curiabench.pages.classes import per_structure
from curia2_jax.curiabench.pages.images import Images
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
def model(tmp_path_factory):
    return small_benchmark.write_model(tmp_path_factory.mktemp("model"), patch=4)


@pytest.fixture(scope="module")
def scored(tmp_path_factory, model):
    """Beside the same weights in another folder, also learned from half of the patients, twice."""
    data = tmp_path_factory.mktemp("data")
    small_benchmark.write_segmentation(data / "organs", spacing=(1.5, 1.5))
    output, beside = tmp_path_factory.mktemp("report"), tmp_path_factory.mktemp("others") / "copy"
    shutil.copytree(model, beside)
    beside = others.load_all([str(beside)], "cpu", False, "curia-2", None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(few_shot, "PERCENT", (50,))
        patched.setattr(few_shot, "DRAWS", 2)
        results = evaluate.evaluate(
            model, data, ["organs"], output, began=[str(model)], others=beside, settings=["few-shot"],
            say=lambda line: None,
        )  # fmt: skip
    return results, output, data


def test_every_row_at_both_sizes_of_the_input(scored):
    results, output, data = scored
    (task,) = results["tasks"].values()
    assert list(task["rows"]) == ["trained", "random", "pixels-linear", "copy"]
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


def test_differences_are_of_the_same_patients(scored):
    """The same weights differ by nothing, whatever their own intervals; another report by what another row does."""
    results, output, _ = scored
    task, (one,) = results["tasks"]["organs"], answers.read(output)
    for head in ("dense", "dense-2x"):
        value, low, high = task["rows"]["copy"][head]["dice"]
        assert low < value < high and task["trained_minus"]["copy"][head]["dice"] == [0, 0, 0]
    row = "pixels-linear"
    second = {("trained", head): one.outputs[row, head] for head in ("dense", "dense-2x")}
    for line in paired.compare([one], [one._replace(outputs=second)]):
        assert line.gain == pytest.approx(task["trained_minus"][row][line.head]["dice"]) and line.gain[0] != 0
        assert line.first - line.second == pytest.approx(line.gain[0])


def test_learning_from_fewer_patients_is_learning_from_a_task_of_these(scored, model):
    """A curve of all rows up to the table, whose draws are what a smaller train split gives."""
    results, output, data = scored
    part, (one,) = results["tasks"]["organs"], answers.read(output)
    dice = protocol.scoring_of("segmentation").primary.metric
    assert list(part["few_shot"]) == list(part["rows"])
    for row, (half, full) in part["few_shot"].items():
        assert (half["percent"], half["patients"], full["percent"], full["patients"]) == (50, 2, 100, 4)
        assert full["score"] == part["rows"][row]["dense"]["dice"]
        values = [comparison.alone(one, dice, outputs).value for outputs in one.aside[row, "dense@50%"]]
        assert len(values) == 2 * len(one.outputs[row, "dense"]) and half["score"][0] == pytest.approx(np.mean(values))
    assert "How many labelled patients does it take?" in (output / "pages" / "organs.html").read_text()
    task = tasks.read_task(data, "organs")
    _, load = next(features.backbones(load_model(model, "cpu"), others.Others()))
    for draw in range(2):
        drawn = np.flatnonzero(few_shot.fits(task, 50, draw))
        half = task.train._replace(
            images=[task.train.images[n] for n in drawn],
            patients=task.train.patients[drawn],
            modalities=task.train.modalities[drawn],
        )
        alone = segmentation.Answered({}, {}, {})
        segmentation._ask(alone, task._replace(train=half), ("trained", "dense"), load(), "cpu", False)
        np.testing.assert_array_equal(alone.outputs["trained", "dense"][0], one.aside["trained", "dense@50%"][draw])


def test_as_many_patches_are_learned_from_whatever_else_was_drawn(monkeypatch):
    """Fewer slices have more patches each, the first of the same order."""
    monkeypatch.setattr(segmentation, "TOKENS", 12)
    slices, ranks = np.repeat(np.arange(4), 12), np.tile(np.arange(12), 4)
    drawn = segmentation.Drawn(np.arange(48)[:, None], np.zeros((48, 2)), slices, ranks, np.array(list("aabb")))
    for fit, each in ((np.ones(4, bool), 3), (np.arange(4) < 2, 6), (np.arange(4) == 3, 12)):
        got = drawn.of(fit)
        assert got.tokens.ravel().tolist() == [12 * n + rank for n in np.flatnonzero(fit) for rank in range(each)]


def test_one_backbone_is_in_memory_at_a_time(model, scored, alive):
    """When it is loaded and at every batch of every row, at both sizes, and with another model beside."""
    task = tasks.read_task(scored[2], "organs")
    few = task._replace(**{name: one._replace(images=one.images[:2]) for name, one in task.splits.items()})
    beside = others.load_all([f"random:{model}@5"], "cpu", False, "curia-2", None)
    (found,) = segmentation.answers([few], load_model(model, "cpu", seeds=1), beside, False, lambda line: None)
    assert len(found.outputs) == 2 * 4 and len(alive) > 4 * 2 * 2 and set(alive) == {1}


def test_a_model_without_patch_tokens_is_one_line(scored):
    pixels = adapter.each(lambda volume: torch.from_numpy(volume.voxels)[:, None])
    one = adapter.Adapter("mean", "slice", pixels, lambda x, normed: adapter.Tokens(x.mean((2, 3)), None), "1", "")
    task = tasks.read_task(scored[2], "organs")
    with pytest.raises(UserError, match="--against: mean gives no patch tokens, which segmentation needs"):
        segmentation._ask(segmentation.Answered({}, {}, {}), task, ("mean", "dense"), one, "cpu", False)


def test_a_model_of_one_size_has_one_head_and_one_of_volumes_is_refused(scored):
    """A dash in the table, no line on the page; a sentence for what cannot be asked."""
    results, _, data = scored
    fixed = copy.deepcopy(results)
    for table in ("rows", "trained_minus"):
        del fixed["tasks"]["organs"][table]["copy"]["dense-2x"]
    line = next(line for line in report.table(fixed).splitlines() if line.lstrip().startswith("copy"))
    assert line.split()[-1] == "-" and not report.table(results).splitlines()[-1].endswith("-")
    (one,) = answers.read(scored[1])
    page, whole = (render.task(found, one, Images()) for found in (fixed, results))
    assert page.count("</span>copy</th>") == whole.count("</span>copy</th>") - 1
    whole_volumes = others.Waiting("net.py:net", "volume", "", "", lambda: None)
    with pytest.raises(UserError, match=r"net.py:net takes whole volumes, and organs, which is segmentation, asks"):
        list(asking.ask([tasks.read_task(data, "organs")], protocol.scoring_of("segmentation"), None,
                        others.Others((whole_volumes,)), (), print))  # fmt: skip


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
