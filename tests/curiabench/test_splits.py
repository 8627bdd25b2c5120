"""What could be misread of a task: each read as it is meant, or refused or said in one line."""

import json
import re

import numpy as np
import pytest

from curia2_jax.curiabench import splits, tasks
from curia2_jax.errors import UserError
from tests import small_benchmark

IMAGE = np.arange(12, dtype=np.float32).reshape(3, 4)
TARGET = ("target", "f8")


@pytest.fixture
def task(tmp_path):
    """Four samples of four patients to train on and two to test on, without masks."""
    rows = [(IMAGE + i, None, i % 2, f"p{i}", "CT") for i in range(6)]
    samples = {"train": rows[:4], "test": rows[4:]}
    return small_benchmark.write_task(tmp_path / "organs", samples, {0: "liver", 1: "spleen"}, mask=False)


def describe(task, **facts):
    path = task / "task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def rewrite(task, split, fields, rows):
    """Another table of a split."""
    np.save(task / split / "extra_data.npy", np.array(rows, dtype=fields))


def targets(task, values, field=TARGET, split="train"):
    """Other targets of the four samples of train."""
    fields = [("filename", "U16"), field, ("patient_id", "U8")]
    rewrite(task, split, fields, [(f"sample_{i}", value, f"p{i}") for i, value in enumerate(values)])


def image(task, array, name="sample_0", split="train"):
    np.save(task / split / "images" / f"{name}.npy", array)


def read(task):
    return tasks.read_task(task.parent, "organs")


