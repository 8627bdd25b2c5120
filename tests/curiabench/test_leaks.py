"""What pre-training saw of a test, on phantom studies ingested as a user would."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from curia2_jax.curiabench import leaks, tasks
from curia2_jax.data.readers import phantom
from curia2_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def ingest(studies, corpus, *more):
    line = [sys.executable, "launch/ingest.py", f"--input={studies}", f"--output={corpus}", *more]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return corpus


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus of four labelled studies with its benchmark, and one of two of them with the same salt."""
    folder = tmp_path_factory.mktemp("leaks")
    phantom.write_studies(folder / "studies", 4, seed=2, size=48)
    (folder / "few").mkdir()
    for number in (0, 1):
        for path in (folder / "studies").glob(f"study_{number:04d}*"):
            (folder / "few" / path.name).symlink_to(path)
    whole = ingest(folder / "studies", folder / "whole")
    salt = whole / "local" / "salt"
    return whole, ingest(folder / "few", folder / "few_corpus", f"--salt={salt}")


def splits_of(corpus):
    folder = corpus / "benchmark"
    return [tasks.read_task(folder, name).test for name in tasks.task_names(folder)], folder


def test_the_corpus_that_a_benchmark_was_cut_from_holds_all_of_it(made):
    """Every patient, and every image bit for bit."""
    found = leaks.find(*splits_of(made[0]), leaks.whole_corpus(str(made[0])))
    assert found["salts"] == "same"
    assert found["patients_in_corpus"] == found["patients"] > 0
    assert found["images_in_corpus"] == found["images"] > 0
    assert leaks.sentence(found).startswith(f"Pre-training saw {found['patients']} of the {found['patients']} test")


def test_a_corpus_of_some_patients_holds_theirs(made):
    """Patients by key; their images with them, and no others."""
    splits, folder = splits_of(made[0])
    found = leaks.find(splits, folder, leaks.whole_corpus(str(made[1])))
    keys = set(leaks.Corpus(made[1]).column("patient").tolist())
    common = {p for split in splits for p in split.patients.tolist()} & keys
    assert found["patients_in_corpus"] == len(common)
    assert (found["images_in_corpus"] > 0) == bool(common)


def test_without_one_salt_clean_is_not_said(made, tmp_path):
    """Keys cannot be compared then; the images still can."""
    splits, folder = splits_of(made[0])
    other = shutil.copytree(made[1], tmp_path / "other")
    (other / "local" / "salt").write_text("another")
    found = leaks.find(splits, folder, leaks.whole_corpus(str(other)))
    assert found["salts"] == "different"
    (other / "local" / "salt").unlink()
    assert leaks.find([], folder, leaks.whole_corpus(str(other)))["salts"] == "unknown"
    nothing = found | {"patients_in_corpus": 0, "images_in_corpus": 0}
    assert "cannot be compared, for the salts of their keys are different" in leaks.sentence(nothing)
    assert leaks.sentence(nothing | {"salts": "same"}).startswith("Clean: none of the")


def test_what_a_run_kept_out_is_clean(made, tmp_path):
    """`data.exclude` of its config takes the test patients out of what is searched."""
    splits, folder = splits_of(made[0])
    config = {"data": {"corpus": str(made[0]), "where": "", "held_out": 0.0, "exclude": str(folder)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    trained = leaks.corpus_of_run(tmp_path)
    assert 0 < trained.chosen.sum() < len(trained.chosen)
    found = leaks.find(splits, folder, trained)
    assert (found["patients_in_corpus"], found["images_in_corpus"]) == (0, 0)
    config["data"]["exclude"] = ""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert np.all(leaks.corpus_of_run(tmp_path).chosen)


def test_a_run_without_a_config_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--run: .*config.json is not there"):
        leaks.corpus_of_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="names no corpus"):
        leaks.corpus_of_run(tmp_path)
