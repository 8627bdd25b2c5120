"""An archive that has grown gives more shards to the same corpus, and what was there stays."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import audit, forget, plan
from curia2_jax.data.readers import archive
from curia2_jax.errors import UserError
from tests.data.ingest.running import corrections, pixels_of, quarantine, run, silent
from tests.data.small_studies import body, dicom_slices, save_dicom, write_archive, write_nifti

OPTIONS = {"patient_regex": r"patient\d"}


@pytest.fixture
def grown(tmp_path, monkeypatch):
    """(archive, corpus before, files that were there); the archive has grown meanwhile."""
    monkeypatch.setattr(plan, "MAX_RECORDS", 24)
    source, out = tmp_path / "in", tmp_path / "out"
    write_archive(source, series=4)
    (source / "loop").symlink_to(source)
    slices = dicom_slices(body((6, 44, 48), seed=60))
    save_dicom(source / "later", slices[:3], shuffle=False)
    run(out, source, **OPTIONS)
    shutil.copytree(out, tmp_path / "before")
    before = {str(path) for path in source.rglob("*")}
    for ds in slices[3:]:  # more slices of a series that is in the corpus
        save_dicom(source / f"later{ds.InstanceNumber}", [ds])
    write_nifti(source / "patient0" / "new.nii.gz", body((10, 44, 48), seed=70), spacing=(3.0, 1.0, 1.0))
    write_nifti(source / "patient9" / "new.nii.gz", body((10, 44, 48), seed=71), spacing=(3.0, 1.0, 1.0))
    mask = np.zeros((10, 44, 48), np.uint8)
    mask[2:8, 10:20, 10:20] = 1
    write_nifti(source / "patient9" / "new_seg.nii.gz", mask, spacing=(3.0, 1.0, 1.0))
    write_nifti(source / "patient9" / "same.nii.gz", body((10, 40, 48), seed=0), spacing=(3.0, 1.0, 1.0))
    (source / "more.txt").write_text("not an image")
    return source, out, before


def more(out, source, **options):
    return run(out, source, more=True, **OPTIONS | options)


def test_what_is_new_is_added_and_nothing_else_is_read(grown, monkeypatch, tmp_path):
    """Files of before are not looked at, shards keep their bytes, slices their numbers, patients their keys."""
    source, out, before = grown
    looked, look = [], archive.look
    monkeypatch.setattr(archive, "look", lambda file, count: looked.append(file) or look(file, count))
    contract = more(out, source).contract
    assert looked and not before & set(looked)
    old, new = Corpus(tmp_path / "before"), Corpus(out)
    count = len(old.contract["shard_lengths"])
    for shard in range(count):
        was = (tmp_path / "before" / layout.shard(shard, count)).read_bytes()
        assert (out / layout.shard(shard, len(contract["shard_lengths"]))).read_bytes() == was
    for name in ("series", "patient", "study", "position", "label", "shard", "row", "offset"):
        np.testing.assert_array_equal(new.column(name)[: len(old)], old.column(name))
    assert len(new) == len(old) + 20 and contract["series"] == old.contract["series"] + 2
    patients = set(new.column("patient")[len(old) :])
    assert len(patients) == 2 and len(patients & set(old.column("patient"))) == 1
    assert (contract["revision"], contract["replaces"]) == (2, [old.contract["hash"]])
    assert audit.verify(out, 0, silent) == [] and not (out / "work").exists()
    labelled = sorted(set(new.column("label")[len(old) :]) - {""})
    assert len(labelled) == 1 and all((out / label).exists() for label in labelled)
    assert [p.tobytes() for p in pixels_of(new)[: len(old)]] == [p.tobytes() for p in pixels_of(old)]


def test_the_tables_have_what_was_and_what_is_new(grown, tmp_path):
    """And why new files were not taken."""
    source, out, _ = grown
    before, told = quarantine(out), corrections(out)
    summary = more(out, source)
    assert quarantine(out) == before | {
        "patient9/same.nii.gz": "duplicate", "more.txt": "other_file", quarantine_late(out): "late",
    }  # fmt: skip
    assert corrections(out) >= told
    files = [path for path in source.rglob("*") if path.is_file() and not path.is_symlink()]
    assert summary.files == len(files) + 1 and summary.lost["late"]["files"] == 3  # the link was listed as well
    sources = (out / "local" / "sources.csv").read_text()
    assert all(line in sources for line in (tmp_path / "before" / "local" / "sources.csv").read_text().splitlines())
    assert "patient9/new.nii.gz" in sources


def quarantine_late(out: pathlib.Path) -> str:
    (late,) = (file for file, reason in quarantine(out).items() if reason == "late")
    assert late.startswith("later")
    return late


def test_nothing_new_changes_nothing(grown, tmp_path):
    """A second call, and one without the flag, leave the corpus as it is."""
    source, out, _ = grown
    contract, listed = more(out, source).contract, quarantine(out)
    for again in (more(out, source), run(out, source, **OPTIONS)):
        assert again.contract == contract and quarantine(out) == listed
    (source / "text.txt").write_text("x")
    assert more(out, source).contract == contract  # a refused file makes no slice
    assert quarantine(out) == listed | {"text.txt": "other_file"}


@pytest.mark.parametrize("step", range(0, 40, 3))
def test_it_can_be_cut_off_at_any_rename(grown, monkeypatch, tmp_path, step):
    """The next call ends with the same corpus, and lists nothing twice."""
    source, out, _ = grown
    shutil.copytree(out, tmp_path / "whole")
    whole = more(tmp_path / "whole", source).contract
    replace, calls = os.replace, []

    def cut_off(a, b):
        calls.append(b)
        if len(calls) == step + 1:
            raise KeyboardInterrupt
        replace(a, b)

    with monkeypatch.context() as cut:
        cut.setattr(os, "replace", cut_off)
        try:
            more(out, source)
        except KeyboardInterrupt:
            assert len(calls) == step + 1
    assert more(out, source).contract == whole and audit.verify(out, 0, silent) == []
    assert (out / "local" / "quarantine.csv").read_bytes() == (
        tmp_path / "whole" / "local" / "quarantine.csv"
    ).read_bytes()


def test_who_withdrew_does_not_come_back(grown):
    """New files of the patient are listed, old ones are not read."""
    source, out, _ = grown
    corpus = Corpus(out)
    with open(out / "local" / "sources.csv") as file:
        (series, *_) = (line.split(",")[0] for line in file if ",patient0/" in line)
    patient = corpus.column("patient")[list(corpus.column("series")).index(series)]
    forget.forget(out, [str(patient)])
    contract = more(out, source).contract
    assert contract["revision"] == 3 and patient not in set(Corpus(out).column("patient"))
    assert quarantine(out)["patient0/new.nii.gz"] == "withdrawn"
    assert "patient0/scan0" not in (out / "local" / "sources.csv").read_text()
    assert audit.verify(out, 0, silent) == []


def test_workers_and_a_corpus_that_is_not_there_yet(grown, tmp_path):
    """The flag means nothing for a new corpus; with it, shards are made in parallel as ever."""
    source, out, _ = grown
    assert more(tmp_path / "new", source, workers=2).contract["series"] > 0
    assert more(out, source, workers=2).contract["revision"] == 2


def test_what_cannot_be_added_to_is_told(grown):
    """A corpus of other options, or one made by code that did not note its files."""
    source, out, _ = grown
    with pytest.raises(UserError, match="made with codec='htj2k'"):
        more(out, source, codec="zstd")
    (out / "local" / "seen.sqlite").unlink()
    with pytest.raises(UserError, match=r"--append: .* ingest the archive into a new folder"):
        more(out, source)
    assert "revision" not in json.loads((out / "contract.json").read_text())
