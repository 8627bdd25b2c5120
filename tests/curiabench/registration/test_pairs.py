"""Pairs on disk: what is read of them, and every mistake in one line."""

import json
import shutil

import numpy as np
import pytest

from curia2_jax.curiabench import tasks
from curia2_jax.curiabench.registration import pairs
from curia2_jax.errors import UserError
from tests.curiabench.registration import scans


def read(folder, index=0):
    task = tasks.read_task(folder.parent, folder.name)
    return pairs.read_pair(task.test, index, tuple(task.classes), task.landmarks)


def test_a_pair_belongs_to_the_patients_of_both_volumes_and_there_is_nothing_to_learn_from(tmp_path):
    task = tasks.read_task(scans.write(tmp_path / "organs").parent, "organs")
    assert task.test.names.tolist() == ["a0 b0", "a1 b1", "a2 b2", "a0 b1"]
    assert task.test.owners.tolist()[2:] == [["patient 2", "patient 2"], ["patient 0", "patient 1"]]
    assert list(task.splits) == ["test"] and not task.train.images and task.warnings == ()
    assert [len(side.images) for side in task.test.sides] == [4, 4]


@pytest.mark.parametrize("first", [True, False])
def test_volumes_labels_and_landmarks_are_slices_first_whatever_the_file(tmp_path, first):
    """In mm or in voxels, the landmarks are the same."""
    found = []
    for unit in ("voxels", "mm"):
        folder = scans.write(tmp_path / unit, unit)
        inside = np.zeros(scans.SHAPE, bool)
        inside[3, 5:9, 6] = True
        np.save(folder / "test" / "images" / "a0.inside.npy", np.moveaxis(inside, 0, 2))
        if first:
            for path in (folder / "test" / "images").glob("*.npy"):
                if not path.name.endswith(".landmarks.npy"):
                    np.save(path, np.moveaxis(np.load(path), 2, 0))
            told = json.loads((folder / "task.json").read_text())
            (folder / "task.json").write_text(json.dumps(told | {"axes": "SHW"}))
        pair = read(folder)
        np.testing.assert_array_equal(pair.fixed.inside, inside)
        assert pair.moving.inside is None and pair.is_mm
        found.append(pair)
    voxels, organs = scans.body(0)
    np.testing.assert_array_equal(found[0].moving.volume.voxels, voxels)
    np.testing.assert_array_equal(found[0].moving.labels, organs)
    np.testing.assert_allclose(found[0].spacing, scans.SPACING)
    for side in ("fixed", "moving"):
        np.testing.assert_allclose(*(getattr(pair, side).landmarks for pair in found), atol=1e-9)


def _shape(images):
    np.save(images / "b0.npy", np.load(images / "b0.npy")[:, :-1])
    np.save(images / "b0.mask.npy", np.load(images / "b0.mask.npy")[:, :-1])


def _table(images, change):
    path = images.parent / "extra_data.npy"
    table = np.load(path)
    change(table)
    np.save(path, table)


def _facts(images, **what):
    path = images.parents[1] / "task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | what))


def _stretch(table):
    table["affine"][1, :3, :3] *= 1.1


def _flip(table):
    table["affine"][1, :3, 1] *= -1


def _forget(table):
    table["affine"] = np.nan


FAULTS = [
    (_shape, r"a0.npy and b0.npy: found the shapes \(16, 40, 40\) and \(16, 40, 39\)"),
    (lambda images: np.save(images / "a0.npy", np.zeros((40, 40))), r"shape \(40, 40\); registration wants volumes"),
    (lambda images: (images / "b0.mask.npy").unlink(), "b0.mask.npy: not found; write the label map"),
    (lambda images: _facts(images, classes={"3": "liver"}), "found the label 7 without a name"),
    (lambda images: _facts(images, classes={}), "found 0 classes of kind registration"),
    (lambda images: (images / "b0.landmarks.npy").unlink(), "b0.landmarks.npy: not found"),
    (lambda images: np.save(images / "a0.landmarks.npy", np.zeros((3, 3))), "found 3 and 40 landmarks"),
    (lambda images: np.save(images / "a0.landmarks.npy", np.zeros((3, 2))), r"shape \(3, 2\); write \(n, 3\)"),
    (lambda images: np.save(images / "a0.landmarks.npy", np.full((40, 3), np.nan)), "not finite"),
    (lambda images: np.save(images / "a0.inside.npy", np.zeros((40, 40, 16))), "found nothing inside"),
    (lambda images: _facts(images, landmarks="inches"), "found landmarks 'inches'; write voxels or mm"),
    (lambda images: (_facts(images, landmarks="mm"), _table(images, _forget)), "landmarks in mm, and extra_data.npy"),
    (lambda images: _table(images, _stretch), "found voxels of 2 x 1 x 1 and 2.2 x 1.1 x 1.1 mm"),
    (lambda images: _table(images, _flip), "found rows that run in different directions"),
    (lambda images: (images.parent / "pairs.csv").unlink(), "pairs.csv: cannot be read"),
    (lambda images: (images.parent / "pairs.csv").write_text("fixed,moving\n"), "found no pairs"),
    (lambda images: (images.parent / "pairs.csv").write_text("fixed,moving\na0,c9\n"), "found 'c9', which extra_data"),
    (lambda images: (images.parent / "pairs.csv").write_text("fixed,moving\na0,a0\n"), "write two volumes"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return scans.write(tmp_path_factory.mktemp("whole") / "organs", patients=1)


@pytest.mark.parametrize(("fault", "said"), FAULTS)
def test_what_cannot_be_compared_is_one_line(whole, tmp_path, fault, said):
    folder = shutil.copytree(whole, tmp_path / "organs")
    assert read(folder).is_mm
    fault(folder / "test" / "images")
    with pytest.raises(UserError, match=said) as told:
        read(folder)
    assert "\n" not in str(told.value)


def test_without_an_affine_distances_are_in_voxels_and_that_is_said(tmp_path):
    folder = scans.write(tmp_path / "organs", patients=1)
    _table(folder / "test" / "images", _forget)
    pair = read(folder)
    assert not pair.is_mm and pair.spacing.tolist() == [1, 1, 1]
    (warning,) = tasks.read_task(tmp_path, "organs").warnings
    assert "distances of their pairs are in voxels" in warning
