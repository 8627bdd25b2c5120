"""The tasks of CuriaBench as data, and folders of it as its uploader reads them."""

import numpy as np
import pytest

from curia2_jax.curiabench import protocol, schema, tasks
from curia2_jax.errors import UserError
from tests import small_benchmark

IMAGE = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_there_are_nineteen_tasks_and_every_folder_is_of_one():
    """Names, kinds, metrics and class counts that can be scored are those of the protocol."""
    found = schema.known_tasks()
    assert len(found) == len({task["name"] for task in found}) == 19
    folders = [folder for task in found for folder in task["folders"]]
    assert len(folders) == len(set(folders))
    uploaded = """luna16 luna16-3D kits emidec-classification-mask anatomy-ct anatomy-ct-hard anatomy-mri
        abdominal-trauma atlas-stroke kneeMRI deep-lesion-site ich neural_foraminal_narrowing spinal_canal_stenosis
        subarticular_stenosis ixi covidx-ct oasis"""
    assert set(uploaded.split()) <= set(folders)
    metrics = {metric.name for scoring in protocol.SCORINGS for metric in scoring.metrics}
    assert {task["primary"] for task in found} <= metrics | {None}
    counts = {name: schema.known_task(name)["classes"] for name in ("anatomy-ct", "anatomy-mri", "kits", "covidx-ct")}
    assert counts == {"anatomy-ct": 54, "anatomy-mri": 56, "kits": 2, "covidx-ct": 3}
    assert {task["kind"] for task in found} == {"classification", "regression", "survival", "registration"}


def published(folder, name, mask):
    """A task as CuriaBench is kept: file names and targets only, no task.json."""
    rows = [(IMAGE + i, IMAGE > 5, i % 2, "p", "CT") for i in range(4)]
    task = small_benchmark.write_task(folder / name, {"train": rows, "test": rows[:2]}, {}, mask)
    (task / "task.json").unlink()
    for split, count in (("train", 4), ("test", 2)):
        fields = [("filename", "U16"), ("target", "f8")]
        np.save(task / split / "extra_data.npy", np.array([(f"sample_{i}", i % 2) for i in range(count)], fields))
    return folder


@pytest.mark.parametrize(("name", "mask"), [("kits", True), ("covidx-ct", False), ("oasis-1-3D", True)])
def test_a_folder_of_curiabench_needs_no_description(tmp_path, name, mask):
    """Kind, classes, modality and masks are known, or looked for where they are not published."""
    folder = published(tmp_path, name, mask)
    assert tasks.benchmark_folder(folder) == folder and tasks.task_names(folder) == [name]
    read = tasks.read_task(folder, name)
    known = schema.known_task(name)
    assert read.classes == {i: str(i) for i in range(known["classes"])}
    assert set(read.train.modalities.tolist()) == {known["modality"]}
    assert read.train.masked == mask and read.train.targets.tolist() == [0, 1, 0, 1]
    assert "every filename is taken for a patient" in read.warnings[0]


def test_another_folder_without_a_description_is_told_what_to_write(tmp_path):
    """One line with the task.json that is missing; so are tasks of kinds that cannot be scored."""
    for name in ("our-lesions", "ixi"):
        published(tmp_path, name, False)
        with pytest.raises(UserError, match=r"is no task of CuriaBench that can be scored; write \{") as error:
            tasks.read_task(tmp_path, name)
        assert "\n" not in str(error.value)
