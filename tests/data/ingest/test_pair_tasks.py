"""Tasks of registration against the NIfTI files they were made of."""

import json

import nibabel as nib
import numpy as np
import pytest

from curia2_jax.curiabench import tasks
from curia2_jax.curiabench.registration.pairs import read_pair
from curia2_jax.data.ingest import pair_tasks
from curia2_jax.errors import UserError
from tests.data.ingest.test_volume_tasks import write_scans

RAS = np.array([[-2.0, 0, 0, 31], [0, 3.0, 0, -40], [0, 0, 6.0, 7], [0, 0, 0, 1]])


def write(folder, *lines):
    write_scans(folder)
    (folder / "pairs.csv").write_text("\n".join(("fixed,moving", *lines)) + "\n")
    return folder


def test_pairs_of_scans_are_volumes_with_label_maps_and_the_affine_of_the_file(tmp_path):
    scans = write(tmp_path / "scans", "image0.nii.gz,image1.nii.gz", "image3.nii.gz,image0.nii.gz")
    said = []
    assert pair_tasks.write(scans, tmp_path / "out", said.append) == ["two-boxes-registration"]
    assert said == ["two-boxes-registration: 2 pairs"]
    task = tasks.read_task(tmp_path / "out", "two-boxes-registration")
    assert task.classes == {2: "first", 5: "second"} and task.warnings == ()
    assert task.test.owners.tolist() == [["patient 0", "patient 1"], ["patient 3", "patient 0"]]
    pair = read_pair(task.test, 1, (2, 5), "")
    np.testing.assert_allclose(pair.spacing, [6, 3, 2])
    for side, number in ((pair.fixed, 3), (pair.moving, 0)):
        source, labels = (np.asarray(nib.load(scans / f"{what}{number}.nii.gz").dataobj) for what in ("image", "label"))
        for place in [(0, 0, 0), (1, 3, 9), (4, 35, 39)]:
            (voxel,) = np.argwhere(source == side.volume.voxels[place])
            assert side.labels[place] == labels[tuple(voxel)]
            lps = side.volume.affine @ [*place, 1]
            np.testing.assert_allclose(lps, np.array([-1, -1, 1, 1]) * (RAS @ [*voxel, 1]), atol=1e-4)
    assert json.loads((tmp_path / "out" / task.name / "task.json").read_text())["kind"] == "registration"


def test_what_lies_on_two_grids_or_has_no_labels_is_left_out_and_said(tmp_path):
    scans = write(tmp_path / "scans", *(f"image0.nii.gz,image{number}.nii.gz" for number in (1, 2, 3)))
    stretched = RAS * np.array([1, 1, 1.5, 1])
    for what in ("image", "label"):
        voxels = np.asarray(nib.load(scans / f"{what}2.nii.gz").dataobj)
        nib.Nifti1Image(voxels, stretched).to_filename(scans / f"{what}2.nii.gz")
    table = scans / "labels.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if "image3" not in line) + "\n")
    said = []
    pair_tasks.write(scans, tmp_path / "out", said.append)
    assert "image0.nii.gz and image2.nii.gz are left out: 5 x 36 x 40 voxels of 6 x 3 x 2 mm and 5 x 36 x 40" in said[0]
    assert "image3.nii.gz is left out: label_unpaired" in said[1]
    assert said[2:] == ["two-boxes-registration: 1 pairs"]


def test_no_pair_at_all_is_one_line_and_nothing_is_written(tmp_path):
    scans = write(tmp_path / "scans", "image0.nii.gz,nowhere.nii.gz")
    with pytest.raises(UserError, match=r"no pair of pairs.csv has label maps of 'two boxes' on one grid"):
        pair_tasks.write(scans, tmp_path / "out", lambda line: None)
    assert not list(tmp_path.glob("out/*"))
