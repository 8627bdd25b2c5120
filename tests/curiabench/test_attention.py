"""Volumes by attention over their slices: what stands in results and predictions, and what is refused."""

import shutil

import numpy as np
import pytest
import torch

from curia2_jax.curiabench import answers, attention, evaluate, features, others, paired, protocol, scores, tasks
from curia2_jax.curiabench.adapters import load
from curia2_jax.curiabench.aggregate import PRESETS, parse
from curia2_jax.curiabench.heads import attentive
from curia2_jax.curiabench.masks import patch_mask
from curia2_jax.curiabench.model import load_model
from curia2_jax.curiabench.splits import read_sample
from curia2_jax.errors import UserError
from tests import small_benchmark
from tests.curiabench.test_comparison import answers as drawn


def volumes(patients, first, masked):
    """Volumes of two to five noisy slices; one is brighter on one side in patients of odd number."""
    rng = np.random.default_rng(first)
    found = []
    for number in range(first, first + patients):
        voxels = rng.normal(size=(24, 24, rng.integers(2, 6)))
        voxels[:, 12:, 0] += 3 * (number % 2)
        mask = np.zeros(voxels.shape, bool)
        mask[8:16, 8:16, :2] = True
        found.append((voxels, mask if masked else None, number % 2, f"p{number}", "MR"))
    return found


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setattr(attentive, "SEEDS", 1)
    monkeypatch.setattr(attentive, "MIN_STEPS", 1)
    monkeypatch.setattr(attentive, "EPOCHS", 5)
    return small_benchmark.write_model(tmp_path / "model")


def test_from_volumes_to_results_and_predictions(tmp_path, model, alive):
    """Of other people's models too, with differences of the same patients: here those of the same weights, none."""
    samples = {"train": volumes(8, 0, False), "test": volumes(6, 8, False)}
    small_benchmark.write_task(tmp_path / "data" / "side", samples, {0: "no", 1: "yes"}, mask=False)
    report, said = tmp_path / "report", []
    beside = others.load_all([str(shutil.copytree(model, tmp_path / "copy"))], "cpu", False, "curia-2", None)
    results = evaluate.evaluate(
        model, tmp_path / "data", ["side"], report, began=[str(model)], others=beside, settings=["attention"],
        say=said.append,
    )  # fmt: skip
    assert sum("by attention over slices: balanced accuracy" in line for line in said) == 3
    assert sum("trained minus it +0.000 [+0.000, +0.000]" in line for line in said) == 2
    found, (one,) = results["tasks"]["side"]["attention"], answers.read(report)
    rows = found["rows"]
    assert list(rows) == ["trained", "random", "copy"] and list(rows["trained"]) == [attention.HEAD.name]
    assert set(rows["trained"][attention.HEAD.name]) == {"accuracy", "balanced_accuracy", "auroc"}
    (outputs,) = one.aside["trained", attention.HEAD.name]
    assert outputs.shape == (6, 2) and np.allclose(outputs.sum(1), 1)
    value = scores.auroc(one.targets, outputs, np.arange(6), np.ones((1, 6)))[0]
    assert rows["trained"][attention.HEAD.name]["auroc"][0] == pytest.approx(value)
    assert found["trained_minus"]["copy"][attention.HEAD.name]["auroc"] == [0, 0, 0]
    assert attention.compared(one, protocol.scoring_of("classification")) == found
    assert set(results["tasks"]["side"]["rows"]["trained"]) == {"linear", "knn"}
    assert "side,copy,attentive@slices,auroc," in (report / "scores.csv").read_text()
    assert set(alive) == {1}


