"""Tasks made of a table of values, against the table and the files."""

import csv
import pathlib

import nibabel as nib
import numpy as np
import pytest

from curia2_jax.curiabench import splits, tasks
from curia2_jax.data.ingest import value_tasks
from curia2_jax.errors import UserError
from tests.data.ingest.test_volume_tasks import write_scans


def scans(folder: pathlib.Path, rows: list[str]) -> pathlib.Path:
    """Four scans, two to train on, one to test and one of the pool, and a label map of two boxes each."""
    write_scans(folder)
    (folder / "labels.csv").unlink()
    (folder / "values.csv").write_text("image,kind,value,label\n" + "\n".join(rows) + "\n")
    return folder


def made(tmp_path, rows: list[str]) -> tuple[dict[str, tasks.Task], list[str]]:
    said: list[str] = []
    names = value_tasks.write(scans(tmp_path / "scans", rows), tmp_path / "out", said.append)
    return {name: tasks.read_task(tmp_path / "out", name) for name in names}, said


@pytest.mark.parametrize(
    ("values", "kind", "classes", "targets"),
    [
        (["dilated", "normal", "normal"], "classification", {0: "dilated", 1: "normal"}, [0, 1, 1]),
        (["5", "2", "5.0"], "classification", {0: "first", 1: "second"}, [1, 0, 1]),
        (["4a", "4", "10"], "classification", {0: "4", 1: "10", 2: "4a"}, [2, 0, 1]),
        (["3.25", "-1", "2"], "regression", {}, [3.25, -1, 2]),
        (['"3,25"', "1e2", "2"], "regression", {}, [3.25, 100, 2]),
    ],
)
def test_values_of_a_scan_are_a_task_without_masks(tmp_path, values, kind, classes, targets):
    """The roles of the scans are train, train and test; the pool, and scans without a role, are in no task."""
    rows = [f"image{number}.nii.gz,boxes,{value}," for number, value in enumerate([*values, values[0]])]
    found, said = made(tmp_path, [*rows, f"elsewhere.nii.gz,boxes,{values[0]},"])
    (task,) = found.values()
    assert (task.name, task.kind.name, task.classes) == ("boxes", kind, classes)
    assert [*task.train.targets, *task.test.targets] == targets and not task.train.masked
    assert task.train.patients.tolist() == ["patient 0", "patient 1"] and task.test.patients.tolist() == ["patient 2"]
    image, mask = splits.read_sample(task.test, 0)
    source = np.asarray(nib.load(tmp_path / "scans" / "image2.nii.gz").dataobj)
    assert mask is None and sorted(image.ravel()) == sorted(source.ravel())
    assert said[0].startswith("warning: 1 rows") and "samples.csv has no elsewhere.nii.gz" in said[0]
    assert said[1:] == [f"boxes: {kind}, 2 train, 1 test"]


