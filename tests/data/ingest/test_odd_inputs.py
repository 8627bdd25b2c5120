"""One input never ends an ingest: it is read, or listed with why not."""

import json
import os
import pathlib
import stat
import subprocess
import sys

import pytest

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import ingest, plan
from curia2_jax.data.readers import archive
from curia2_jax.data.readers.volume import REASONS
from curia2_jax.errors import UserError
from tests.data.ingest.odd_inputs import ODD_INPUTS, good, in_zip, scan_bytes
from tests.data.ingest.running import quarantine, run

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ODD_INPUTS)
def test_an_odd_input_beside_a_good_scan(tmp_path, name):
    """The good scan is accepted, all else is told, and a second call finds the corpus as it is."""
    make, refused, accepted = ODD_INPUTS[name]
    good(tmp_path / "in" / "good.nii.gz")
    make(tmp_path / "in")
    contract = run(tmp_path / "out", tmp_path / "in").contract
    told = {
        file.partition("/")[0] if len(file) > 1000 else file: why for file, why in quarantine(tmp_path / "out").items()
    }
    assert told == refused and set(refused.values()) <= set(REASONS)
    assert contract["series"] == 1 + accepted
    assert run(tmp_path / "out", tmp_path / "in").contract == contract
    subprocess.run(["rm", "-rf", tmp_path / "in"], check=True)  # trees that Python cannot walk


COMMAND = """
import pathlib, sys
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import ingest, plan
ingest.ingest(pathlib.Path(sys.argv[2]), plan.Options((sys.argv[1],), labels=sys.argv[3]), 0, lambda *_: None)
"""


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_names_do_not_depend_on_the_locale(tmp_path, locale):
    """Umlauts in UTF-8 and in Latin-1, of files, of members of a zip and in a CSV; the tables are those of any other
    locale."""
    for name in ("Latin-1 name of a text", "Latin-1 name of a scan", "name with an umlaut"):
        ODD_INPUTS[name][0](tmp_path / "in") if (tmp_path / "in").exists() else good(tmp_path / "in" / "good.nii.gz")
        ODD_INPUTS[name][0](tmp_path / "in")
    good(tmp_path / "in" / "grün.nii.gz", 5)
    in_zip(tmp_path / "in" / "a.zip", {"blüte.nii.gz": scan_bytes(tmp_path / "in", 6)})
    (tmp_path / "l.csv").write_text("image,label\nin/grün.nii.gz,in/blatt.nii.gz\n", encoding="utf-8-sig")
    run(tmp_path / "here", tmp_path / "in", labels=str(tmp_path / "l.csv"))
    paths = [str(tmp_path / name) for name in ("in", "there", "l.csv")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LC_")} | locale | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", COMMAND, *paths], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for table in ("quarantine.csv", "corrections.csv"):
        there, here = ((tmp_path / out / "local" / table).read_bytes() for out in ("there", "here"))
        assert there == here and b"\\xfc" in here


def test_folders_that_cannot_be_entered_are_listed(tmp_path, monkeypatch):
    """With the error of the system, also where the tests run as root."""
    good(tmp_path / "in" / "good.nii.gz")
    (tmp_path / "in" / "shut").mkdir()
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    run(tmp_path / "out", tmp_path / "in")
    assert quarantine(tmp_path / "out") == {"shut": "unreadable"}


def test_a_decoder_that_ends_the_process_is_survived_by_one_worker(tmp_path, monkeypatch):
    """Which is a process of its own, too."""
    for name in ("a", "deadly", "b"):
        good(tmp_path / "in" / f"{name}.nii.gz", ord(name[0]))
    monkeypatch.setattr(plan, "_look", look_or_die)
    contract = run(tmp_path / "out", tmp_path / "in", workers=1).contract
    assert contract["series"] == 2 and quarantine(tmp_path / "out") == {"deadly.nii.gz": "reader_failed"}


