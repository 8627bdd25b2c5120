"""The command: what it scores, says and refuses."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from tests import small_benchmark

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "launch" / "evaluate.py"


def evaluate(*arguments, **variables):
    line = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=os.environ | variables)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_benchmark.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    rng = np.random.default_rng(0)
    for name in ("first", "second", "third"):
        images = [rng.normal(size=(32, 32)) * 100 + 50 * (number % 2) for number in range(16)]
        rows = [(one, np.ones((32, 32)), number % 2, f"p{number // 4}", "MR") for number, one in enumerate(images)]
        small_benchmark.write_task(folder / name, {"train": rows[:8], "test": rows[8:]}, {0: "a", 1: "b"})
    return folder


def test_scores_the_tasks_asked_for_and_shows_what_the_run_saw(model, benchmark, tmp_path):
    """Several names behind one --task, and the pictures of --run in the page."""
    (tmp_path / "run" / "images").mkdir(parents=True)
    Image.new("L", (7, 5), 99).save(tmp_path / "run" / "images" / "crops.png")
    done = evaluate(
        "--model", model, "--task", "first", "third", "--data", benchmark, "--output", tmp_path / "report",
        "--run", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert list(results["tasks"]) == ["first", "third"]
    assert results["verdict"] in done.stdout
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'report' / 'report.html'}"
    assert "What the student saw of the first images" in (tmp_path / "report" / "report.html").read_text()
    assert "config.json is not there" in done.stdout  # a run without its config: said, and no reason to stop
    compared = evaluate("compare", tmp_path / "report", tmp_path / "report")
    assert compared.returncode == 0, compared.stderr
    first = next(line.split() for line in compared.stdout.splitlines() if line.startswith("first"))
    assert "+0.000" in first and compared.stdout.count("2 patients: no verdict") == 6


def test_published_files_are_unpacked_and_learned_from_ever_fewer_patients(model, tmp_path):
    """A task as it is downloaded, in one command with a setting."""
    rng = np.random.default_rng(0)
    for split, first in (("train", 0), ("test", 12)):
        images = [(rng.normal(size=(16, 16)) + number % 2).tolist() for number in range(12)]
        table = {"image": images, "target": [number % 2 for number in range(12)]}
        table["patient_id"] = [f"p{first + number // 2}" for number in range(12)]
        (tmp_path / "data" / "ich").mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(table), tmp_path / "data" / "ich" / f"{split}-00000-of-00001.parquet")
    report = tmp_path / "report"
    done = evaluate(
        "--model", model, "--data", tmp_path / "data", "--output", report, "--setting", "few-shot", "--random", model
    )
    assert done.returncode == 0, done.stderr
    (task,) = json.loads((report / "results.json").read_text())["tasks"].values()
    assert task["few_shot"]["trained"][-1]["percent"] == 100 and (report / "tasks" / "ich" / "task.json").is_file()


def test_other_models_stand_beside_ours_and_are_encoded_once(model, benchmark, tmp_path):
    """Random twins and code that is trusted: rows of every table, named in the result with what they saw."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from curia2_jax.curiabench.adapters.adapter import Adapter, Tokens, each\n"
        "def model(device):\n"
        "    pixels = each(lambda volume: torch.from_numpy(volume.voxels)[:, None])\n"
        "    return Adapter('', 'slice', pixels, lambda x, normed: Tokens(x.mean((2, 3)), None), '1', 'the mean')\n"
    )
    words = [f"random:{model}@4", f"{tmp_path}/mine.py:model"]
    line = ["--model", model, "--task", "first", "--data", benchmark, "--output", tmp_path / "report",
            "--against", words[0], "--against", words[1], "--cache", tmp_path / "cache",
            "--pooling", "curia-v1,norm=after"]  # fmt: skip
    refused = evaluate(*line)
    assert refused.returncode == 2 and "write --trust-remote-code" in refused.stderr
    done = evaluate(*line, "--trust-remote-code")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    told = results["settings"]["others"]
    assert list(told) == [f"random:{model.name}@4", "mine.py:model"]
    assert told["mine.py:model"] | {"sha256": ""} == {"preprocessing": "the mean", "sha256": ""}
    pooling = {"over": "tokens", "norm": "after", "unmasked": "patches", "single": "class", "window": 0}
    pooling |= {"edges": "wrap", "chunk": 64, "padding": "read"}
    assert results["settings"]["pooling"] == pooling
    defects = ["chunk=64", "over=tokens", "unmasked=patches", "edges=wrap", "padding=read"]
    assert list(results["settings"]["pooling_defects"]) == defects
    assert "<code>edges=wrap</code>" in (tmp_path / "report" / "pages" / "first.html").read_text()
    for name in told:
        assert name in results["tasks"]["first"]["rows"] and name in results["mean"]["trained_minus"]
        assert name in done.stdout and name in (tmp_path / "report" / "report.html").read_text()
    assert "mine.py:model: 16 of 16 samples encoded" in done.stdout
    again = evaluate(*line, "--trust-remote-code")
    for name in (*told, "trained", "random 0", "pixels-linear"):
        assert f"{name}: 0 of 16 samples encoded" in again.stdout
    assert json.loads((tmp_path / "report" / "results.json").read_text())["tasks"] == results["tasks"]


