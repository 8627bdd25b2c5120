"""`launch/ingest.py` as a user calls it."""

import json
import os
import pathlib
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import plan

ROOT = pathlib.Path(__file__).resolve().parents[2]


def call(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch" / "ingest.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


def write_study(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    voxels = rng.normal(-1000, 10, (40, 44, 6))
    voxels[8:32, 8:36] += 1040
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([1, 1, 3, 1])), folder / "ct.nii.gz")
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8b broken")


def test_ingest_verify_statistics_and_preview(tmp_path):
    """All of its commands on one study."""
    write_study(tmp_path / "in")
    corpus = tmp_path / "corpus"
    done = call("--input", tmp_path / "in", "--output", corpus, "--workers", 1, "--preview", 1)
    assert done.returncode == 0, done.stderr
    for words in (
        "slices accepted",
        "refused",
        "corrupt",
        "slices/s",
        "labels",
        "quarantine.csv",
        "page_00.png",
        "placement.png",
        "nearly empty",
        "bytes",
    ):
        assert words in done.stdout
    again = call("--input", tmp_path / "in", "--output", corpus, "--workers", 1)
    assert again.returncode == 0 and "all were there before" in again.stdout
    verified = call("--verify", corpus, "--workers", 1)
    assert verified.returncode == 0 and "as it was written" in verified.stdout
    told = call("--statistics", corpus)
    assert told.returncode == 0 and "slices of CT" in told.stdout
    shares = done.stdout[done.stdout.index("placement in") : done.stdout.index("placement.png")]
    other = call("--output", corpus, "--preview", 1, "--config=configs/vitb.py", "--config.crops.local_area=(0.5,0.6)")
    assert other.returncode == 0 and "placement in" in other.stdout and shares not in other.stdout
    shard = next(corpus.glob("*.array_record-*"))
    data = bytearray(shard.read_bytes())
    data[data.index(b"slice") + 100] ^= 1
    shard.write_bytes(data)
    damaged = call("--verify", corpus, "--workers", 1)
    assert damaged.returncode == 1 and shard.name in damaged.stderr and "Traceback" not in damaged.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to do"),
        (("--input", "IN"), "nothing to do"),
        (("--input", "IN", "--output", "OUT", "stray"), "found 'stray'"),
        (("--input", "nowhere", "--output", "OUT"), "--input nowhere: does not exist"),
        (("--input", "IN", "--output", "IN/out"), "lies inside of"),
        (("--input", "IN", "--output", "OUT", "--planes", "oblique"), "--planes: found oblique"),
        (("--input", "IN", "--output", "/proc/none"), "/proc/none"),
        (("--verify", "IN"), "no corpus"),
        (("--output", "IN", "--forget", "x"), "no corpus"),
        (("--forget", "x"), "--forget: goes with --output CORPUS and no --input"),
        (("--statistics", "IN"), "no corpus"),
        (("--output", "IN", "--preview", "1"), "no corpus"),
        (("--output", "IN", "--preview", "1", "--config=configs/none.py"), "--config=configs/none.py: cannot be read"),
        (
            ("--output", "IN", "--preview", "1", "--config=configs/vitb.py", "--config.crops.no=1"),
            "--config.crops.no: unknown key",
        ),
        (("--input", "IN", "--output", "OUT", "--plane", "axial"), "plane"),
        (("--input", "IN", "--output", "OUT", "--workers", "some"), "workers"),
        (("--input", "IN", "--output", "OUT", "--runner", "spark"), "runner"),
        (("--input", "IN", "--output", "OUT", "--codec", "png"), "codec"),
        (("--input", "IN", "--output", "OUT", "--beam-options=--runner=FlinkRunner"), "only with --runner beam"),
        (("--input", "IN/broken.nii.gz", "--output", "OUT"), "no slice was accepted (corrupt 1)"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, arguments, message):
    """With exit code 2 and no traceback."""
    write_study(tmp_path / "in")
    replaced = [a.replace("IN", str(tmp_path / "in")).replace("OUT", str(tmp_path / "out")) for a in arguments]
    done = call(*replaced, "--workers", 1)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and message in lines[0], done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out" / "contract.json").exists()


def test_a_corpus_is_made_where_tensorflow_datasets_is_not(tmp_path):
    """Which is slow to import, and disturbs the imports of other threads meanwhile."""
    write_study(tmp_path / "in")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "tensorflow_datasets.py").write_text("raise ImportError('not here')")
    where = f"{tmp_path / 'none'}{os.pathsep}{ROOT}"
    done = call("--input", tmp_path / "in", "--output", tmp_path / "out", "--workers", 1, PYTHONPATH=where)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_the_codec_is_a_flag(tmp_path):
    """Another one than the corpus was begun with is refused."""
    write_study(tmp_path / "in")
    line = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--workers", 1)
    assert call(*line, "--codec=zstd").returncode == 0
    assert json.loads((tmp_path / "out" / "contract.json").read_text())["record"]["version"] == 2
    assert "error: --output" in call(*line).stderr


