"""Samples, splits and files of the benchmarks that an ingest cuts."""

import collections
import hashlib
import itertools
import json

import numpy as np
import pytest

from curia2_jax.data.ingest import benchmark
from curia2_jax.data.readers.volume import from_xyz
from curia2_jax.errors import UserError


def labelled(shape=(20, 40, 44)):
    rng = np.random.default_rng(0)
    values = rng.normal(300, 50, shape).astype(np.float32)
    label = np.zeros(shape, np.uint16)
    label[2:18, 5:15, 5:15], label[4:6, 20:36, 20:36], label[10, 1:3, 1:3] = 3, 7, 9  # 9 is too small for a sample
    volume = from_xyz(values.transpose(2, 1, 0), np.diag([-1.0, -1, 4, 1]), modality="MR")
    return volume, label, values


def test_samples_are_spread_along_the_slices_that_show_a_label():
    """At most eight of a label."""
    volume, label, values = labelled()
    found = benchmark.samples(volume, "axial", label)
    assert found["target"].tolist() == [3] * 8 + [7] * 2
    slices = found["slices"][found["of"]]
    # Eight of the sixteen slices 2 to 17, both ends among them, evenly: fifteen steps in seven strides.
    assert slices[:8].tolist() == [2, 4, 6, 8, 11, 13, 15, 17]
    assert slices[8:].tolist() == [4, 5]
    for at, z in enumerate(found["slices"]):
        np.testing.assert_allclose(found["images"][at], values[z], atol=np.ptp(values) / 65535)
        np.testing.assert_array_equal(found["masks"][at], label[z])
    assert found["images"].dtype == np.float32
    assert len(benchmark.samples(volume, "axial", label * 0)["target"]) == 0


def write(tmp_path, patients, names=None, kind="organs (all), made up"):
    volume, label, values = labelled()
    work = tmp_path / "work"
    work.mkdir()
    found = []
    for n, patient in enumerate(patients):
        ids = {"series": f"series{n}", "patient": f"key-{patient}"}
        found += benchmark.set_aside(work, volume, [(kind, label)], ids, "axial", patient)
    tasks = benchmark.write(tmp_path / "bench", work, [benchmark.Sampled(**f) for f in found], names or {})
    return tasks, tmp_path / "bench", label, values


@pytest.mark.parametrize("count", [2, 3, 7])
def test_patients_are_apart_and_both_splits_have_some(tmp_path, count):
    """Those in the lowest third of the hashes are tested, at least one."""
    patients = [f"p{n}" for n in range(count)]
    (task,), folder, _, _ = write(tmp_path, patients)
    assert task["split"] == "patients" and task["patients"] == count and task["name"] == "organs-mr"
    tables = {split: np.load(folder / "organs-mr" / split / "extra_data.npy") for split in ("train", "test")}
    ids = {split: set(table["patient_id"].tolist()) for split, table in tables.items()}
    hashed = {f"key-{p}": hashlib.sha256(f"benchmark {p}".encode()).digest() for p in patients}
    below = {key for key, digest in hashed.items() if digest[:8] < bytes([0x55] * 8)}
    assert ids["test"] == (below or {min(hashed, key=hashed.get)}) and not ids["train"] & ids["test"]
    assert len(ids["train"] | ids["test"]) == count


def test_one_new_patient_moves_nobody(tmp_path):
    """With more and more patients, each stays where it was."""
    sides: dict[str, set[str]] = {}
    for count in (6, 7, 8, 9):
        (tmp_path / str(count)).mkdir()
        _, folder, _, _ = write(tmp_path / str(count), [f"p{n}" for n in range(count)])
        for split in ("train", "test"):
            for key in np.load(folder / "organs-mr" / split / "extra_data.npy")["patient_id"].tolist():
                sides.setdefault(key, set()).add(split)
    assert len(sides) == 9 and all(len(side) == 1 for side in sides.values())


