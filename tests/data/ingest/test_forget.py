"""A patient who withdraws is in no file of a corpus any more, and all others are as they were."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from curia2_jax.curiabench import tasks
from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import audit, forget, journal, plan
from curia2_jax.errors import UserError
from tests.data.ingest.running import quarantine, run, silent
from tests.data.small_corpus import write_small_corpus
from tests.data.small_studies import body, dicom_slices, save_dicom, write_nifti

SHAPE = (10, 40, 48)
PATIENTS = ("Ada", "Ben", "Cyd", "Dee")


def make(folder: pathlib.Path) -> pathlib.Path:
    """Two labelled scans of each of three patients, a DICOM series of the fourth, and a refused file of each."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:8, 8:20, 8:20], mask[2:8, 22:34, 22:34], mask[2:8, 8:20, 26:38] = 1, 2, 3
    for number, name in enumerate(PATIENTS[:3]):
        for scan in range(2):
            path = folder / "in" / name / f"scan{scan}"
            write_nifti(path.with_suffix(".nii.gz"), body(SHAPE, seed=10 * number + scan), spacing=(3.0, 1.0, 1.0))
            write_nifti(folder / "in" / name / f"scan{scan}_seg.nii.gz", mask, spacing=(3.0, 1.0, 1.0))
    slices = dicom_slices(body(SHAPE, seed=90))
    for ds in slices:
        ds.PatientID = "dee"
    save_dicom(folder / "in" / "Dee", slices)
    write_nifti(folder / "in" / "Xtra" / "copy.nii.gz", body(SHAPE, seed=0), spacing=(3.0, 1.0, 1.0))
    return folder / "in"


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MAX_RECORDS", 24)
    run(tmp_path / "out", make(tmp_path), patient_regex="Ada|Ben|Cyd|Xtra")
    (tmp_path / "out" / "preview").mkdir()
    (tmp_path / "out" / "preview" / "page.png").write_text("Ada")
    return tmp_path / "out"


def slices_of(folder: pathlib.Path) -> dict[tuple[str, float], bytes]:
    """Pixels of each slice by series and position."""
    corpus = Corpus(folder)
    series, position = corpus.column("series"), corpus.column("position")
    return {(series[i], float(position[i])): corpus.read(i).tobytes() for i in range(len(corpus))}


def key_of(folder: pathlib.Path, source: str) -> tuple[str, set[str]]:
    """Key of the patient of a source, and the series of the patient."""
    corpus = Corpus(folder)
    with open(folder / "local" / "sources.csv") as file:
        series = {line.split(",")[0] for line in file if f",{source}" in line}
    patients = {p for s, p in zip(corpus.column("series"), corpus.column("patient"), strict=True) if s in series}
    (patient,) = patients
    return patient, series


