"""Published tasks, written by pyarrow as `datasets` and the hub write them, unpacked and read."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from curia2_jax.curiabench import published, splits, tasks
from curia2_jax.errors import UserError


def image(seed, shape=(6, 5)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mask(shape=(6, 5)):
    found = np.zeros(shape, np.uint16)
    found[2:4, 1:3] = 3
    return found


def table(rows, image_type=None, **columns):
    """`rows`: (image, mask or None, target, file name)."""
    images, masks, targets, names = zip(*rows, strict=True)
    nested = lambda arrays: [None if one is None else one.tolist() for one in arrays]  # noqa: E731
    found = {
        "image": pa.array(nested(images), image_type),
        "mask": pa.array(nested(masks)),
        "target": pa.array(list(targets)),
        "filename": pa.array(list(names)),
    }
    return pa.table(found | columns)


def write(folder, name, parts, as_arrow=False):
    """`parts`: {split: table}; two files a split where it has rows for both."""
    for split, found in parts.items():
        half = (len(found) + 1) // 2
        for number, part in enumerate((found.slice(0, half), found.slice(half))):
            if as_arrow:
                path = folder / name / split / f"data-{number:05d}-of-00002.arrow"
                path.parent.mkdir(parents=True, exist_ok=True)
                with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as stream:
                    stream.write_table(part, max_chunksize=2)
            else:
                path = folder / name / f"{split}-{number:05d}-of-00002.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                parquet.write_table(part, path)
    return folder


def unpacked(tmp_path, name):
    said = []
    folder = published.unpack(tmp_path, [name], tmp_path / "out", said.append)
    return tasks.read_task(folder, name), said


@pytest.mark.parametrize("as_arrow", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 7, 3)])
def test_pixels_masks_and_targets_are_those_that_were_written(tmp_path, as_arrow, shape):
    """Slices and volumes, val by another word, names that recur over splits, patients and series by their columns."""
    parts = {}
    for number, split in enumerate(("train", "validation", "test")):
        rows = [(image(10 * number + i, shape), mask(shape), float(i % 2), f"{i}.npy") for i in range(4)]
        parts[split] = table(rows, series_id=pa.array([f"{split} {i // 2}" for i in range(4)]))
    write(tmp_path, "kits", parts, as_arrow)
    assert published.names(tmp_path) == ["kits"]
    task, said = unpacked(tmp_path, "kits")
    assert (task.kind.name, task.classes, said) == ("classification", {0: "0", 1: "1"}, [])
    assert task.test.modalities.tolist() == ["CT"] * 4 and task.val is not None
    for number, split in enumerate((task.train, task.val, task.test)):
        assert split.targets.tolist() == [0, 1, 0, 1] and len(set(split.patients)) == 2
        for i in range(4):
            pixels, under = splits.read_sample(split, i)
            np.testing.assert_array_equal(pixels, image(10 * number + i, shape))
            np.testing.assert_array_equal(under, mask(shape) > 0)


def test_rows_that_are_no_samples_are_left_out_and_listed(tmp_path):
    good = [(image(i), mask(), i % 2, f"{i}") for i in range(4)]
    bad = [
        (np.zeros((1, 1), np.float32), mask(), 0, "lost"),
        (image(8), None, 1, "no mask"),
        (image(9), mask(), None, "no target"),
        (image(9), 0 * mask(), 1, "empty"),
    ]
    write(tmp_path, "luna16", {"train": table(good + bad), "test": table(good)})
    task, said = unpacked(tmp_path, "luna16")
    assert len(task.train.images) == len(task.test.images) == 4
    listed = list(csv.DictReader((tmp_path / "out" / "luna16" / "left_out.csv").read_text().splitlines()))
    reasons = ["the image is 1 x 1 and stands for a lost file", "no mask", "no target", "an empty mask"]
    assert [(one["split"], one["row"], one["reason"]) for one in listed] == [
        ("train", str(4 + number), reason) for number, reason in enumerate(reasons)
    ]
    assert said == ["luna16: 4 rows are left out, left_out.csv of the unpacked task says why"]
    assert any("4 rows were left out" in one for one in task.warnings)


def plain(targets):
    return table([(image(i), None, target, str(i)) for i, target in enumerate(targets)])


@pytest.mark.parametrize(
    ("name", "train", "kind", "classes", "targets"),
    [
        ("mine", [0, 2, 1, 2], "classification", {0: "0", 1: "1", 2: "2"}, [0, 2, 1, 2]),
        ("mine", ["benign", "malignant", "benign", "other"], "classification",
         {0: "benign", 1: "malignant", 2: "other"}, [0, 1, 0, 2]),
        ("ixi", [61.0, 33.0, 47.5, 20.0], "regression", {}, [61, 33, 47.5, 20]),
        ("mine", [61.25, 33.0, 47.5, 20.0], "regression", {}, [61.25, 33, 47.5, 20]),
        ("covidx-ct", [0, 1, 0, 1], "classification", {0: "0", 1: "1", 2: "2"}, [0, 1, 0, 1]),
        ("mine", [[0.0, 1.0], [1.0, None], [0.0, 0.0], [1.0, 1.0]], "multi-label", {0: "0", 1: "1"},
         [[0, 1], [1, np.nan], [0, 0], [1, 1]]),
    ],
)  # fmt: skip
def test_what_is_not_said_is_known_or_taken_from_the_targets_and_said(tmp_path, name, train, kind, classes, targets):
    write(tmp_path, name, {"train": plain(train), "test": plain(train)})
    task, said = unpacked(tmp_path, name)
    assert (task.kind.name, task.classes) == (kind, classes) and not task.train.masked
    np.testing.assert_array_equal(task.train.targets, np.array(targets, float))
    guessed = [f"mine: taken for {kind} by its targets; write {tmp_path / 'mine' / 'task.json'} if that is wrong"]
    assert said == (guessed if name == "mine" else [])


def test_several_columns_of_targets_are_several_labels(tmp_path):
    found = plain([0] * 4).drop_columns(["target"])
    found = found.append_column("target_b", pa.array([0, 1, None, 1])).append_column("target_a", pa.array([1, 1, 0, 0]))
    write(tmp_path, "mine", {"train": found, "test": found})
    task, _ = unpacked(tmp_path, "mine")
    np.testing.assert_array_equal(task.train.targets, [[1, 0], [1, 1], [0, np.nan], [0, 1]])


def test_names_of_classes_that_datasets_keeps_and_a_task_json_beside_the_files_are_used(tmp_path):
    features = {"info": {"features": {"target": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    found = plain([0, 1, 0, 1]).replace_schema_metadata({"huggingface": json.dumps(features)})
    write(tmp_path, "mine", {"train": found, "test": found})
    assert unpacked(tmp_path, "mine")[0].classes == {0: "no", 1: "yes"}
    told = {"kind": "classification", "mask": False, "modality": "MR", "classes": {"0": "a", "1": "b"}}
    (tmp_path / "mine" / "task.json").write_text(json.dumps(told))
    task, said = unpacked(tmp_path, "mine")
    assert task.classes == {0: "a", 1: "b"} and set(task.test.modalities) == {"MR"} and said == []


REFUSED = {
    "PNG": (
        lambda: pa.table({"image": pa.array([{"bytes": b"x", "path": "a.png"}]), "target": [0]}),
        "not PNG or blosc2",
    ),
    "no target": (lambda: pa.table({"image": pa.array([[[1.0]]]), "label": [0]}), "a task needs image and target"),
    "ragged": (
        lambda: pa.table({"image": pa.array([[[1.0, 2.0], [3.0]]]), "target": [0]}),
        "found rows of 1 and 2 numbers in one image",
    ),
    "nothing left": (lambda: pa.table({"image": pa.array([[[1.0]]]), "target": [0]}), "found no sample in test"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_at_fault_is_one_line(tmp_path, case):
    found, words = REFUSED[case][0](), REFUSED[case][1]
    write(tmp_path, "mine", {"train": found, "test": found})
    with pytest.raises(UserError, match=words):
        published.unpack(tmp_path, ["mine"], tmp_path / "out")
    assert not (tmp_path / "out" / "mine").exists()


def test_a_damaged_file_and_a_task_that_is_not_there_are_one_line(tmp_path):
    write(tmp_path, "mine", {"train": plain([0, 1]), "test": plain([0, 1])})
    with pytest.raises(UserError, match="found 'yours', which is not published"):
        published.unpack(tmp_path, ["yours"], tmp_path / "out")
    path = tmp_path / "mine" / "train-00000-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        UserError, match=r"train-00000-of-00002.parquet: cannot be read \(.*\); download the file again"
    ):
        published.unpack(tmp_path, ["mine"], tmp_path / "out")
