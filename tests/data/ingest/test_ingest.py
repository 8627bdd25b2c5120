import csv
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from curia2_jax import files
from curia2_jax.data import readers
from curia2_jax.data.corpus import records
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import audit, ingest, parts, plan, publish, runners, shard_maker
from curia2_jax.data.readers import nifti
from curia2_jax.data.readers.volume import REASONS
from curia2_jax.errors import UserError
from tests.data.small_studies import body, dicom_slices, save_dicom, write_archive, write_nifti

ROOT = pathlib.Path(__file__).resolve().parents[3]


def silent(stage, done, total, slices):
    pass


def run(output, *inputs, workers=1, runner=None, **options) -> ingest.Summary:
    return ingest.ingest(output, plan.Options(tuple(map(str, inputs)), **options), workers, silent, runner)


def quarantine(output) -> dict[str, str]:
    with open(output / "local" / "quarantine.csv", newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


def corrections(output) -> set[tuple[str, str]]:
    with open(output / "local" / "corrections.csv", newline="") as file:
        return {(row["file"], row["what"]) for row in csv.DictReader(file)}


def pixels_of(corpus: Corpus) -> list[np.ndarray]:
    return [corpus.read(i) for i in range(len(corpus))]


def fingerprint(output: pathlib.Path) -> str:
    """Hash of the sorted records with what the index says of their pixels, without the salted keys."""
    corpus = Corpus(output)
    columns = {
        name: corpus.column(name) for name in ("modality", "plane", "position", "slope", "anatomy_y", "foreground")
    }
    rows = [
        hashlib.sha256(corpus.read(i).tobytes() + repr([columns[n][i] for n in columns]).encode()).hexdigest()
        for i in range(len(corpus))
    ]
    return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()


def verdicts() -> list[dict]:
    """Rows of the table of hostile files; one empty row where it is not there, so that its absence shows as a skip."""
    path = pathlib.Path(os.environ.get("CURIA_SHARED_DATA", ROOT.parent / "shared" / "data")) / "verdicts.csv"
    if not path.exists():
        return [{"path": "", "verdict": "any", "reason": ""}]
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", verdicts(), ids=lambda row: row["path"])
def test_verdict_on_each_file_alone(shared_data, tmp_path, row):
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
    output, summary = archive
    corpus = Corpus(output)
    assert summary.refused == {"duplicate": 1, "label_unpaired": 1}
    assert quarantine(output)["mr/glioma_a_seg.nii.gz"] == "label_unpaired"  # there is no mr/glioma_a.nii.gz
    # The labelled copy of the two equal series wins, though its name comes later.
    assert quarantine(output)["ct/abdomen_ts_512.nii.gz"] == "duplicate"
    with open(output / "local" / "sources.csv", newline="") as file:
        source = {row["series"]: row["file"] for row in csv.DictReader(file)}
    assert len(source) == 8 == summary.contract["series"]
    assert not any("seg" in name for name in source.values())
    series, patient = corpus.column("series"), corpus.column("patient")
    glioma = {p for s, p in zip(series, patient, strict=True) if "glioma" in source[s]}
    assert len(glioma) == 1 and summary.contract["patients"] == 5
    assert audit.verify(output, 1, silent) == []


def test_the_index_names_nobody_and_no_path(archive):
    output, _ = archive
    public = [path for path in output.rglob("*") if path.is_file() and "local" not in path.parts]
    for path in public:
        data = path.read_bytes()
        for word in (b"glioma", b"abdomen", b"cord_t1", b"/work/", b"1.3.12.2.1107", bytes(str(output.parent), "utf8")):
            assert word not in data or path.name == "task.json", (path, word)


def test_benchmark_of_the_archive(archive):
    output, summary = archive
    names = {task["name"]: task for task in summary.tasks}
    assert "segmentation-ct" in names and names["segmentation-ct"]["split"] == "patients"
    corpus = Corpus(output)
    label = set(corpus.column("label").tolist()) - {""}
    assert len(label) == 4 and {str(path.relative_to(output)) for path in (output / "labels").iterdir()} == label
    table = np.load(output / "benchmark" / "segmentation-ct" / "train" / "extra_data.npy")
    assert set(table["series_id"]) <= set(corpus.column("series"))


def test_a_mixed_archive_and_its_quarantine(tmp_path):
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
    write_archive(tmp_path / "in", series=3)
    outs = {codec: tmp_path / codec for codec in records.CODECS}
    contracts = {codec: run(out, tmp_path / "in", codec=codec).contract for codec, out in outs.items()}
    assert fingerprint(outs["htj2k"]) == fingerprint(outs["zstd"])
    for codec, out in outs.items():
        assert audit.verify(out, 1, silent) == []
        version = {"htj2k": 1, "zstd": 2}[codec]
        assert contracts[codec]["record"]["version"] == version
        for record in tfds.builder_from_directory(out).as_data_source("slices"):
            assert records.checked_head(record["slice"])[0] == version
    differ = {name for name in contracts["zstd"] if contracts["zstd"][name] != contracts["htj2k"][name]}
    assert differ - {"bytes"} == {"record", "content_hash", "hash"}  # files are padded, so small ones may be as long


@pytest.mark.parametrize("finished", [False, True])
def test_an_ingest_goes_on_with_the_codec_it_began_with(tmp_path, finished):
    """Which before there was a choice was HTJ2K, without a word about it."""
    write_archive(tmp_path / "in", series=2)
    out = tmp_path / "out"
    if finished:
        run(out, tmp_path / "in")
    else:
        with pytest.raises(UserError, match="carries on"):
            run(out, tmp_path / "in", runner=lambda function, tasks: None)
    with pytest.raises(UserError, match=r"made with codec='htj2k', now 'zstd'; write the same options"):
        run(out, tmp_path / "in", codec="zstd")
    for path in (out / "local" / "options.json", out / "work" / "options.json"):
        if path.exists():
            options = json.loads(path.read_text())
            assert options.pop("codec") == "htj2k"
            path.write_text(json.dumps(options))
    assert run(out, tmp_path / "in").contract["record"]["version"] == 1


def test_of_equal_series_a_labelled_one_stays_else_the_first_by_source():
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
    write_nifti(tmp_path / "in" / "a.nii.gz", body((4, 40, 44)))
    (tmp_path / "secret").write_text("x")
    keys = []
    for name, salt in (("a", None), ("b", None), ("c", str(tmp_path / "secret")), ("d", str(tmp_path / "secret"))):
        contract = run(tmp_path / name, tmp_path / "in", salt=salt).contract
        keys.append((Corpus(tmp_path / name).column("patient")[0], contract["hash"]))
    assert keys[0][0] != keys[1][0] and keys[2] == keys[3] and len({h for _, h in keys}) == 1


def test_patients_from_a_csv(tmp_path):
    for name in "abc":
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", body((4, 40, 44), seed=ord(name)))
    (tmp_path / "in" / "p.csv").write_text("file,patient\na.nii.gz,one\nb.nii.gz,one\n")
    summary = run(tmp_path / "out", tmp_path / "in", patients=str(tmp_path / "in" / "p.csv"))
    assert summary.contract["patients"] == 2 and summary.warnings == [
        "1 series name no patient, who was assumed; see --patient-regex"
    ]


def test_every_frame_of_a_dynamic_series(tmp_path):
    first, second = (dicom_slices(body((4, 40, 44), n, 0), modality="MR") for n in (1, 2))
    for n, slices in enumerate((first, second)):
        for ds in slices:
            ds.TemporalPositionIdentifier, ds.SeriesInstanceUID = n + 1, first[0].SeriesInstanceUID
    save_dicom(tmp_path / "in", [*first, *second])
    assert run(tmp_path / "first", tmp_path / "in").contract["series"] == 1
    assert run(tmp_path / "all", tmp_path / "in", every_frame=True).contract["series"] == 2


def test_a_fault_in_the_middle_of_a_series_leaves_none_of_it(tmp_path, monkeypatch):
    for name in "abc":
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", body((4, 40, 44), seed=ord(name)))
    add, calls = parts.Part.add, []

    def failing(self, pixels, row):
        calls.append(row["position"])
        if len(calls) == 7:
            raise RuntimeError("a fault")
        add(self, pixels, row)

    monkeypatch.setattr(parts.Part, "add", failing)
    contract = run(tmp_path / "out", tmp_path / "in").contract
    assert (contract["series"], contract["slices"]) == (2, 8)
    assert quarantine(tmp_path / "out") == {"b.nii.gz": "reader_failed"}
    assert audit.verify(tmp_path / "out", 1, silent) == []


def kill_self(output, number):
    """make_shard in which one scan takes the process down."""

    def deadly(files, *rest):
        if files[0].name == "b.nii.gz":
            os.kill(os.getpid(), signal.SIGSEGV)
        return nifti.read(files, *rest)

    readers.READERS = tuple(r._replace(read=deadly) if r.format == "nifti" else r for r in readers.READERS)
    return shard_maker.make_shard(output, number)


def test_a_scan_that_ends_the_process_is_left_out(tmp_path, monkeypatch):
    for name in "abc":
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", body((4, 40, 44), seed=ord(name)))
    monkeypatch.setattr(ingest, "make_shard", kill_self)
    contract = run(tmp_path / "out", tmp_path / "in", workers=2).contract
    assert contract["series"] == 2 and quarantine(tmp_path / "out") == {"b.nii.gz": "reader_failed"}


KILLED = """
import pathlib, sys
from curia2_jax.data.ingest import ingest
from curia2_jax.data.ingest import plan
plan.MAX_RECORDS = 24
def silent(*_): pass
if __name__ == "__main__":
    ingest.ingest(pathlib.Path(sys.argv[2]), plan.Options((sys.argv[1],)), int(sys.argv[3]), silent)
"""


def kill_and_finish(tmp_path: pathlib.Path, kills: int, workers: int, seed: int) -> None:
    rng = random.Random(seed)
    write_archive(tmp_path / "in", series=10, slices=12)
    (tmp_path / "run.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "in")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole"), str(workers)], check=True, env=environment, cwd=ROOT)
    length, whole = time.monotonic() - start, fingerprint(tmp_path / "whole")
    killed, folders = 0, 0
    while killed < kills:
        output, finished = tmp_path / f"out{folders}", {}
        folders += 1
        while True:  # until it comes through, or was killed often enough
            process = subprocess.Popen(
                [*command, str(output), str(workers)], env=environment, cwd=ROOT, start_new_session=True
            )
            try:
                process.wait(rng.uniform(0.3, 1.1) * length if killed < kills else None)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
                now = {p.name: p.stat().st_mtime_ns for p in (output / "work").glob("shard-*.json")}
                assert finished.items() <= now.items() or (output / "contract.json").exists()  # nothing is made twice
                finished = now
            else:
                assert process.returncode == 0
                break
        assert fingerprint(output) == whole
        assert Corpus(output).contract == Corpus(tmp_path / "whole").contract
        assert audit.verify(output, 1, silent) == [] and not (output / "work").exists()
        assert quarantine(output) == quarantine(tmp_path / "whole")


