"""Tasks of volumes against the NIfTI files they were made of."""

import nibabel as nib
import numpy as np
import pytest

from curia2_jax.curiabench import splits, tasks
from curia2_jax.data.ingest import volume_tasks
from curia2_jax.errors import UserError

RAS = np.array([[-2.0, 0, 0, 31], [0, 3.0, 0, -40], [0, 0, 6.0, 7], [0, 0, 0, 1]])  # x runs to the left in the file


def write_scans(folder, roles=("train", "train", "test", "pool")):
    """A scan a role, with labels 2 and 5 in it; every voxel has a number of its own."""
    folder.mkdir()
    tables = {"labels": ["image,label,kind"], "samples": ["file,role"], "patients": ["file,patient"]}
    for number, role in enumerate(roles):
        voxels = np.arange(40 * 36 * 5, dtype=np.int16).reshape(40, 36, 5) + number
        labels = np.zeros(voxels.shape, np.uint8)
        labels[4:14, 6:20, 1:4], labels[20:30, 20:33, 2:5] = 2, 5
        for kind, array in (("image", voxels), ("label", labels)):
            nib.Nifti1Image(array, RAS).to_filename(folder / f"{kind}{number}.nii.gz")
        tables["labels"].append(f"image{number}.nii.gz,label{number}.nii.gz,two boxes")
        tables["samples"].append(f"image{number}.nii.gz,{role}")
        tables["patients"].append(f"image{number}.nii.gz,patient {number}")
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (folder / "label_names.json").write_text('{"boxes": {"2": "first", "5": "second"}}')
    return folder


def test_a_sample_is_a_volume_and_one_of_its_labels_and_the_affine_is_that_of_the_file(tmp_path):
    assert volume_tasks.write(write_scans(tmp_path / "scans"), tmp_path / "out", lambda line: None) == ["two-boxes"]
    task = tasks.read_task(tmp_path / "out", "two-boxes")
    assert task.classes == {0: "first", 1: "second"} and task.warnings == ()
    assert task.train.patients.tolist() == ["patient 0"] * 2 + ["patient 1"] * 2
    assert task.test.patients.tolist() == ["patient 2"] * 2 and task.test.targets.tolist() == [0, 1]
    for index, label in enumerate((2, 5)):
        image, mask = splits.read_sample(task.test, index)
        source, labels = (np.asarray(nib.load(tmp_path / "scans" / f"{kind}2.nii.gz").dataobj)
                          for kind in ("image", "label"))  # fmt: skip
        for row, column, z in [(0, 0, 0), (3, 9, 1), (35, 39, 4)]:
            voxel = np.argwhere(source == image[row, column, z])[0]
            assert mask[row, column, z] == (labels[tuple(voxel)] == label)
            lps = task.test.affines[index] @ [z, row, column, 1]
            np.testing.assert_allclose(lps, np.array([-1, -1, 1, 1]) * (RAS @ [*voxel, 1]), atol=1e-4)
        assert mask.sum() == (labels == label).sum()
    assert task.train.images[0].stat().st_ino == task.train.images[1].stat().st_ino  # the volume takes its space once


@pytest.mark.parametrize("fault, said", [
    ("samples", "samples.csv: cannot be read"), ("role", "lacks samples of the role train or test"),
])  # fmt: skip
def test_what_is_missing_is_one_line(tmp_path, fault, said):
    scans = write_scans(tmp_path / "scans", ("train", "pool"))
    if fault == "samples":
        (scans / "samples.csv").unlink()
    with pytest.raises(UserError, match=said) as told:
        volume_tasks.write(scans, tmp_path / "out", lambda line: None)
    assert "\n" not in str(told.value) and not list(tmp_path.glob("out/*"))


def test_a_label_map_on_another_grid_is_left_out_and_said(tmp_path):
    scans = write_scans(tmp_path / "scans")
    nib.Nifti1Image(np.ones((40, 36, 4), np.uint8), RAS).to_filename(scans / "label0.nii.gz")
    said = []
    volume_tasks.write(scans, tmp_path / "out", said.append)
    assert len(said) == 2 and "image0.nii.gz is left out: label_geometry" in said[0]
    assert said[1] == "two-boxes: 2 train, 2 test"
