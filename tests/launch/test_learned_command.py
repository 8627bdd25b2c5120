"""The command that asks what a run has learned: what it prints."""

import json
import pathlib
import subprocess
import sys

import pytest

from curia2_jax.data.readers import phantom

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.soak
def test_a_run_is_asked_and_studies_without_labels_are_not(tmp_path):
    phantom.write_studies(tmp_path / "studies", 6, seed=3, size=48)
    corpus = tmp_path / "corpus"
    assert command("launch/ingest.py", f"--input={tmp_path / 'studies'}", f"--output={corpus}").returncode == 0
    small = {"model.width": 32, "model.heads": 2, "model.depth": 2, "heads.hidden": 32, "data.global_batch": 16,
             "crops.global_size": 32, "crops.local_size": 16, "data.corpus": corpus}  # fmt: skip
    line = [f"--config.{key}={value}" for key, value in small.items()]
    done = command("launch/main.py", "--config=configs/demo.py:2", f"--workdir={tmp_path / 'run'}", *line)
    assert done.returncode == 0 and "  nats " in done.stdout and "at the start: attention entropy" in done.stdout
    done = command("launch/learned.py", f"--run={tmp_path / 'run'}", f"--data={corpus}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "3 patients to learn from, 3 to test" in lines[0]
    asked = [text[:29].strip() for text in lines[2:6]]
    assert asked == ["structures present, AUROC"] * 2 + ["height in the scan, R squared"] * 2
    assert lines[-2] == "Not judged: 3 test patients, fewer than 10."
    learned = tmp_path / "run" / "learned"
    assert lines[-1] == f"picture: {learned / 'answers.png'}" and (learned / "answers.png").exists()
    rows = json.loads((learned / "answers.json").read_text())
    assert list(rows[0]["gains"]) == ["the weights it began with", "16 x 16 pixels"]
    line = ["launch/learned.py", f"--run={tmp_path / 'run'}", f"--data={corpus}", f"--learn-from={corpus}"]
    apart = command(*line, f"--output={tmp_path / 'apart'}")
    assert "6 patients to learn from, 6 to test" in apart.stdout and (tmp_path / "apart" / "answers.json").exists()