def test_killed_at_random_moments_it_ends_with_the_same_corpus(tmp_path):
    kill_and_finish(tmp_path, kills=3, workers=1, seed=0)


@pytest.mark.soak
def test_killed_twenty_times_it_ends_with_the_same_corpus(tmp_path):
    kill_and_finish(tmp_path, kills=20, workers=2, seed=1)


@pytest.mark.parametrize("step", range(12))
def test_publishing_can_be_cut_off_at_any_rename(tmp_path, monkeypatch, step):
    write_archive(tmp_path / "in", series=4)
    monkeypatch.setattr(plan, "MAX_RECORDS", 24)
    whole = run(tmp_path / "whole", tmp_path / "in").contract
    replace, calls = os.replace, []

    def cut_off(source, target):
        if "work" not in pathlib.Path(target).parts:
            calls.append(target)
            if len(calls) == step + 1:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut_off)
    try:
        run(tmp_path / "out", tmp_path / "in")
    except KeyboardInterrupt:
        assert not (tmp_path / "out" / "contract.json").exists()
    monkeypatch.setattr(os, "replace", replace)
    assert run(tmp_path / "out", tmp_path / "in").contract == whole
    assert audit.verify(tmp_path / "out", 1, silent) == []


def test_beam_makes_the_same_corpus(tmp_path, monkeypatch):
    """Every file of it, when the keys are salted with the same secret."""
    pytest.importorskip("apache_beam", reason="extra `beam` is not installed")
    write_archive(tmp_path / "in", series=8)
    (tmp_path / "salt").write_text("secret")
    monkeypatch.setattr(plan, "MAX_RECORDS", 24)  # several shards; the plan is made in this process
    monkeypatch.chdir(tmp_path)
    same = {"salt": "salt", "planes": ("axial", "coronal")}
    local = run(pathlib.Path("local"), "in", workers=2, **same)
    beam = run(pathlib.Path("beam"), "in", runner=runners.beam([]), **same)
    assert beam.contract == local.contract and len(local.contract["shard_lengths"]) > 3
    assert beam.made == local.made == local.contract["slices"] + 10  # one series occurs twice
    assert fingerprint(tmp_path / "beam") == fingerprint(tmp_path / "local")
    files = {path.relative_to("local") for path in pathlib.Path("local").rglob("*") if path.is_file()}
    assert files == {path.relative_to("beam") for path in pathlib.Path("beam").rglob("*") if path.is_file()}
    for file in sorted(files - {pathlib.Path("local/summary.json")}):  # which holds times
        assert pathlib.Path("local", file).read_bytes() == pathlib.Path("beam", file).read_bytes(), file


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runner=NoRunner"], "NoRunner"),
        (["--runner=none.such.Runner"], "none"),
        (["runner=DirectRunner"], "found 'runner=DirectRunner'"),
        (["--direct_num_worker=2"], "found --direct_num_worker;"),
        (["--direct_num_workers=two"], "invalid int value: 'two'"),
        (["--runner=DataflowRunner"], "project"),
    ],
)
def test_wrong_beam_options_are_told_in_one_line(options, message):
    pytest.importorskip("apache_beam", reason="extra `beam` is not installed")
    with pytest.raises(UserError, match=message) as error:
        runners.beam(options)
    assert "\n" not in str(error.value) and str(error.value).startswith("--beam-options: ")