def test_two_reports_are_compared_by_attention_too(tmp_path):
    """A difference of reports is that of rows of one report."""
    one, trained, random = drawn(), ("trained", attention.HEAD.name), ("random", attention.HEAD.name)
    first, second = one.outputs["trained", "linear"], one.outputs["random", "knn"]
    both = attention.compared(one._replace(aside={trained: first, random: second}), protocol.scoring_of(one.kind))
    lines = paired.compare([one._replace(aside={trained: first})], [one._replace(aside={trained: second})])
    assert [line.head for line in lines] == ["linear", "knn", attention.HEAD.name]
    expected = both["trained_minus"]["random"][attention.HEAD.name]["balanced_accuracy"]
    assert lines[-1].gain == pytest.approx(expected) and lines[-1].gain[0] != 0
    assert "attention over slices" in paired.table(lines, protocol.scoring_of(one.kind))


@pytest.mark.parametrize("masked", [True, False])
def test_a_token_is_that_of_its_slice(tmp_path, model, masked):
    """The mean of the patches under the mask, of slices that have one; or the class token of every slice."""
    samples = {"train": volumes(4, 0, masked), "test": volumes(2, 4, masked)}
    small_benchmark.write_task(tmp_path / "side", samples, {0: "no", 1: "yes"}, mask=masked)
    split, loaded = tasks.read_task(tmp_path, "side").test, load_model(model, "cpu", seeds=1)
    got = attention._sequences(split, load.load(str(model), "cpu", False), PRESETS["curia-2"], "cpu")
    for index in range(2):
        image, mask = read_sample(split, index)
        slices = range(2 if masked else image.shape[2])
        assert got.lengths[index] == len(slices) and got.slices[index, : len(slices)].tolist() == list(slices)
        for z in slices:
            pixels = features.to_pixels(loaded.processor, np.ascontiguousarray(image[..., z]), "MR")
            whole, patches = features.tokens(loaded.trained, pixels)
            if masked:
                whole = patches[0][patch_mask(mask[..., z], 32, 8)].mean(0, keepdim=True)
            torch.testing.assert_close(got.tokens[index, z], whole[0], rtol=0, atol=1e-5)
        assert not got.tokens[index, len(slices) :].any()


def test_the_pooling_says_whether_padding_is_read(tmp_path, model, monkeypatch):
    samples = {"train": volumes(4, 0, False), "test": volumes(2, 4, False)}
    small_benchmark.write_task(tmp_path / "side", samples, {0: "no", 1: "yes"}, mask=False)
    asked, pool = [], attentive.AttentivePool
    monkeypatch.setattr(attentive, "AttentivePool", lambda *told: asked.append(told[2]) or pool(*told))
    task, adapter = tasks.read_task(tmp_path, "side"), load.load(str(model), "cpu", False)
    for pooling in ("curia-2", "curia-v1", "curia-v1,padding=masked"):
        attention._add([{}], [task], "trained", adapter, parse(pooling), "cpu")
    assert asked == [False, True, False]


def test_what_has_no_slices_to_read_is_refused(tmp_path, model):
    """Single slices, other kinds and models of whole volumes."""
    rows = [(np.random.default_rng(n).normal(size=(24, 24)), None, n % 2, f"p{n}", "MR") for n in range(8)]
    small_benchmark.write_task(
        tmp_path / "flat", {"train": rows[:4], "test": rows[4:]}, {0: "no", 1: "yes"}, mask=False
    )
    task, loaded, none = tasks.read_task(tmp_path, "flat"), load_model(model, "cpu", seeds=1), others.Others()
    with pytest.raises(UserError, match="is one slice; it wants volumes"):
        attention.predictions([task], loaded, none, print)
    retrieval = next(kind for kind in tasks.benchmark_schema.KINDS if kind.name == "retrieval")
    with pytest.raises(UserError, match="flat is of kind retrieval"):
        attention.check([task._replace(kind=retrieval)], none)
    whole = others.Waiting("net.py:net", "volume", "", "", lambda: None)
    with pytest.raises(UserError, match=r"--against: net.py:net takes whole volumes, and --setting=attention asks"):
        attention.check([task], others.Others((whole,)))
