"""Tasks on disk: what is read, and how a spoilt file is named."""

import json
import re

import numpy as np
import pytest

from curia2_jax.curiabench import splits, tasks
from curia2_jax.data.ingest import benchmark, benchmark_schema
from curia2_jax.data.readers.volume import from_xyz
from curia2_jax.errors import UserError
from tests import small_benchmark

IMAGE = np.arange(12, dtype=np.float32).reshape(3, 4)
MASK = IMAGE > 5


@pytest.fixture
def task(tmp_path):
    train = [(IMAGE + i, MASK, i % 2, f"p{i}", "CT") for i in range(4)]
    test = [(IMAGE, MASK, 1, "p9", "CT")]
    return small_benchmark.write_task(tmp_path / "organs", {"train": train, "test": test}, {0: "liver", 1: "spleen"})


def edit(task, change):
    path = task / "task.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def retable(task, split, **columns):
    path = task / split / "extra_data.npy"
    table = np.load(path)
    for name, values in columns.items():
        table[name] = values
    np.save(path, table)


def test_a_task_and_its_samples_are_read_as_written(task):
    """Tables, classes, images and masks come back as the files hold them."""
    assert tasks.task_names(task.parent) == ["organs"]
    read = tasks.read_task(task.parent, "organs")
    assert read.classes == {0: "liver", 1: "spleen"}
    assert read.train.targets.tolist() == [0, 1, 0, 1]
    assert read.train.patients.tolist() == ["p0", "p1", "p2", "p3"]
    assert set(read.train.modalities) == {"CT"}
    image, mask = splits.read_sample(read.train, 2)
    np.testing.assert_array_equal(image, IMAGE + 2)
    np.testing.assert_array_equal(mask, MASK)
    assert image.dtype == np.float32
    assert mask.dtype == bool


def test_a_table_of_curiabench_without_patients_is_grouped_by_series_and_may_name_the_suffix(task):
    """Tables of others: no patients, no modality, file names with their suffix."""
    for split, n in (("train", 4), ("test", 1)):
        rows = [(f"sample_{i}.npy", i % 2, f"{split} series {i // 2}") for i in range(n)]
        table = np.array(rows, dtype=[("filename", "U20"), ("target", "i4"), ("series_id", "U20")])
        np.save(task / split / "extra_data.npy", table)
    edit(task, lambda d: d | {"modality": "MR"})
    read = tasks.read_task(task.parent, "organs")
    assert read.train.patients.tolist() == ["train series 0"] * 2 + ["train series 1"] * 2
    assert read.train.modalities.tolist() == ["MR"] * 4
    np.testing.assert_array_equal(splits.read_sample(read.train, 1)[0], IMAGE + 1)


def test_one_patient_may_be_in_both_splits_but_not_one_of_several(task):
    """A patient in both splits is refused unless there is no other."""
    for split in ("train", "test"):
        retable(task, split, patient_id="the only one")
    tasks.read_task(task.parent, "organs")
    retable(task, "train", patient_id=["a", "b", "the only one", "d"])
    with pytest.raises(UserError, match="1 patients in both train and test"):
        tasks.read_task(task.parent, "organs")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: (t / "task.json").write_text("{"), "task.json: found JSONDecodeError"),
        (lambda t: edit(t, lambda d: {"name": "organs"}), "task.json: found KeyError\\('kind'\\)"),
        (
            lambda t: edit(t, lambda d: {k: v for k, v in d.items() if k != "classes"}),
            "targets \\[0, 1\\] in train without",
        ),
        (lambda t: edit(t, lambda d: d | {"kind": "detection"}), "kind 'detection'; only 'classification' or"),
        (lambda t: edit(t, lambda d: d | {"classes": {"0": "liver"}}), "targets \\[1\\] in train without a name"),
        (lambda t: retable(t, "train", target=0), "train: found samples of one class"),
        (lambda t: (t / "test" / "extra_data.npy").unlink(), "test/extra_data.npy: not found"),
        (lambda t: (t / "test" / "extra_data.npy").write_bytes(b"no"), "extra_data.npy: not a NumPy table"),
        (lambda t: np.save(t / "test" / "extra_data.npy", np.zeros(3)), "found no fields; write at least one row"),
        (
            lambda t: np.save(t / "train" / "extra_data.npy", np.load(t / "train" / "extra_data.npy")[:0]),
            "found 0 rows",
        ),
    ],
)
def test_a_spoilt_table_is_named_in_one_line(task, spoil, message):
    """Every mistake in task.json or a table is one line that names the file."""
    spoil(task)
    with pytest.raises(UserError, match=message) as error:
        tasks.read_task(task.parent, "organs")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sample_0.npy", None, "sample_0.npy: not found, but extra_data.npy names it"),
        ("sample_0.npy", np.zeros(4), "sample_0.npy: found shape (4,); write (height, width)"),
        ("sample_0.npy", np.full((3, 4), np.nan), "sample_0.npy: found values that are not finite"),
        ("sample_0.mask.npy", np.zeros((3, 4)), "sample_0.mask.npy: found an empty mask"),
        (
            "sample_0.mask.npy",
            np.ones((4, 3)),
            "sample_0.mask.npy: found shape (4, 3); write that of its image, (3, 4)",
        ),
    ],
)
def test_a_spoilt_sample_is_named(task, name, content, message):
    """A missing, misshapen, non-finite or empty array is named when it is read."""
    path = task / "train" / "images" / name
    path.unlink()
    if content is not None:
        np.save(path, content)
    with pytest.raises(UserError, match=re.escape(message)):
        splits.read_sample(tasks.read_task(task.parent, "organs").train, 0)


