"""Sweeps: the command lines of a chain, what is skipped, and the table."""

import csv
import json
import pathlib

import pytest

from curia2_jax.errors import UserError
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
        results = {"mean": {"rows": {"trained": {"linear": interval, "knn": interval}}}}
        (folder / "results.json").write_text(json.dumps(results))
    sweep.summarise(tmp_path, runs)
    rows = list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["run", "Curia", "+ SigReg"]
    assert rows[2][1:4] == ["0.6250", "0.5000", "0.7500"]
    assert "| + SigReg | 0.625 [0.500, 0.750] | 0.625 [0.500, 0.750] |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "picture.png").stat().st_size > 1000