def holds(folder: pathlib.Path, *words: bytes) -> set[str]:
    """Files of a corpus that have one of the words in their name or content."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder))
        for path in files
        if any(word in path.read_bytes() or word in os.fsencode(path) for word in words)
    }


@pytest.mark.parametrize(("source", "identifier"), [("Ada/", None), ("Ben/", "ben"), ("Dee", "Dee ")])
def test_nothing_of_the_patient_is_left(corpus, source, identifier):
    """By key, and by the identifier of the archive in any case."""
    patient, series = key_of(corpus, source)
    before, contract = slices_of(corpus), Corpus(corpus).contract
    assert holds(corpus, patient.encode())
    forget.forget(corpus, [identifier or patient])
    words = [patient.encode(), *(key.encode() for key in series), source.rstrip("/").encode()]
    assert holds(corpus, *words) <= {"local/options.json"}  # the regular expression of the user
    after = slices_of(corpus)
    assert after == {key: pixels for key, pixels in before.items() if key[0] not in series} and len(after) < len(before)
    assert audit.verify(corpus, 0, silent) == []
    now = Corpus(corpus).contract
    assert (now["revision"], now["replaces"]) == (2, [contract["hash"]]) and now["hash"] != contract["hash"]
    assert (now["patients"], now["series"]) == (contract["patients"] - 1, contract["series"] - len(series))
    assert not (corpus / "work").exists() and not (corpus / "preview").exists()
    assert {path.stem for path in (corpus / "labels").iterdir()} <= {name for name, _ in after}
    source_of = tfds.builder_from_directory(str(corpus)).as_data_source("slices")
    assert len(source_of) == now["slices"] == len(after)


def test_records_are_gone_from_the_shards(corpus):
    """The bytes of each record of the patient, which only they have."""
    patient, series = key_of(corpus, "Cyd/")
    opened = Corpus(corpus)
    folder, mine = opened._parts[0][0], np.isin(opened.column("series"), list(series))
    rows = opened.rows(np.arange(len(opened)))
    records = [bytes(folder._records.read(int(r["shard"]), int(r["offset"]), int(r["span"]))) for r in rows]
    gone = [record for record, is_mine in zip(records, mine, strict=True) if is_mine]
    stay = [record for record, is_mine in zip(records, mine, strict=True) if not is_mine]
    forget.forget(corpus, [patient])
    data = b"".join(path.read_bytes() for path in corpus.glob("*.array_record-*"))
    assert gone and not any(record[-64:] in data for record in gone)
    assert sum(record[-64:] in data for record in stay) > 0.9 * len(stay)  # a block of the file may begin in the others


def test_the_benchmark_goes_on_without_them(corpus):
    """Its tables, images and numbers of classes fit each other."""
    task = corpus / "benchmark" / "segmentation-ct"
    before = {split: np.load(task / split / "extra_data.npy") for split in ("train", "test")}
    trained = before["train"]["patient_id"][0]
    forget.forget(corpus, [str(trained)])
    for split, rows in before.items():
        after = np.load(task / split / "extra_data.npy")
        kept = rows[rows["patient_id"] != trained]
        assert len(after) == len(kept) and set(after["filename"]) == set(kept["filename"])
        files = {path.name.split(".")[0] for path in (task / split / "images").iterdir()}
        assert files == set(after["filename"])
    told = json.loads((task / "task.json").read_text())
    assert told["patients"] == 2 and list(told["classes"]) == ["0", "1", "2"]
    assert len(tasks.read_task(corpus / "benchmark", "segmentation-ct").classes) == 3
    tested = before["test"]["patient_id"][0]
    forget.forget(corpus, [str(tested)])
    assert not task.exists()  # nobody is left to test


@pytest.mark.parametrize("step", range(16))
def test_it_can_be_cut_off_at_any_rename(corpus, monkeypatch, tmp_path, step):
    """And is carried on by the next call, of this or of the ingest, with the same end."""
    shutil.copytree(corpus, tmp_path / "whole", copy_function=os.link)
    patient, _ = key_of(corpus, "Ada/")
    whole = forget.forget(tmp_path / "whole", [patient])
    replace, calls = os.replace, []

    def cut_off(source, target):
        calls.append(target)
        if len(calls) == step + 1:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as cut:
        cut.setattr(os, "replace", cut_off)
        try:
            forget.forget(corpus, [patient])
        except KeyboardInterrupt:
            if not (corpus / "contract.json").exists():
                with pytest.raises(UserError, match="run it again"):
                    Corpus(corpus)
    journal.resume(corpus)
    if Corpus(corpus).contract != whole:  # cut off before the journal: nothing has happened
        assert "revision" not in Corpus(corpus).contract and audit.verify(corpus, 0, silent) == []
        forget.forget(corpus, [patient])
    assert Corpus(corpus).contract == whole and audit.verify(corpus, 0, silent) == []
    assert holds(corpus, patient.encode()) == set()


def test_an_ingest_carries_it_on_and_does_not_bring_them_back(corpus, tmp_path, monkeypatch):
    """The same command finds the corpus as it is."""
    patient, _ = key_of(corpus, "Ada/")
    contract = forget.forget(corpus, [patient])
    assert run(corpus, tmp_path / "in", patient_regex="Ada|Ben|Cyd|Xtra").contract == contract
    assert not any("Ada" in name for name in quarantine(corpus))


def test_a_copy_under_another_name_does_not_bring_them_back(corpus, tmp_path):
    """Known by its voxels; other scans of whoever that is come in."""
    options = {"patient_regex": "Ada|Ben|Cyd|Xtra"}
    patient, _ = key_of(corpus, "Ben/")
    forget.forget(corpus, [patient])
    for path in (tmp_path / "in").rglob("copy.nii.gz"):
        path.unlink()
    save_dicom(tmp_path / "in" / "Eve", dicom_slices(body(SHAPE, seed=70)))
    write_nifti(tmp_path / "in" / "Eve" / "b.nii.gz", body(SHAPE, seed=11), spacing=(3.0, 1.0, 1.0))  # Ben's scan1
    before = slices_of(corpus)
    run(corpus, tmp_path / "in", more=True, **options)
    assert quarantine(corpus)["Eve/b.nii.gz"] == "withdrawn"
    with open(corpus / "local" / "quarantine.csv") as file:
        assert any("the same voxels as a series of a patient who was forgotten" in line for line in file)
    after = slices_of(corpus)
    assert before.items() <= after.items() and len(after) == len(before) + len(body(SHAPE))
    assert holds(corpus, patient.encode(), b"Ben/") == set()


def test_copies_that_were_left_out_are_told(corpus):
    """Of the two with the same voxels one is in the corpus, and the other is named with it."""
    names = {"Ada/scan0.nii.gz", "Xtra/copy.nii.gz"}
    (left_out,) = (name for name, reason in quarantine(corpus).items() if reason == "duplicate")
    (stays,) = names - {left_out}
    assert forget.copies(corpus, [key_of(corpus, stays)[0]]) == [left_out]
    assert forget.copies(corpus, [key_of(corpus, "Ben/")[0]]) == []


def test_whom_nobody_knows_is_told(corpus, tmp_path):
    """And the last patient cannot leave an empty corpus."""
    before = Corpus(corpus).contract
    with pytest.raises(UserError, match=r"--forget Eve: nobody in .*; write a key of the column patient"):
        forget.forget(corpus, ["Eve"])
    everybody = sorted(set(Corpus(corpus).column("patient")))
    with pytest.raises(UserError, match=r"leaves no slice in .*; delete the folder"):
        forget.forget(corpus, everybody)
    with pytest.raises(UserError, match="no corpus"):
        forget.forget(tmp_path / "in", ["Ada"])
    assert Corpus(corpus).contract == before and audit.verify(corpus, 0, silent) == []


def test_a_corpus_without_local_tables(tmp_path):
    """As it is handed on, and as older code made it: what is not noted is found in the records."""
    write_small_corpus(tmp_path / "c", series=6, shards=3)
    forget.forget(tmp_path / "c", ["patient1"])
    corpus = Corpus(tmp_path / "c")
    assert set(corpus.column("patient")) == {"patient0", "patient2"}
    assert len(corpus.contract["shard_lengths"]) == 2 and len(list((tmp_path / "c").glob(layout.ANY_SHARD))) == 2
    assert audit.verify(tmp_path / "c", 0, silent) == []
    forget.forget(tmp_path / "c", ["patient0"])
    assert Corpus(tmp_path / "c").contract["revision"] == 3 and audit.verify(tmp_path / "c", 0, silent) == []
