"""Apache Beam makes the same corpus; needs the extra `beam`."""

import pathlib

import pytest

from curia2_jax.data.ingest import plan, runners
from curia2_jax.errors import UserError
from tests.data.ingest.running import fingerprint, run
from tests.data.small_studies import write_archive


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
    """Before anything is made."""
    pytest.importorskip("apache_beam", reason="extra `beam` is not installed")
    with pytest.raises(UserError, match=message) as error:
        runners.beam(options)
    assert "\n" not in str(error.value) and str(error.value).startswith("--beam-options: ")
