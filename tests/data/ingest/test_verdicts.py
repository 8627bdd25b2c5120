"""Real and hostile scans: each file alone against the table of verdicts, and an archive of them."""

import csv
import os
import pathlib

import numpy as np
import pytest

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import audit
from curia2_jax.data.readers.volume import REASONS
from curia2_jax.errors import UserError
from tests.data.ingest.running import corrections, pixels_of, quarantine, run, silent

ROOT = pathlib.Path(__file__).resolve().parents[3]


def verdicts() -> list[dict]:
    """Rows of the table of hostile files; one empty row where it is not there, so that its absence shows as a skip."""
    path = pathlib.Path(os.environ.get("CURIA_SHARED_DATA", ROOT.parent / "shared" / "data")) / "verdicts.csv"
    if not path.exists():
        return [{"path": "", "verdict": "any", "reason": ""}]
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", verdicts(), ids=lambda row: row["path"])
def test_verdict_on_each_file_alone(shared_data, tmp_path, row):
    """Accepted, or refused for the reason of the table."""
    try:
        summary = run(tmp_path / "c", shared_data / row["path"])
        reason = ""
        assert summary.contract["series"] == 1 and summary.contract["slices"] == len(Corpus(tmp_path / "c"))
    except UserError:
        (reason,) = quarantine(tmp_path / "c").values()
        assert not (tmp_path / "c" / "contract.json").exists() and reason in REASONS
    if row["verdict"] != "any":
        assert (("refuse" if reason else "accept"), reason) == (row["verdict"], row["reason"])


def test_orientations_and_codings_give_the_same_slices(shared_data, tmp_path):
    """Of one volume, to the number."""
    weird, zoo = shared_data / "weird", shared_data / "dicom" / "zoo_pydicom"
    groups = {
        weird / "ras.nii.gz": [weird / f"orient_{o}.nii.gz" for o in ("LPS", "LAS", "PIR", "SAL")]
        + [
            weird / f
            for f in ("float64.nii.gz", "bigendian.nii", "pair.img", "nifti2.nii.gz", "fourd_singleton.nii.gz")
        ],
        zoo / "MR_small.dcm": [
            zoo / f"MR_small_{k}.dcm"
            for k in ("RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless")
        ],
    }
    for first, others in groups.items():
        run(tmp_path / first.name, first)
        expected = pixels_of(Corpus(tmp_path / first.name))
        for other in others:
            run(tmp_path / other.name, other)
            found = pixels_of(Corpus(tmp_path / other.name))
            assert len(found) == len(expected)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)


def test_what_the_notes_of_the_verdicts_ask_for(shared_data, tmp_path):
    """What is corrected is listed."""
    weird = shared_data / "weird"
    for name, what in (
        ("uint16_plus1024.nii.gz", "ct_offset"),
        ("nan_inf.nii.gz", "non_finite"),
        ("fourd.nii.gz", "frame"),
        ("oblique18.nii.gz", "oblique"),
    ):
        run(tmp_path / name, weird / name)
        assert (name, what) in corrections(tmp_path / name)
    hu, unsigned = (pixels_of(Corpus(tmp_path / n)) for n in ("oblique18.nii.gz", "uint16_plus1024.nii.gz"))
    for a, b in zip(hu, unsigned, strict=True):
        np.testing.assert_array_equal(np.maximum(a, -1024), b)
    assert Corpus(tmp_path / "oblique18.nii.gz").column("obliquity")[0] == pytest.approx(18, abs=0.01)
    run(tmp_path / "a", weird / "anisotropic.nii.gz", planes=("axial", "coronal", "sagittal"))
    assert set(Corpus(tmp_path / "a").column("plane")) == {"axial"}
    run(tmp_path / "o", weird / "no_affine.nii.gz", orientation="RAS")
    np.testing.assert_array_equal(pixels_of(Corpus(tmp_path / "o"))[3], hu[3])
    assert run(tmp_path / "f", weird / "fourd.nii.gz", every_frame=True).contract["series"] == 3


@pytest.fixture(scope="module")
def archive(shared_data, tmp_path_factory):
    """The labelled core of the real scans as one archive."""
    folder = tmp_path_factory.mktemp("archive")
    for name in ("ct/abdomen_ts_sm", "ct/abdomen_ts_sm_seg", "ct/abdomen_pelvis_ts_3mm", "ct/abdomen_pelvis_ts_3mm_seg",
                 "ct/abdomen_ts_512", "mr/cord_t1", "mr/cord_t1_seg", "mr/glioma_a_t1", "mr/glioma_a_t2",
                 "mr/glioma_a_t1c", "mr/glioma_a_flair", "mr/glioma_a_seg"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.nii.gz").symlink_to(shared_data / f"{name}.nii.gz")
    (folder / "dicom").mkdir()
    (folder / "dicom" / "ct_abdomen_ts_j2k").mkdir()
    for path in (shared_data / "dicom" / "ct_abdomen_ts_j2k").iterdir():
        (folder / "dicom" / "ct_abdomen_ts_j2k" / path.name).symlink_to(path)
    (folder / "dicom" / "ct_abdomen_ts_j2k_seg.nii.gz").symlink_to(
        shared_data / "dicom" / "ct_abdomen_ts_j2k_seg.nii.gz"
    )
    output = tmp_path_factory.mktemp("corpus") / "c"
    names = str(shared_data / "totalsegmentator_labels.json")
    return output, run(output, folder, workers=2, patient_regex="glioma_a", label_names=names)


def test_an_archive_of_real_scans(archive):
    """Label maps, a duplicate and patients by a regular expression."""
    output, summary = archive
    corpus = Corpus(output)
    assert summary.refused == {"duplicate": 1}
    # The labelled copy of the two equal series wins, though its name comes later.
    assert quarantine(output)["ct/abdomen_ts_512.nii.gz"] == "duplicate"
    with open(output / "local" / "sources.csv", newline="") as file:
        source = {row["series"]: row["file"] for row in csv.DictReader(file)}
    assert len(source) == 8 == summary.contract["series"]
    assert not any("seg" in name for name in source.values())
    series, patient = corpus.column("series"), corpus.column("patient")
    glioma = {p for s, p in zip(series, patient, strict=True) if "glioma" in source[s]}
    assert len(glioma) == 1 and summary.contract["patients"] == 5
    assert audit.verify(output, 0, silent) == []


def test_the_index_names_nobody_and_no_path(archive, shared_data):
    """No public file has a word of the source in it."""
    output, _ = archive
    public = [path for path in output.rglob("*") if path.is_file() and "local" not in path.parts]
    for path in public:
        data = path.read_bytes()
        for word in (b"glioma", b"abdomen", b"cord_t1", b"1.3.12.2.1107", bytes(shared_data), bytes(output.parent)):
            assert word not in data or path.name == "task.json", (path, word)


def test_benchmark_of_the_archive(archive):
    """Its samples belong to series of the corpus; the four channels of the glioma share their label map."""
    output, summary = archive
    names = {task["name"]: task for task in summary.tasks}
    assert "segmentation-ct" in names and names["segmentation-ct"]["split"] == "patients"
    corpus = Corpus(output)
    label = set(corpus.column("label").tolist()) - {""}
    assert len(label) == 8 and {str(path.relative_to(output)) for path in (output / "labels").iterdir()} == label
    table = np.load(output / "benchmark" / "segmentation-ct" / "train" / "extra_data.npy")
    assert set(table["series_id"]) <= set(corpus.column("series"))