@pytest.mark.parametrize("number", [28, 122, 24, 23, 5, 30])
def test_a_machine_that_cannot_unpack_is_no_fault_of_the_archive(tmp_path, monkeypatch, number):
    """No room, quota, too many open files, a broken disk, a read-only one: one line, and a later call carries on."""
    good(tmp_path / "in" / "good.nii.gz")
    in_zip(tmp_path / "in" / "a.zip", {"scan.nii.gz": scan_bytes(tmp_path / "in", 3)})

    def failing(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr("tempfile.mkdtemp", failing)
        with pytest.raises(UserError, match="call again: it carries on") as told:
            run(tmp_path / "out", tmp_path / "in")
    assert os.strerror(number) in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "out" / "contract.json").exists()
    assert run(tmp_path / "out", tmp_path / "in").contract["series"] == 2


@pytest.mark.parametrize("stage", ["look", "read"])
def test_a_temporary_folder_that_is_too_small_stops_before_it_is_full(tmp_path, monkeypatch, stage):
    """In the plan, and when the plan is there."""
    good(tmp_path / "in" / "good.nii.gz")
    in_zip(tmp_path / "in" / "a.zip", {"scan.nii.gz": scan_bytes(tmp_path / "in", 3)})
    if stage == "read":
        with pytest.raises(UserError, match="carries on"):
            run(tmp_path / "out", tmp_path / "in", runner=lambda function, tasks: None)
    usage = type("usage", (), {"free": 100})
    with monkeypatch.context() as small:
        small.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"a member takes \S+ bytes, 100 are free; make room there, or set TMPDIR"):
            run(tmp_path / "out", tmp_path / "in")
    assert run(tmp_path / "out", tmp_path / "in").contract["series"] == 2 and not quarantine(tmp_path / "out")


def test_too_many_open_files_stop_the_walk(tmp_path, monkeypatch):
    """A folder is not taken for one that cannot be entered."""
    good(tmp_path / "in" / "good.nii.gz")

    scandir = os.scandir

    def failing(path):
        if str(path).endswith("/in"):
            raise OSError(24, os.strerror(24), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(UserError, match="raise `ulimit -n`"):
        run(tmp_path / "out", tmp_path / "in")


def look_or_die(paths, planes):
    if any("deadly" in path for path in paths):
        os.kill(os.getpid(), 9)
    return [item for path in paths for item in archive.look(path, lambda header: header.shape[2])]


def test_a_header_that_ends_the_process_is_left_out(tmp_path, monkeypatch):
    """Found by looking at its chunk file by file."""
    for name in ("a", "deadly", "b"):
        good(tmp_path / "in" / f"{name}.nii.gz", ord(name[0]))
    monkeypatch.setattr(plan, "_look", look_or_die)
    monkeypatch.setattr(plan, "_FILES_PER_TASK", 1)
    contract = run(tmp_path / "out", tmp_path / "in", workers=2).contract
    assert contract["series"] == 2 and quarantine(tmp_path / "out") == {"deadly.nii.gz": "reader_failed"}


def test_inputs_of_one_name_are_two(tmp_path):
    """Files of the same name below folders of the same name are different series."""
    for number, name in enumerate(("x", "y")):
        good(tmp_path / name / "data" / "scan.nii.gz", number)
    run(tmp_path / "out", tmp_path / "x" / "data", tmp_path / "y" / "data")
    assert len(set(Corpus(tmp_path / "out").column("series"))) == 2


def test_what_must_not_leave_the_site_is_for_its_owner(tmp_path):
    """The folder, and the secret in it."""
    good(tmp_path / "in" / "good.nii.gz")
    run(tmp_path / "out", tmp_path / "in")
    modes = {name: stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in ("local", "local/salt")}
    assert modes == {"local": 0o700, "local/salt": 0o600}


def test_the_plan_is_ascii(tmp_path):
    """So that no locale reads it otherwise."""
    good(tmp_path / "in" / "good.nii.gz")
    ODD_INPUTS["Latin-1 name of a scan"][0](tmp_path / "in")
    with pytest.raises(UserError, match="carries on"):
        run(tmp_path / "out", tmp_path / "in", runner=lambda function, tasks: None)
    (text,) = ((tmp_path / "out" / "work" / "plan-00000.json").read_bytes(),)
    assert text.isascii() and any("\udcfc" in scan["name"] for scan in json.loads(text))
    assert ingest.plan.read_shard(tmp_path / "out" / "work", 0)