def test_files_follow_the_schema(tmp_path):
    """Of CuriaBench."""
    (task,), folder, label, values = write(tmp_path, ["a", "b"], {"3": "liver", "7": "spleen"})
    assert json.loads((folder / "organs-mr" / "task.json").read_text()) == task
    assert task["classes"] == {"0": "liver", "1": "spleen"}
    assert (task["kind"], task["mask"], task["modality"], task["plane"]) == ("classification", True, "MR", "axial")
    for split in ("train", "test"):
        table = np.load(folder / "organs-mr" / split / "extra_data.npy")
        assert table.dtype.names == ("filename", "target", "series_id", "patient_id", "modality")
        assert table["target"].dtype == np.int64 and len(table) == 10
        files = {path.name for path in (folder / "organs-mr" / split / "images").iterdir()}
        assert files == {f"{name}{end}" for name in table["filename"] for end in (".npy", ".mask.npy")}
        for row in table:
            image = np.load(folder / "organs-mr" / split / "images" / f"{row['filename']}.npy")
            mask = np.load(folder / "organs-mr" / split / "images" / f"{row['filename']}.mask.npy")
            assert image.dtype == np.float32 and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
            z = int(np.abs(values - image).mean(axis=(1, 2)).argmin())
            np.testing.assert_array_equal(mask, label[z] == (3, 7)[row["target"]])


def test_one_patient_is_split_into_blocks_and_says_so(tmp_path):
    """Of neighboring slices."""
    (task,), folder, _, values = write(tmp_path, ["a"])
    assert task["split"] == "blocks of one patient"
    side = collections.defaultdict(set)
    for split in ("train", "test"):
        for row in np.load(folder / "organs-mr" / split / "extra_data.npy"):
            image = np.load(folder / "organs-mr" / split / "images" / f"{row['filename']}.npy")
            side[int(np.abs(values - image).mean(axis=(1, 2)).argmin())].add(split)
    # A slice lies on one side with all its samples, and the twenty slices are cut into eight runs, not one by one.
    order = [side[z] for z in sorted(side)]
    assert all(len(one) == 1 for one in order)
    assert 1 <= sum(a != b for a, b in itertools.pairwise(order)) <= 7


def test_classes_of_one_split_alone_are_left_out(tmp_path):
    """A task with one class left is not written."""
    volume, label, _ = labelled()
    only = np.where(label == 3, label, 0)
    (tmp_path / "work").mkdir()
    found = []
    for n, one in enumerate((label, only)):
        ids = {"series": f"s{n}", "patient": f"p{n}"}
        found += benchmark.set_aside(tmp_path / "work", volume, [("organs", one)], ids, "axial", f"p{n}")
    (task,) = benchmark.write(tmp_path / "b", tmp_path / "work", [benchmark.Sampled(**f) for f in found], {})
    assert task["classes"] == {"0": "label 3"} and not (tmp_path / "b" / "organs-mr").exists()


def test_the_split_does_not_depend_on_keys(tmp_path):
    """Nor on the salt behind them."""
    order = sorted(("x", "y", "z"), key=benchmark.rank)
    _, folder, _, _ = write(tmp_path, ["x", "y", "z"])
    table = np.load(folder / "organs-mr" / "test" / "extra_data.npy")
    assert set(table["patient_id"].tolist()) == {f"key-{order[0]}"}


def test_names(tmp_path):
    """One table for all labels, or one for each set."""
    (tmp_path / "n.json").write_text('{"total": {"1": "spleen"}, "total_mr": {"1": "liver"}}')
    names = benchmark.read_names(str(tmp_path / "n.json"))
    assert benchmark.names_of(names, "TotalSegmentator total_mr") == {"1": "liver"}
    assert benchmark.names_of(names, "TotalSegmentator total, index to name") == {"1": "spleen"}
    assert benchmark.names_of(names, "glioma parts") == {}
    for text in ("[1]", "{"):
        (tmp_path / "n.json").write_text(text)
        with pytest.raises(UserError, match="--label-names"):
            benchmark.read_names(str(tmp_path / "n.json"))
