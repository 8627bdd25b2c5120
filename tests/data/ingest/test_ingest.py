"""Archives of small studies become corpora as the options say."""

import random

import numpy as np
import pytest
import tensorflow_datasets as tfds

from curia2_jax.data.corpus import records
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import audit, parts, plan, publish
from curia2_jax.data.readers.volume import REASONS
from curia2_jax.errors import UserError
from tests.data.ingest.running import fingerprint, quarantine, run, silent
from tests.data.small_studies import body, dicom_slices, save_dicom, write_archive, write_nifti


def test_a_mixed_archive_and_its_quarantine(tmp_path):
    """A second call finds all of it made."""
    write_archive(tmp_path / "in")
    summary = run(tmp_path / "out", tmp_path / "in", patient_regex=r"patient\d")
    assert quarantine(tmp_path / "out") == {
        "again/copy.nii.gz": "duplicate", "cut.nii.gz": "corrupt", "notes.txt": "other_file",
    }  # fmt: skip
    assert (summary.contract["series"], summary.contract["patients"], summary.label_maps) == (7, 4, 1)
    assert summary.contract["slices_by_modality"].keys() == {"CT", "MR"}
    again = run(tmp_path / "out", tmp_path / "in", patient_regex=r"patient\d")
    assert again.made == 0 and again.contract == summary.contract and again.refused == summary.refused
    with pytest.raises(UserError, match=r"made with planes=.'axial'."):
        run(tmp_path / "out", tmp_path / "in", patient_regex=r"patient\d", planes=("coronal",))


def test_workers_and_order_change_nothing(tmp_path, monkeypatch):
    """Nor does the order in which shards are made."""
    write_archive(tmp_path / "in", series=8)
    monkeypatch.setattr(plan, "MAX_RECORDS", 24)  # several shards; the plan is made in this process
    one = run(tmp_path / "one", tmp_path / "in").contract
    two = run(tmp_path / "two", tmp_path / "in", workers=2).contract
    assert len(one["shard_lengths"]) > 3 and max(one["shard_lengths"]) <= 24
    assert one == two and fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")

    def backwards(function, tasks):
        for task in reversed(tasks):
            function(*task)

    assert run(tmp_path / "three", tmp_path / "in", runner=backwards).contract == one


def test_the_codec_changes_the_records_and_nothing_else(tmp_path):
    """Pixels and index are the same."""
    write_archive(tmp_path / "in", series=3)
    outs = {codec: tmp_path / codec for codec in records.CODECS}
    contracts = {codec: run(out, tmp_path / "in", codec=codec).contract for codec, out in outs.items()}
    assert fingerprint(outs["htj2k"]) == fingerprint(outs["zstd"])
    for codec, out in outs.items():
        assert audit.verify(out, 0, silent) == []
        version = {"htj2k": 1, "zstd": 2}[codec]
        assert contracts[codec]["record"]["version"] == version
        for record in tfds.builder_from_directory(out).as_data_source("slices"):
            assert records.checked_head(record["slice"])[0] == version
    differ = {name for name in contracts["zstd"] if contracts["zstd"][name] != contracts["htj2k"][name]}
    assert differ - {"bytes"} == {"record", "content_hash", "hash"}  # files are padded, so small ones may be as long


def test_of_equal_series_a_labelled_one_stays_else_the_first_by_source():
    """In random lists of series."""
    rng = random.Random(0)
    for _ in range(50):
        found = [
            parts.Series(f"{n:04x}", f"{rng.randrange(4):064x}", "", 1, rng.random() < 0.2, f"/{rng.randrange(9)}/{n}")
            for n in range(12)
        ]
        drop = publish.duplicates(iter(found))
        for voxels in {series.voxels for series in found}:
            equal = [series for series in found if series.voxels == voxels]
            best = min(equal, key=lambda series: (not series.labelled, series.source))
            assert {s.key: drop.get(s.key) for s in equal} == {s.key: None if s is best else best.key for s in equal}


def test_the_salt_decides_the_keys(tmp_path):
    """And nothing else."""
    write_nifti(tmp_path / "in" / "a.nii.gz", body((4, 40, 44)))
    (tmp_path / "secret").write_text("x")
    keys = []
    for name, salt in (("a", None), ("b", None), ("c", str(tmp_path / "secret")), ("d", str(tmp_path / "secret"))):
        contract = run(tmp_path / name, tmp_path / "in", salt=salt).contract
        keys.append((Corpus(tmp_path / name).column("patient")[0], contract["hash"]))
    assert keys[0][0] != keys[1][0] and keys[2] == keys[3] and len({h for _, h in keys}) == 1