def test_a_patient_is_forgotten(tmp_path):
    """By the key in the index; the corpus verifies, and nobody is forgotten twice."""
    write_study(tmp_path / "in")
    ct = nib.load(tmp_path / "in" / "ct.nii.gz")
    nib.save(nib.Nifti1Image(ct.get_fdata()[::-1].astype(np.int16), ct.affine), tmp_path / "in" / "other.nii.gz")
    assert call("--input", tmp_path / "in", "--output", tmp_path / "out", "--workers", 1).returncode == 0
    keys = sorted(set(Corpus(tmp_path / "out").column("patient")))
    assert len(keys) > 1
    done = call("--output", tmp_path / "out", "--forget", keys[0])
    assert done.returncode == 0 and "revision 2" in done.stdout, done.stderr
    assert sorted(set(Corpus(tmp_path / "out").column("patient"))) == keys[1:]
    assert call("--verify", tmp_path / "out", "--workers", 1).returncode == 0
    again = call("--output", tmp_path / "out", "--forget", keys[0])
    assert again.returncode == 2 and "nobody in" in again.stderr and "Traceback" not in again.stderr


def test_help_names_the_flags_and_the_commands():
    """And nothing else is printed."""
    told = call("--help")
    assert "--verify CORPUS" in told.stdout and "--beam-options" in told.stdout and not told.stderr


def test_help_and_wrong_flags_wait_for_no_import():
    """What the commands need takes longer to import than the answer to read."""
    told = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "launch" / "ingest.py", "--help"], capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines() if line.startswith("import time:")}
    assert "absl.flags" in imported
    assert not imported & {"numpy", "rich", "nibabel", "pyarrow", "curia2_jax.data", "multiprocessing"}


def test_the_flags_have_the_defaults_of_the_options():
    """Which are not imported for --help."""
    told = " ".join(call("--help").stdout.split())
    for name in ("labels", "codec"):
        default = re.escape(getattr(plan.Options(()), name))
        assert re.search(rf"--{name}: .*?\(default: '{default}'\)", told), name


def test_beam_makes_and_refuses_as_the_options_say(tmp_path):
    """In one line, or with a corpus that verifies."""
    pytest.importorskip("apache_beam", reason="extra `beam` is not installed")
    write_study(tmp_path / "in")
    beam = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--workers", 1, "--runner", "beam")
    for option, message in (("--runner=NoRunner", "pipeline runner"), ("--direct_number=2", "--direct_number;")):
        refused = call(*beam, f"--beam-options={option}")
        (line,) = (line for line in refused.stderr.splitlines() if line.startswith("error: "))
        assert refused.returncode == 2 and line.startswith("error: --beam-options: ") and message in line
        assert "Traceback" not in refused.stderr and not (tmp_path / "out").exists()
    done = call(*beam, "--beam-options=--runner=DirectRunner,--direct_num_workers=1")
    assert done.returncode == 0 and "slices accepted" in done.stdout, done.stderr
    assert call("--verify", tmp_path / "out", "--workers", 1).returncode == 0


def test_beam_that_is_not_installed_is_told_in_one_line(tmp_path):
    """With how to install it."""
    write_study(tmp_path / "in")
    (tmp_path / "none" / "apache_beam").mkdir(parents=True)
    (tmp_path / "none" / "apache_beam" / "__init__.py").write_text("raise ImportError('not here')")
    done = call(
        "--input",
        tmp_path / "in",
        "--output",
        tmp_path / "out",
        "--runner",
        "beam",
        PYTHONPATH=f"{tmp_path / 'none'}{os.pathsep}{ROOT}",
    )
    assert done.returncode == 2 and "apache_beam is not installed" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_is_told_in_one_line(tmp_path):
    """A file size limit stands in for a full disk: the write fails in the same place."""
    write_study(tmp_path / "in")
    limit = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); sys.argv = sys.argv[1:]; " \
        "runpy.run_path(sys.argv[0], run_name='__main__')"  # fmt: skip
    arguments = [
        str(ROOT / "launch" / "ingest.py"),
        f"--input={tmp_path / 'in'}",
        f"--output={tmp_path / 'out'}",
        "--workers=1",
    ]
    done = subprocess.run([sys.executable, "-c", limit, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "error: " in done.stderr and not (tmp_path / "out" / "contract.json").exists()
    assert call(*arguments[1:]).returncode == 0
