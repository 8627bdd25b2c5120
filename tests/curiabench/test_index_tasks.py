"""Tasks of the index: heights and planes of slices beside what was written into the corpus."""

import numpy as np
import pytest

from curia2_jax.curiabench import index_tasks, splits, tasks
from curia2_jax.data.corpus import layout, records
from curia2_jax.data.corpus.corpus import patient_hash
from curia2_jax.data.ingest import parts, publish
from curia2_jax.errors import UserError
from tests.data.small_corpus import row, write_small_corpus

SLICES = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve patients, each with a scan of 20 axial slices and one of 8 coronal ones; values say which slice it is."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / layout.WORK).mkdir()
    with parts.Part(folder / layout.WORK, 0, "htj2k") as part:
        for patient in range(12):
            for plane, slices in (("axial", SLICES), ("coronal", 8)):
                part.begin_series()
                for z in range(slices):
                    pixels = np.full((8, 10), 100 * patient + z, np.int16)
                    about = row(f"{plane}{patient}", f"patient{patient}", "CT", z, pixels, 0.5)
                    part.add(pixels, about | {"plane": plane, "slope": 2.0, "intercept": -3.0})
                part.end_series(f"{plane}{patient}", False, f"/source/{plane}{patient}")
        part.finish({})
    record = {"version": records.CODECS["htj2k"].version, "codec": records.CODECS["htj2k"].name, "pixels": "int16"}
    publish.publish(folder, 1, (), {"code_version": "test", "record": record, "options": {}})
    return folder


def seen(split):
    """(patient, slice, target) of every sample, by the values of its pixels."""
    for index in range(len(split.images)):
        value = (splits.read_sample(split, index)[0][0, 0] + 3) / 2
        yield int(value // 100), int(value % 100), float(split.targets[index])


def test_heights_are_those_of_axial_slices_of_long_scans(corpus, tmp_path):
    assert index_tasks.write(corpus, ["height-ct"], tmp_path) == ["height-ct"]
    task = tasks.read_task(tmp_path, "height-ct")
    assert task.kind.name == "regression" and not task.train.masked
    for name, split in task.splits.items():
        found = list(seen(split))
        assert {patient_hash(f"patient{patient}") < 1 / 3 for patient, *_ in found} == {name == "test"}
        np.testing.assert_allclose([target for *_, target in found], [z / (SLICES - 1) for _, z, _ in found])
        assert len(found) == 16 * len({patient for patient, *_ in found})


def test_planes_are_classes(corpus, tmp_path):
    index_tasks.write(corpus, ["plane-ct"], tmp_path)
    task = tasks.read_task(tmp_path, "plane-ct")
    assert task.classes == {0: "axial", 1: "coronal"}
    for split in task.splits.values():
        patients = len(set(split.patients))
        assert np.bincount(split.targets).tolist() == [16 * patients, 8 * patients]
        coronal = [z for _, z, target in seen(split) if target == 1]
        assert max(coronal) == 7


@pytest.mark.parametrize(
    ("name", "words"), [("plane-ct", "axial slices alone"), ("height-mr", "found 0 train and 0 test")]
)
def test_what_cannot_be_asked_is_one_line(tmp_path, name, words):
    """Scans of six slices, all axial: none is long enough for a height."""
    write_small_corpus(tmp_path / "corpus", series=24, shape=(16, 16))
    with pytest.raises(UserError, match=words):
        index_tasks.write(tmp_path / "corpus", [name], tmp_path / "out")
    assert not (tmp_path / "out").exists()
