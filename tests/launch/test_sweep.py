"""Sweeps: the command lines of a chain, what is skipped, and the table."""

import csv
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs import ablations
from curia2_jax.data.readers import phantom
from curia2_jax.errors import UserError
from curia2_jax.training import checkpoints
from launch import sweep

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_chain_starts_its_second_stage_from_the_first():
    runs = sweep.stages_of(f"{ROOT}/configs/ablations.py:ladder")
    stages = runs["+ low resolution, then 512"]
    lines = sweep.commands(pathlib.Path("sweep/5"), stages, "corpus", "bench", ["--config.seed=1"])
    assert [line[0].rpartition("/")[2] for line in lines] == ["main.py", "main.py", "convert.py", "evaluate.py"]
    first, second, convert, evaluate = lines
    assert "--config=configs/curia_vitb.py" in first and "--config.crops.global_size=256" in first
    assert not any("init_from" in word for word in first)
    assert "--config=configs/vitb_hires.py" in second and "--config.init_from=sweep/5/stage_1" in second
    assert first[-1] == second[-1] == "--config.seed=1"
    assert "--checkpoint=sweep/5/stage_2" in convert and "--data=bench" in evaluate


def test_an_unknown_sweep_is_one_line():
    with pytest.raises(UserError, match=r"no sweep 'laddr' in .*; write one of ladder, "):
        sweep.stages_of(f"{ROOT}/configs/ablations.py:laddr")
    with pytest.raises(UserError, match="no file"):
        sweep.stages_of("configs/nowhere.py:ladder")


def test_the_table_holds_the_scores_of_every_run(tmp_path):
    runs = {"Curia": [], "+ SigReg": []}
    for number, (name, score) in enumerate(zip(runs, (0.5, 0.625), strict=True)):
        folder = tmp_path / f"{number}_{sweep.slug(name)}" / "report"
        folder.mkdir(parents=True)
        interval = {"balanced_accuracy": [score, score - 0.125, score + 0.125]}
        settings = {"primary": {"head": "linear", "metric": "balanced_accuracy"}}  # as in the first reports
        results = {"settings": settings, "mean": {"rows": {"trained": {"linear": interval, "knn": interval}}}}
        (folder / "results.json").write_text(json.dumps(results))
    sweep.summarize(tmp_path, runs)
    rows = list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["run", "Curia", "+ SigReg"]
    assert rows[0][1:] == ["linear", "linear low", "linear high", "knn", "knn low", "knn high"]
    assert rows[2][1:4] == ["0.6250", "0.5000", "0.7500"]
    assert "| + SigReg | 0.625 [0.500, 0.750] | 0.625 [0.500, 0.750] |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_every_ladder_ends_with_curia_2():
    for sweep_name, file in (("ladder", "curia_vitb"), ("demo_ladder", "demo")):
        runs = list(ablations.SWEEPS[sweep_name].values())
        rates = [stages[0][1].get("optim.base_lr") for stages in runs[:-1]]
        assert rates[-1] > (rates[0] or 2e-4), f"{file}: the higher learning rate is higher"
        for before, after in itertools.pairwise(runs[:-1]):
            changed = {k for k, v in after[0][1].items() if before[0][1].get(k) != v}
            assert changed and len({key.split(".")[0] for key in changed}) == 1


SWEEP = """
SMALL = {"model.width": 32, "model.heads": 2, "model.depth": 2, "crops.local_size": 16, "crops.num_local": 2,
         "heads.hidden": 32, "data.global_batch": 8, "data.group_size": 8, "data.canvas": 64}
SWEEPS = {"chain": {"low, then high": [
    ("configs/demo.py:3", SMALL | {"crops.global_size": 32}),
    ("configs/demo.py:2", SMALL | {"crops.global_size": 64, "schedule.freeze_last_layer_steps": 0}),
]}}
"""


def command(*words: str, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def test_a_chain_of_two_resolutions_runs_is_scored_and_is_not_run_again(tmp_path):
    phantom.write_studies(tmp_path / "studies", 6, seed=3, size=48)
    command("launch/ingest.py", f"--input={tmp_path / 'studies'}", f"--output={tmp_path / 'corpus'}")
    (tmp_path / "sweep.py").write_text(SWEEP)
    line = [
        "launch/sweep.py", f"--sweep={tmp_path / 'sweep.py'}:chain", f"--workdir={tmp_path / 'runs'}",
        f"--corpus={tmp_path / 'corpus'}",
    ]  # fmt: skip
    command(*line)
    run = tmp_path / "runs" / "0_low_then_high"
    saved = (run / "stage_1", 3), (run / "stage_2", 2)
    grids = [checkpoints.restore_item(*where, "params")["backbone"]["pos_embed"] for where in saved]
    assert [grid.shape[1] for grid in grids] == [1 + 2**2, 1 + 4**2]
    # The class token's position is not interpolated: two small steps away from where the first stage left it.
    assert np.abs(grids[1][:, 0] - grids[0][:, 0]).max() < 0.01 < np.abs(grids[0][:, 0]).max()
    assert (tmp_path / "runs" / "table.md").read_text().count("low, then high") == 1
    assert "done before" in command(*line).stdout


def test_data_without_labels_are_refused_before_anything_is_trained(tmp_path):
    phantom.write_studies(tmp_path / "studies", 1, seed=3, size=48)
    for labels in (tmp_path / "studies").glob("*_seg.nii.gz"):
        labels.unlink()
    (tmp_path / "studies" / "label_names.json").unlink()
    command("launch/ingest.py", f"--input={tmp_path / 'studies'}", f"--output={tmp_path / 'corpus'}")
    words = "--sweep=configs/ablations.py:demo_ladder", f"--workdir={tmp_path / 'runs'}"
    done = command("launch/sweep.py", *words, f"--corpus={tmp_path / 'corpus'}", code=2)
    assert "has no labels to score on; write --data=BENCHMARK" in done.stderr
    assert not (tmp_path / "runs").exists()