def test_patients_from_a_csv(tmp_path):
    """Whom it does not name is assumed, with a warning."""
    for name in "abc":
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", body((4, 40, 44), seed=ord(name)))
    (tmp_path / "in" / "p.csv").write_text("file,patient\na.nii.gz,one\nb.nii.gz,one\n")
    summary = run(tmp_path / "out", tmp_path / "in", patients=str(tmp_path / "in" / "p.csv"))
    assert summary.contract["patients"] == 2 and summary.warnings == [
        "1 series name no patient, who was assumed; see --patient-regex"
    ]
    (tmp_path / "in" / "p.csv").write_text("file,patient\na.nii.gz,one\nx/b.nii.gz,one\nc.nii.gz,one\n")
    (_, warning) = run(tmp_path / "next", tmp_path / "in", patients=str(tmp_path / "in" / "p.csv")).warnings
    assert warning == f"--patients names 1 files that are not there, such as {tmp_path / 'in' / 'x' / 'b.nii.gz'}"


def test_every_frame_of_a_dynamic_series(tmp_path):
    """The first alone, unless all are asked for."""
    first, second = (dicom_slices(body((4, 40, 44), n, 0), modality="MR") for n in (1, 2))
    for n, slices in enumerate((first, second)):
        for ds in slices:
            ds.TemporalPositionIdentifier, ds.SeriesInstanceUID = n + 1, first[0].SeriesInstanceUID
            ds.StudyInstanceUID = first[0].StudyInstanceUID
    save_dicom(tmp_path / "in", [*first, *second])
    assert run(tmp_path / "first", tmp_path / "in").contract["series"] == 1
    assert run(tmp_path / "all", tmp_path / "in", every_frame=True).contract["series"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"planes": ("oblique",)}, "--planes"),
        ({"planes": ()}, "--planes"),
        ({"modality": "PET"}, "--modality"),
        ({"orientation": "RAR"}, "--orientation"),
        ({"patient_regex": "("}, "--patient-regex"),
        ({"label_names": "none.json"}, "--label-names"),
        ({"labels": "none.csv"}, "--labels"),
        ({"salt": "none"}, "--salt"),
        ({"patients": "none.csv"}, "--patients"),
        ({"codec": "png"}, "--codec: found png; write htj2k or zstd"),
    ],
)
def test_wrong_options_are_told_in_one_line(tmp_path, options, message):
    """Before anything is made."""
    write_nifti(tmp_path / "in" / "a.nii.gz", body((4, 40, 44)))
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path / "out", tmp_path / "in", **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "contract.json").exists()


def test_folders_that_cannot_be_used_are_told_in_one_line(tmp_path):
    """And are left as they were."""
    write_nifti(tmp_path / "in" / "a.nii.gz", body((4, 40, 44)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for output, source, message in (
        ("out", "none", "does not exist"),
        ("out", "empty", "no file in it"),
        ("full", "in", "is not empty and not a corpus"),
        ("in/out", "in", "lies inside of --input"),
        ("in", "in", "lies inside of --input"),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path / output, tmp_path / source)
    assert run(tmp_path / "out", tmp_path / "in").contract["slices"] == 4  # nothing is in the way afterwards


def test_random_archives_are_answered_file_by_file(tmp_path):
    """Every file has a reason, and no reader a fault."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for n in range(40):
        name = ("a.nii", "b.nii.gz", "c.dcm", "d.nrrd", "e.mha", "f.zip", "g.hdr", "h")[n % 8]
        (tmp_path / "in" / f"{n}{name}").write_bytes(rng.bytes(int(rng.integers(0, 2000))))
    with pytest.raises(UserError, match="no slice was accepted"):
        run(tmp_path / "out", tmp_path / "in")
    reasons = quarantine(tmp_path / "out")
    assert len(reasons) == 40 and set(reasons.values()) <= set(REASONS) - {"reader_failed"}


@pytest.mark.parametrize(("same_study", "patients"), [(True, 1), (False, 2)])
def test_dicom_without_a_patient_is_one_patient_a_study(tmp_path, same_study, patients):
    """Else the series of an anonymous study lie on both sides of a split."""
    studies = [dicom_slices(body(seed=seed)) for seed in (0, 1)]
    for number, datasets in enumerate(studies):
        for ds in datasets:
            del ds.PatientID
            if same_study:
                ds.StudyInstanceUID = studies[0][0].StudyInstanceUID
        save_dicom(tmp_path / "in" / str(number), datasets)
    summary = run(tmp_path / "out", tmp_path / "in")
    assert (summary.contract["series"], summary.contract["patients"]) == (2, patients)