def test_a_score_of_each_nodule_is_asked_under_its_mask_and_others_apart(tmp_path):
    """Two nodules in a scan, a score each; scores without a mask are a task of their own."""
    folder = scans(tmp_path / "scans", [])
    rows = ["image,kind,value,label"]
    for number in range(3):
        labels = np.asarray(nib.load(folder / f"label{number}.nii.gz").dataobj)
        for which in (2, 5):
            one = nib.Nifti1Image((labels == which).astype(np.uint8), nib.load(folder / f"label{number}.nii.gz").affine)
            one.to_filename(folder / f"nodule{number}_{which}.nii.gz")
            rows.append(f"image{number}.nii.gz,malignancy,{number + which / 10},nodule{number}_{which}.nii.gz")
        rows.append(f"image{number}.nii.gz,malignancy,{number % 2 + 1},")
    nib.Nifti1Image(np.zeros((40, 36, 5), np.uint8), nib.load(folder / "image0.nii.gz").affine).to_filename(
        folder / "empty.nii.gz"
    )
    rows.append("image0.nii.gz,malignancy,4,empty.nii.gz")
    (folder / "values.csv").write_text("\n".join(rows) + "\n")
    said: list[str] = []
    assert value_tasks.write(folder, tmp_path / "out", said.append) == ["malignancy", "malignancy-whole"]
    task, whole = (tasks.read_task(tmp_path / "out", name) for name in ("malignancy", "malignancy-whole"))
    assert task.train.targets.tolist() == [0.2, 0.5, 1.2, 1.5] and task.test.targets.tolist() == [2.2, 2.5]
    assert task.train.images[0].stat().st_ino == task.train.images[1].stat().st_ino  # the volume takes its space once
    sizes = [splits.read_sample(task.test, index)[1].sum() for index in (0, 1)]
    assert sizes == [10 * 14 * 3, 10 * 13 * 3]
    assert whole.kind.name == "classification" and whole.train.targets.tolist() == [0, 1] and not whole.test.masked
    assert "empty.nii.gz is left out: label_values" in said[0] and len(said) == 3


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["image0.nii.gz,grade,1,", "image0.nii.gz,grade,2,"], "two values of 'grade' for"),
        ([f"image0.nii.gz,grade,{n}.5,label{n}.nii.gz" for n in range(11)] + ["image1.nii.gz,grade,none,label.nii.gz"],
         "found 'none' among numbers of 'grade'"),
        (["image0.nii.gz,grade,1,", "image1.nii.gz,grade,2,"], "lacks samples of the role train or test"),
        (["image0.nii.gz,grade,1,", "image1.nii.gz,grade,1,", "image2.nii.gz,grade,2,"], "has one value of 'grade'"),
        (["image0.nii.gz,two boxes,1,"], "which labels.csv has as well; write another name"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_one_line(tmp_path, rows, words):
    folder = scans(tmp_path / "scans", rows)
    (folder / "labels.csv").write_text("image,label,kind\nimage0.nii.gz,label0.nii.gz,two boxes\n")
    with pytest.raises(UserError, match=words) as told:
        value_tasks.write(folder, tmp_path / "out", lambda line: None)
    assert "\n" not in str(told.value) and not list(tmp_path.glob("out/*"))


def test_scores_of_nodules_and_diagnoses_of_hearts(shared_data, tmp_path):
    """Of real scans: the mean of what the raters of a nodule said, with and without its mask, and a word a study."""
    folder = shared_data / "evidence"
    with open(folder / "samples.csv", newline="") as file:
        samples = list(csv.DictReader(file))
    chosen: list[dict[str, str]] = []
    for task in ("ct_lung_nodule", "mr_cardiac_by-nc-sa"):
        for role in ("train", "test"):
            chosen += [row for row in samples if (row["task"], row["role"]) == (task, role)][::8][:6]
    rows, expected = ["image,kind,value,label"], {}
    for row in chosen:
        image = folder / row["file"]
        if row["malignancy"]:
            score = np.mean([float(x) for x in row["malignancy"].split()])
            mask = image.parent.parent / "labels_malignancy" / image.name
            rows += [f"{image},score,{score},{mask}", f"{image},score at sight,{score},"]
            expected[image.name] = score
        else:
            rows.append(f"{image},diagnosis,group {row['class']},")
    (tmp_path / "values.csv").write_text("\n".join(rows) + "\n")
    for table, column in (("samples", "role"), ("patients", "patient")):
        lines = [f"{folder / row['file']},{row[column]}" for row in chosen]
        (tmp_path / f"{table}.csv").write_text(f"file,{column}\n" + "\n".join(lines) + "\n")
    said: list[str] = []
    names = value_tasks.write(tmp_path, tmp_path / "out", said.append)
    assert said == ["score: regression, 6 train, 6 test", "score-at-sight: regression, 6 train, 6 test",
                    "diagnosis: classification, 6 train, 6 test"]  # fmt: skip
    found = {name: tasks.read_task(tmp_path / "out", name) for name in names}
    assert [found[name].train.masked for name in ("score", "score-at-sight", "diagnosis")] == [True, False, False]
    for name in ("score", "score-at-sight"):
        for split in found[name].splits.values():
            assert [expected[series] for series in split.series] == pytest.approx(split.targets.tolist())
            assert not set(found[name].train.patients) & set(found[name].test.patients)