def test_a_corpus_without_labels_is_no_mistake(model, tmp_path):
    """Nothing to score: said, and exit code 0."""
    (tmp_path / "contract.json").write_text("{}")
    done = evaluate("--model", model, "--data", tmp_path, "--output", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"no labels in {tmp_path}: nothing to score.")
    assert not (tmp_path / "report").exists()


def test_another_image_processor_is_run_with_the_flag_alone(benchmark, tmp_path):
    """Without --trust-remote-code one line that names it, with it a report."""
    model = small_benchmark.write_model(tmp_path / "model")
    with (model / "curia_image_processor.py").open("a") as file:
        file.write("\n# somebody else's\n")
    line = ["--model", model, "--task", "first", "--data", benchmark, "--output", tmp_path / "report"]
    refused = evaluate(*line)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "curia_image_processor.py: not the image processor" in refused.stderr
    assert "write --trust-remote-code" in refused.stderr
    trusted = evaluate(*line, "--trust-remote-code", HF_MODULES_CACHE=str(tmp_path / "modules"))
    assert trusted.returncode == 0, trusted.stderr
    assert (tmp_path / "report" / "results.json").exists()


def test_mistakes_are_one_line_and_code_2(model, benchmark, tmp_path):
    """Every flag that can be wrong, before anything is written."""
    right = {"--model": model, "--data": benchmark, "--output": tmp_path / "report"}

    def with_flag(name, value):
        return [str(part) for pair in (right | {name: value}).items() for part in pair]

    mistakes = [
        ([], "--model: missing"),
        (with_flag("--data", tmp_path / "nowhere"), f"--data: found {tmp_path / 'nowhere'}, which is no folder"),
        (with_flag("--data", model), "neither a task (NAME/task.json) nor a corpus"),
        (with_flag("--model", benchmark), "has no config.json"),
        (with_flag("--device", "tpu"), "--device=tpu"),
        (with_flag("--devise", "cpu"), "devise"),
        (with_flag("--run", tmp_path / "nowhere"), "--run: found"),
        (["compare", tmp_path / "nowhere", tmp_path], "predictions.parquet: not there"),
        (["tasks", tmp_path / "nowhere", tmp_path], "where SCANS is a folder with labels.csv"),
        (["compare", tmp_path], "compare: found 1 reports; write compare REPORT_A REPORT_B"),
        ([*with_flag("--device", "cpu"), "first"], "found 'first' without a flag; write --task first"),
    ]
    for arguments, message in mistakes:
        done = evaluate(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert not (tmp_path / "report").exists()