def test_shards_that_a_runner_made_elsewhere_are_missed(tmp_path):
    write_archive(tmp_path / "in", series=2)
    with pytest.raises(UserError, match=r"mount --output .* carries on"):
        run(tmp_path / "out", tmp_path / "in", runner=lambda function, tasks: None)
    assert not (tmp_path / "out" / "contract.json").exists()
    assert run(tmp_path / "out", tmp_path / "in").made > 0


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
    write_nifti(tmp_path / "in" / "a.nii.gz", body((4, 40, 44)))
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path / "out", tmp_path / "in", **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "contract.json").exists()


def test_folders_that_cannot_be_used_are_told_in_one_line(tmp_path):
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


def test_a_full_disk_is_no_fault_of_the_scan(tmp_path, monkeypatch):
    write_nifti(tmp_path / "in" / "a.nii.gz", body((4, 40, 44)))
    written = parts.written

    def full(write, *values):
        raise parts.CannotWrite(28, "No space left on device")

    monkeypatch.setattr(parts, "written", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "out", tmp_path / "in")
    monkeypatch.setattr(parts, "written", written)
    assert not list((tmp_path / "out" / "work").glob(f"*{files.SUFFIX}"))
    assert run(tmp_path / "out", tmp_path / "in").contract["slices"] == 4


def test_random_archives_are_answered_file_by_file(tmp_path):
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
