"""An ingest that is killed, cut off or fails half-way ends with the same corpus."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from curia2_jax import files
from curia2_jax.data import readers
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import audit, ingest, parts, plan, shard_maker
from curia2_jax.data.readers import nifti
from curia2_jax.errors import UserError
from tests.data.ingest.running import fingerprint, quarantine, run, silent
from tests.data.small_studies import body, write_archive, write_nifti

ROOT = pathlib.Path(__file__).resolve().parents[3]


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


def test_a_fault_in_the_middle_of_a_series_leaves_none_of_it(tmp_path, monkeypatch):
    """The other series are as without it."""
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
    assert audit.verify(tmp_path / "out", 0, silent) == []


def kill_self(output, number):
    """make_shard in which one scan takes the process down."""

    def deadly(files, *rest):
        if files[0].name == "b.nii.gz":
            os.kill(os.getpid(), signal.SIGSEGV)
        return nifti.read(files, *rest)

    readers.READERS = tuple(r._replace(read=deadly) if r.format == "nifti" else r for r in readers.READERS)
    return shard_maker.make_shard(output, number)


def test_a_scan_that_ends_the_process_is_left_out(tmp_path, monkeypatch):
    """Found by running the shards one by one."""
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
        assert audit.verify(output, 0, silent) == [] and not (output / "work").exists()
        assert quarantine(output) == quarantine(tmp_path / "whole")


def test_killed_at_random_moments_it_ends_with_the_same_corpus(tmp_path):
    """In one process."""
    kill_and_finish(tmp_path, kills=3, workers=0, seed=0)


@pytest.mark.soak
def test_killed_twenty_times_it_ends_with_the_same_corpus(tmp_path):
    """In two processes."""
    kill_and_finish(tmp_path, kills=20, workers=2, seed=1)


@pytest.mark.parametrize("step", range(12))
def test_publishing_can_be_cut_off_at_any_rename(tmp_path, monkeypatch, step):
    """There is no contract before the end."""
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
    assert audit.verify(tmp_path / "out", 0, silent) == []


def test_shards_that_a_runner_made_elsewhere_are_missed(tmp_path):
    """Told in one line; calling again makes them here."""
    write_archive(tmp_path / "in", series=2)
    with pytest.raises(UserError, match=r"mount --output .* carries on"):
        run(tmp_path / "out", tmp_path / "in", runner=lambda function, tasks: None)
    assert not (tmp_path / "out" / "contract.json").exists()
    assert run(tmp_path / "out", tmp_path / "in").made > 0


def test_a_full_disk_is_no_fault_of_the_scan(tmp_path, monkeypatch):
    """It stops the ingest, and leaves nothing half written."""
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
