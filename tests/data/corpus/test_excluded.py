"""Patients of a benchmark are kept out of a stream."""

import numpy as np
import pytest

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.corpus.excluded import patients_of_tests
from curia2_jax.errors import UserError
from tests.data.corpus.test_corpus import write_small_corpus

FIELDS = [("filename", "U8"), ("target", "i8"), ("patient_id", "U32")]


def benchmark(folder, **splits):
    for split, patients in splits.items():
        (folder / "organs" / split).mkdir(parents=True)
        np.save(folder / "organs" / split / "extra_data.npy", np.array([("a", 0, p) for p in patients], FIELDS))
    return folder


def test_test_and_val_patients_are_excluded_and_train_is_not(tmp_path):
    """Of a benchmark, and of a corpus that holds one."""
    benchmark(tmp_path / "corpus" / "benchmark", train=["a", "b"], val=["c"], test=["d", "d"])
    for folder in (tmp_path / "corpus", tmp_path / "corpus" / "benchmark"):
        assert patients_of_tests(str(folder)) == {"c", "d"}
    other = benchmark(tmp_path / "other", test=["e"])
    assert patients_of_tests(f"{tmp_path / 'corpus'}, {other}") == {"c", "d", "e"}
    assert patients_of_tests("") == frozenset()


def test_what_is_no_benchmark_is_one_line(tmp_path):
    """No tasks, or tables without patients: nobody would be kept out."""
    with pytest.raises(UserError, match="holds no tasks"):
        patients_of_tests(str(tmp_path))
    (tmp_path / "organs" / "test").mkdir(parents=True)
    np.save(tmp_path / "organs" / "test" / "extra_data.npy", np.zeros(2, [("filename", "U8")]))
    with pytest.raises(UserError, match="names no patients") as error:
        patients_of_tests(str(tmp_path))
    assert "\n" not in str(error.value)


def test_no_slice_of_an_excluded_patient_is_drawn(tmp_path):
    """With and without other conditions; nobody else is lost."""
    write_small_corpus(tmp_path / "c", series=6, slices=2)
    corpus = Corpus(tmp_path / "c")
    patients = corpus.column("patient")
    out = frozenset(sorted(set(patients.tolist()))[:2])
    for options in ({}, {"where": "modality=CT"}, {"temperature": 2.0}):
        all_drawn, drawn = (
            {patients[i] for i in corpus.sampler(**options, exclude=one).records(np.arange(400), 0).tolist()}
            for one in (frozenset(), out)
        )
        assert drawn == all_drawn - out and drawn
    np.testing.assert_array_equal(corpus.chosen("", "all", 0.0, out), ~np.isin(patients, list(out)))
