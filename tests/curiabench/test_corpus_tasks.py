"""Tasks made of a corpus: slices, label maps and answers against the phantom studies that it was made of."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from curia2_jax.curiabench import corpus_tasks, splits, tasks
from curia2_jax.data.readers import phantom
from curia2_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six phantom studies, ingested as a user would, and two tasks of them."""
    folder = tmp_path_factory.mktemp("tasks")
    phantom.write_studies(folder / "studies", 6, seed=2, size=48)
    line = [sys.executable, "launch/ingest.py", f"--input={folder / 'studies'}", f"--output={folder / 'corpus'}"]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True, timeout=120)
    corpus_tasks.write(folder / "corpus", ["dense-ct", "structures-mr"], folder / "tasks")
    return folder


def benchmark_patients(folder, split):
    tables = (folder / "corpus" / "benchmark").glob(f"*/{split}/extra_data.npy")
    return {name for path in tables for name in np.load(path)["patient_id"].tolist()}


def test_label_maps_lie_on_their_slices_and_patients_are_tested_as_in_the_benchmark(made):
    """What a study marks as lung is air, as liver it is soft tissue; no patient of the benchmark's test is learned."""
    task = tasks.read_task(made / "tasks", "dense-ct")
    assert task.classes == {label: task.classes[label] for label in phantom.LABELS}
    assert not set(task.train.patients) & benchmark_patients(made, "test")
    assert set(task.test.patients) <= benchmark_patients(made, "test")
    values = {label: [] for label in phantom.LABELS}
    for split in task.splits.values():
        assert split.spacing is not None and (split.spacing > 0).all()
        for index in range(len(split.images)):
            image, labels = splits.read_labels(split, index)
            for label, found in values.items():
                found.append(image[labels == label])
    middle = {label: np.median(np.concatenate(found)) for label, found in values.items()}
    studies = [phantom.make_study(2, number, 48) for number in range(6)]
    for label in (1, 5):
        truth = np.concatenate([one.voxels[one.labels == label] for one in studies if one.modality == "CT"])
        assert middle[label] == pytest.approx(np.median(truth), abs=15)  # HU
    assert middle[1] < -500 < 0 < middle[5]


def test_structures_are_those_that_the_slice_shows(made):
    task = tasks.read_task(made / "tasks", "structures-mr")
    assert task.kind.name == "multi-label" and set(task.test.modalities) == {"MR"}
    for split in task.splits.values():
        assert split.targets.shape == (len(split.images), len(task.classes)) and not split.masked
        assert set(np.unique(split.targets[~np.isnan(split.targets)])) == {0.0, 1.0}
    train = task.train.targets
    assert (train == 1).any(0).all() and (train == 0).any(0).all()  # what is asked has both answers
    shown = [np.bincount(one.labels[..., z].ravel(), minlength=13)[1:] >= 32
             for one in (phantom.make_study(2, number, 48) for number in range(6)) if one.modality == "MR"
             for z in range(one.labels.shape[2])]  # fmt: skip
    assert (train == 1).sum() + (task.test.targets == 1).sum() <= np.sum(shown)


def test_names_of_labels_are_those_of_the_benchmark(made):
    told = json.loads(next((made / "corpus" / "benchmark").glob("*ct/task.json")).read_text())
    names = dict(zip(told["values"], told["classes"].values(), strict=True))
    classes = tasks.read_task(made / "tasks", "dense-ct").classes
    assert names and all(classes[label] == name for label, name in names.items())


def test_every_kind_of_labels_is_asked_with_its_own_names(made, tmp_path):
    """Two kinds of as many series, one of them in two files a series; a kind that asks nothing is said."""
    corpus = tmp_path / "corpus"
    shutil.copytree(made / "corpus", corpus)
    for path in (corpus / "labels").glob("*.npz"):
        with np.load(path) as file:
            arrays = dict(file)
        ((name, whole),) = [(name, one) for name, one in arrays.items() if name != "affine"]
        few = whole * (np.arange(whole.shape[2]) % 9 == 0)  # thin stripes
        few[::2] = whole[::2]
        two = {
            "few-0": few,
            "zones-0": np.where(whole == 1, 1, 0),
            "zones-1": np.where(whole == 5, 2, 0),
            "all-0": whole * 0 + 4,
        }
        np.savez(path, **{name: whole, "affine": arrays["affine"]}, **{k: v.astype(np.uint16) for k, v in two.items()})
    for path in (corpus / "benchmark").glob("*/task.json"):
        told = json.loads(path.read_text())
        path.write_text(json.dumps(told | {"classes": {key: f"organ {key}" for key in told["classes"]}}))
    said = []
    wanted = ["structures-ct", "dense-ct.zones", "dense-ct.few"]
    names = corpus_tasks.write(corpus, wanted, tmp_path / "tasks", said.append)
    own = name.rpartition("-")[0]
    assert names == [
        "structures-ct.few",
        f"structures-ct.{own}",
        "structures-ct.zones",
        "dense-ct.zones",
        "dense-ct.few",
    ]
    assert len(said) == 1 and "structures-ct.all" in said[0] and "some slices show and others do not" in said[0]
    task, of_two = (tasks.read_task(tmp_path / "tasks", one) for one in (names[1], names[3]))
    assert of_two.classes == {1: "label 1", 2: "label 2"} and "organ 0" in task.classes.values()
    whole = tasks.read_task(made / "tasks", "dense-ct")
    for index in range(len(whole.test.images)):
        (image, labels), (again, found) = (splits.read_labels(one.test, index) for one in (whole, of_two))
        np.testing.assert_array_equal(image, again)
        np.testing.assert_array_equal(found, np.select([labels == 1, labels == 5], [1, 2], 0))
    shown, few = (tasks.read_task(tmp_path / "tasks", one) for one in (names[0], names[4]))
    maps = [splits.read_labels(few.train, index)[1] for index in range(len(few.train.images))]
    numbers = [label for name in shown.classes.values() for label, other in few.classes.items() if name == other]
    pixels = np.array([[(one == label).sum() for label in numbers] for one in maps])
    unknown = (pixels > 0) & (pixels < 32)
    np.testing.assert_array_equal(shown.train.targets, np.where(unknown, np.nan, pixels >= 32))
    assert unknown.any()
    with pytest.raises(UserError, match=r"no such labels in .*; write dense-ct.all, dense-ct."):
        corpus_tasks.write(corpus, ["dense-ct.heart"], tmp_path / "none")


@pytest.mark.parametrize(
    ("folder", "name", "words"),
    [
        ("corpus", "organs-ct", "found 'organs-ct'; write dense-ct"),
        ("studies", "dense-ct", "with --data CORPUS, or a task alone"),
    ],
)
def test_what_cannot_be_made_is_one_line(made, tmp_path, folder, name, words):
    with pytest.raises(UserError, match=words):
        corpus_tasks.write(made / folder, [name], tmp_path)
    assert not list(tmp_path.iterdir())
