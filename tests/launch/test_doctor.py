"""The command that says what is wrong with a run."""

import json
import pathlib
import subprocess
import sys

from tests.training.tiny import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


def doctor(*words: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "launch/doctor.py", *words]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_a_sick_run_is_told_and_a_folder_without_rows_is_a_mistake(tmp_path):
    found = json.loads((ROOT / "tests" / "telemetry" / "runs" / "no_update.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    done = doctor(str(tmp_path))
    assert done.returncode == 2 and "metrics.jsonl: no rows yet" in done.stderr and done.stderr.count("\n") == 1
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found["rows"]))
    done = doctor(str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{tmp_path}: {len(found['rows'])} rows, the last of step 200"
    assert lines[-1].startswith("no update: backbone") and "config.optim.base_lr" in lines[-1]