REFUSED = {
    "fractional class": (lambda t: targets(t, [0, 1, 0.6, 1.6]), "found the target 0.6 in row 2, which is no class"),
    "target that is not there": (lambda t: targets(t, [0, np.nan, 1, 0]), "found the target nan in row 1; leave"),
    "several columns of targets": (
        lambda t: targets(t, [(0, 1)] * 4, ("target", "i8", (2,))),
        "found 2 targets a sample; write one column, a task for each",
    ),
    "as many labels as classes": (
        lambda t: (describe(t, kind="multi-label"), targets(t, [(0, 1, 1)] * 4, ("target", "f8", (3,)))),
        "found 3 targets a sample; write 2, one for each class",
    ),
    "a label of one half": (
        lambda t: (describe(t, kind="multi-label"), targets(t, [(0, 1), (np.nan, 0.5)] * 2, ("target", "f8", (2,)))),
        "found the target 0.5 in row 1; write 0, 1, or NaN if unknown",
    ),
    "name that no class has": (
        lambda t: targets(t, ["liver", "kidney", "liver", "spleen"], ("target", "U8")),
        "found the target 'kidney', and classes of task.json are liver, spleen",
    ),
    "fields of objects": (
        lambda t: np.save(t / "train" / "extra_data.npy", np.array([("a", 0)], [("filename", "O"), ("target", "i8")])),
        "its text fields as U and not as objects",
    ),
    "an affine without volume": (
        lambda t: rewrite(t, "test", [("filename", "U8"), ("target", "i8"), ("affine", "f8", (4, 4))],
                          [("sample_0", 0, np.full((4, 4), np.nan)), ("sample_1", 1, np.diag([1, 0, 1, 1]))]),
        "found an affine without volume in row 1; write NaN where it is not known",
    ),
    "a file named twice": (
        lambda t: rewrite(t, "train", [("filename", "U8"), ("target", "i8")], [("sample_0", 0), ("sample_0", 1)]),
        "found 'sample_0' in filename twice",
    ),
    "unknown modality of samples": (
        lambda t: rewrite(
            t, "train", [("filename", "U8"), ("target", "i8"), ("modality", "U4")],
            [("sample_0", 0, "CT"), ("sample_1", 1, "PET")],
        ),
        "found the modality 'PET'; write CT, MR, or nothing",
    ),
    "unknown modality of a task": (lambda t: describe(t, modality="xray"), "found the modality 'xray'; write CT"),
    "unknown axes": (lambda t: describe(t, axes="WHS"), "found axes 'WHS'; write HWS or SHW"),
    "mask that is neither": (lambda t: describe(t, mask="yes"), "found mask 'yes'; write true or false"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_misread_is_refused_in_one_line(task, case):
    """The file, what was found in it, and what to write."""
    spoil, message = REFUSED[case]
    spoil(task)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read(task)
    assert "\n" not in str(error.value) and str(task) in str(error.value)


IMAGES = {
    "placeholder of a lost file": (lambda t: image(t, np.zeros((1, 1))), "found shape (1, 1), which stands for a lost"),
    "slices first": (lambda t: image(t, np.zeros((5, 64, 48))), 'slices seem to stand first; write "axes": "SHW"'),
    "another format": (
        lambda t: [(t / "train/images/sample_0.npy").rename(t / "train/images/sample_0.png")],
        "not found, but sample_0.png; images are read as .npy only",
    ),
    "no mask": (lambda t: describe(t, mask=True), "sample_0.mask.npy: not found, and task.json says"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_an_image_that_would_be_misread_is_refused_in_one_line(task, case):
    """When it is read: tables are read first, and images are many."""
    spoil, message = IMAGES[case]
    spoil(task)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        splits.read_sample(read(task).train, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("axes", "moved"), [("SHW", True), ("HWS", False)])
def test_a_volume_is_read_as_its_axes_say(task, axes, moved):
    """Slices first are moved last, with their mask; said to be last, they stay."""
    volume = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    image(task, volume)
    np.save(task / "train" / "images" / "sample_0.mask.npy", volume > 100)
    describe(task, axes=axes, mask=True)
    voxels, mask = splits.read_sample(read(task).train, 0)
    expected = volume.transpose(1, 2, 0) if moved else volume
    np.testing.assert_array_equal(voxels, expected)
    np.testing.assert_array_equal(mask, expected > 100)


def test_slices_last_need_not_be_said(task):
    """The layout of CuriaBench, also where two sides are equal."""
    for shape in ((6, 7, 5), (5, 7, 5), (5, 5, 5)):
        image(task, np.zeros(shape, np.float32))
        assert splits.read_sample(read(task).train, 0)[0].shape == shape


def test_targets_are_numbers_or_names_of_classes(task):
    """Whole numbers of any dtype, and texts by task.json."""
    targets(task, [0.0, 1.0, 1.0, 0.0])
    assert read(task).train.targets.tolist() == [0, 1, 1, 0]
    targets(task, ["spleen", "liver", "liver", "spleen"], ("target", "S8"))
    assert read(task).train.targets.tolist() == [1, 0, 0, 1]


def test_modalities_are_read_whatever_their_case(task):
    """ct is CT, so air is clipped; MRI is MR."""
    fields = [("filename", "U8"), ("target", "i8"), ("modality", "U4")]
    rows = [("sample_0", 0, "ct"), ("sample_1", 1, " Mri"), ("sample_2", 1, "")]
    rewrite(task, "train", fields, rows)
    assert read(task).train.modalities.tolist() == ["CT", "MR", ""]


def test_a_validation_split_is_read_and_its_patients_are_its_own(task):
    """To choose on; a patient of it in train or test is refused."""
    assert read(task).val is None and list(read(task).splits) == ["train", "test"]
    (task / "val" / "images").mkdir(parents=True)
    for i in range(2):
        image(task, IMAGE + 10 + i, f"sample_{i}", "val")
    fields = [("filename", "U16"), ("target", "i8"), ("patient_id", "U8")]
    rewrite(task, "val", fields, [("sample_0", 1, "q0"), ("sample_1", 0, "q1")])
    found = read(task)
    assert list(found.splits) == ["train", "val", "test"] and found.val.targets.tolist() == [1, 0]
    np.testing.assert_array_equal(splits.read_sample(found.val, 1)[0], IMAGE + 11)
    for other, patient in (("train", "p1"), ("test", "p5")):
        rewrite(task, "val", fields, [("sample_0", 1, "q0"), ("sample_1", 0, patient)])
        with pytest.raises(UserError, match="found 1 patients in both") as error:
            read(task)
        assert other in str(error.value) and "val" in str(error.value)


def test_file_names_that_recur_over_splits_are_no_patients(task):
    """Numbering that starts anew in each split is no overlap; that patients are unknown is said."""
    fields = [("filename", "U16"), ("target", "i8")]
    for split, count in (("train", 4), ("test", 2)):
        rewrite(task, split, fields, [(f"sample_{i}", i % 2) for i in range(count)])
    found = read(task)
    assert not set(found.train.patients) & set(found.test.patients)
    assert [len(set(split.patients)) for split in (found.train, found.test)] == [4, 2]
    assert len(found.warnings) == 2
    assert "no patient_id: every filename is taken for a patient of its own" in found.warnings[0]


def test_what_is_odd_but_meant_is_said(task):
    """Masks that are not to be used, and a class that no head can learn."""
    assert read(task).warnings == ()
    np.save(task / "test" / "images" / "sample_0.mask.npy", IMAGE > 3)
    describe(task, classes={"0": "liver", "1": "spleen", "2": "kidney"})
    targets(task, [1, 2], ("target", "i8"), "test")
    table = np.load(task / "test" / "extra_data.npy")
    table["patient_id"] = ["p8", "p9"]
    np.save(task / "test" / "extra_data.npy", table)
    masks, strangers = read(task).warnings
    assert masks == f"{task / 'test'}: there are masks, which task.json says not to use (mask: false)"
    assert strangers == "organs: kidney: in test and not in train, so its recall is 0 and lowers the mean over classes"