def test_an_unknown_task_names_the_known_ones(task):
    """A misspelt name is answered with the names that exist."""
    with pytest.raises(UserError, match=r"found 'organ', .* write one of: organs"):
        tasks.read_task(task.parent, "organ")


def test_benchmark_folder_is_the_folder_itself_or_that_of_a_corpus(task, tmp_path):
    """`--data` may be a benchmark or a corpus, with or without labels."""
    assert tasks.benchmark_folder(task.parent) == task.parent
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    with pytest.raises(UserError, match=r"neither a task .* nor a corpus"):
        tasks.benchmark_folder(corpus)
    (corpus / "contract.json").write_text("{}")
    assert tasks.benchmark_folder(corpus) is None
    (corpus / "benchmark").mkdir()
    task.rename(corpus / "benchmark" / "organs")
    assert tasks.benchmark_folder(corpus) == corpus / "benchmark"


def test_what_ingest_writes_is_what_is_read(tmp_path):
    """Writer and reader share one schema: every row, image, mask and class of a written folder comes back."""
    values = np.random.default_rng(0).integers(-1000, 1000, (12, 40, 44)).astype(np.float32)
    label = np.zeros(values.shape, np.uint16)
    label[2:10, 5:15, 5:25], label[3:9, 20:36, 20:36] = 3, 7
    volume = from_xyz(values.transpose(2, 1, 0), np.diag([-1.0, -1, 4, 1]), modality="MR")
    (tmp_path / "work").mkdir()
    found = []
    for patient in ("a", "b", "c"):
        ids = {"series": f"series of {patient}", "patient": f"key of {patient}"}
        found += benchmark.set_aside(tmp_path / "work", volume, [("organs", label)], ids, "axial", patient)
    sampled = [benchmark.Sampled(**one) for one in found]
    (written,) = benchmark.write(tmp_path / "benchmark", tmp_path / "work", sampled, {"3": "liver", "7": "spleen"})
    (name,) = tasks.task_names(tmp_path / "benchmark")
    read = tasks.read_task(tmp_path / "benchmark", name)
    assert (name, read.kind) == (written["name"], benchmark_schema.CLASSIFICATION)
    assert read.classes == {0: "liver", 1: "spleen"}
    assert len(read.train.images) == 2 * len(read.test.images) == 28
    for split in (read.train, read.test):
        assert {s.removeprefix("series") for s in split.series} == {p.removeprefix("key") for p in split.patients}
        assert set(split.modalities) == {"MR"}
        for index, target in enumerate(split.targets):
            image, mask = splits.read_sample(split, index)
            z = int(np.abs(values - image).sum(axis=(1, 2)).argmin())
            np.testing.assert_array_equal(image, values[z])
            np.testing.assert_array_equal(mask, label[z] == (3, 7)[target])
