"""Sweeps: the command lines of a chain, what is skipped, and the table."""

import csv
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from configs import ablations
from curia2_jax.data.readers import phantom
from curia2_jax.errors import UserError
from curia2_jax.telemetry import goodput
from curia2_jax.training import checkpoints
from launch import sweep
from tests.curiabench.test_ladder import answered, write_report
from tests.data.small_corpus import write_small_corpus

ROOT = pathlib.Path(__file__).resolve().parents[2]


DATA = ("c" * 64, "b" * 64)


def test_a_chain_starts_its_second_stage_from_the_first(tmp_path):
    runs, seeds = sweep.stages_of(f"{ROOT}/configs/ablations.py:ladder")
    assert seeds == (0,)
    run = sweep.plan(runs, seeds, ["--config.log.every_steps=1"], tmp_path, DATA)[-1]
    lines = sweep.commands(run, "corpus", "bench", ["--config.log.every_steps=1"])
    assert [line[0].rpartition("/")[2] for line in lines] == ["main.py", "main.py", "convert.py", "evaluate.py"]
    first, second, convert, evaluate = lines
    assert any("curia_vitb.py" in word for word in first) and "--config.crops.global_size=256" in first
    assert "--config.seed=0" in first and not any("init_from" in word for word in first)
    assert f"--config.init_from={run.folder / 'stage_1'}" in second
    assert first[-1] == second[-1] == "--config.log.every_steps=1"
    assert f"--checkpoint={run.folder / 'stage_2'}" in convert and "--data=bench" in evaluate


def test_an_unknown_sweep_is_one_line():
    with pytest.raises(UserError, match=r"no sweep 'laddr' in .*; write one of ladder, "):
        sweep.stages_of(f"{ROOT}/configs/ablations.py:laddr")
    with pytest.raises(UserError, match="no file"):
        sweep.stages_of("configs/nowhere.py:ladder")
    with pytest.raises(UserError, match=r"--sweep: .*configs/demo.py: .*wieght"):
        sweep.resolved((str(ROOT / "configs/demo.py"), {"objective.sigreg.wieght": 1.0}))


def test_a_folder_is_named_by_what_the_run_is(tmp_path):
    """Its place in the file is of no consequence; its config, seed, corpus and further words are."""
    demo = str(ROOT / "configs/demo.py")
    runs = {"A": [(demo, {})], "B, more": [(demo, {"optim.base_lr": 0.5})]}
    a, b = (one.folder.name for one in sweep.plan(runs, (0,), [], tmp_path, DATA))
    assert a.startswith("a-seed0-") and b.startswith("b_more-seed0-") and a != b
    turned = sweep.plan(dict(reversed(runs.items())), (0, 1), [], tmp_path, DATA)
    assert [one.folder.name for one in turned][::2] == [b, a] and len({one.folder for one in turned}) == 4
    for other in (
        sweep.plan(runs, (0,), ["--config.seed=1"], tmp_path, DATA),
        sweep.plan(runs, (0,), [], tmp_path, ("d", DATA[1])),
    ):
        assert not {a, b} & {one.folder.name for one in other}
    assert sweep.plan(runs, (0,), [], tmp_path, (DATA[0], "e"))[0].folder.name == a  # the weights stand


def test_a_benchmark_is_known_by_its_tables_and_files(tmp_path):
    (tmp_path / "task" / "test").mkdir(parents=True)
    for name, text in (("task.json", "{}"), ("test/extra_data.npy", "a"), ("test/image.npy", "1")):
        (tmp_path / "task" / name).write_text(text)
    seen = {sweep.benchmark_hash(tmp_path)}
    for name, text in (("task.json", "[]"), ("test/extra_data.npy", "b"), ("test/image.npy", "12")):
        (tmp_path / "task" / name).write_text(text)
        seen.add(sweep.benchmark_hash(tmp_path))
    assert len(seen) == 4 and sweep.benchmark_hash(tmp_path) in seen


def test_a_grid_is_every_combination():
    runs = ablations.grid("c.py", {"a.x": (1, 2), "b.y": (3, 4)})
    assert list(runs) == ["x 1, y 3", "x 1, y 4", "x 2, y 3", "x 2, y 4"]
    assert runs["x 2, y 3"] == [("c.py", {"a.x": 2, "b.y": 3})]


class Machine:
    """In place of the commands: writes what they would, notes them, fails where it is told to."""

    def __init__(self, fails=""):
        self.called, self.fails = [], fails

    def call(self, line, dry_run=False):
        self.called.append(line)
        said = dict(word.lstrip("-").split("=", 1) for word in line[1:])
        if self.fails and self.fails in " ".join(line):
            raise SystemExit(43)
        if line[0].endswith("main.py"):
            folder = pathlib.Path(said["workdir"])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps({"data": {"global_batch": 8}}))
            (folder / "environment.json").write_text(json.dumps({"devices": 2}))
            rows = [{"step": step, "nats/dino": step / 10} for step in range(1, 11)]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            spent = {
                "life": "1-1",
                "time": 1.0,
                "step": 10,
                "seconds": dict.fromkeys(goodput.PHASES, 0.0) | {"step": 1800.0},
            }
            (folder / goodput.NAME).write_text(json.dumps(spent) + "\n")
        if line[0].endswith("evaluate.py"):
            targets, patients = np.tile([0, 1], 20), np.repeat([f"p{i}" for i in range(10)], 4)
            right = np.arange(40) % 5 != 0 if "b-seed" in said["output"] else np.arange(40) % 3 != 0
            write_report(pathlib.Path(said["output"]), answered(right, targets), targets, patients)


SWEEP = """
SWEEPS = {"two": {"A": [("DEMO", {})], "B": [("DEMO", {"optim.base_lr": 0.5})]}}
SEEDS = {"two": (0, 1)}
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`(exit code, Machine)` of a sweep of two runs and seeds with further flags, all in this process."""
    write_small_corpus(tmp_path / "corpus")
    (tmp_path / "bench" / "task").mkdir(parents=True)
    (tmp_path / "bench" / "task" / "task.json").write_text("{}")
    (tmp_path / "sweep.py").write_text(SWEEP.replace("DEMO", str(ROOT / "configs/demo.py")))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    where = {"corpus": str(tmp_path / "corpus"), "data": str(tmp_path / "bench"), "workdir": str(tmp_path / "runs")}
    where["sweep"] = f"{tmp_path / 'sweep.py'}:two"

    def run(fails="", **more):
        machine = Machine(fails)
        monkeypatch.setattr(sweep.command, "call", machine.call)
        with flagsaver.flagsaver(**where | more):
            return sweep.run(["sweep.py"]), machine

    return run


def test_the_table_holds_scores_differences_nats_and_cost(machine, tmp_path):
    code, first = machine()
    assert code == 0 and len(first.called) == 2 * 2 * 3
    rows = list(csv.reader((tmp_path / "runs" / "table.csv").read_text().splitlines()))
    assert [row[:2] for row in rows] == [["run", "seeds"], ["A", "2"], ["B", "2"]]
    columns = dict(zip(rows[0], rows[2], strict=True))
    right = {"A": np.arange(40) % 3 != 0, "B": np.arange(40) % 5 != 0}
    a, b = (np.mean([right[name][label::2].mean() for label in (0, 1)]) for name in "AB")
    assert float(columns["kNN"]) == pytest.approx(b, abs=1e-4)
    assert float(columns["kNN gain"]) == pytest.approx(b - a, abs=1e-4)
    # 10 steps of 8 images; half an hour of two devices; the last of ten rows.
    assert (columns["images"], columns["device_hours"], columns["nats"]) == ("80", "1.0000", "1.0000")
    text = (tmp_path / "runs" / "table.md").read_text()
    assert "| A | 2 | " in text and "| - | - | 1.00 | 80 | 1.00 |" in text and f"{b - a:+.3f} [" in text
    assert (tmp_path / "runs" / "picture.png").stat().st_size > 1000


def test_what_is_finished_is_left_out_until_its_benchmark_changes(machine, tmp_path):
    machine()
    assert machine()[1].called == []
    (tmp_path / "bench" / "task" / "task.json").write_text("[]")
    assert len(machine(only=1)[1].called) == 3
    assert len(machine()[1].called) == 3 * 3


def test_a_failing_run_ends_the_sweep_or_is_listed(machine, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        machine(fails="seed=1")
    assert ended.value.code == 43
    code, found = machine(fails="base_lr=0.5 --config.seed=1", **{"keep-going": True})
    assert code == 1 and len(found.called) == 3 + 3 + 1  # A with seed 0 was finished before
    assert "launch/main.py ended with 43" in capsys.readouterr().err
    text = (tmp_path / "runs" / "table.md").read_text()
    assert "| A | 2 |" in text and "| B | 1 |" in text and "Failed: `b-seed1-" in text


@pytest.mark.parametrize("code", [42, 130, 143])
def test_a_request_to_stop_ends_the_sweep_that_keeps_going(machine, monkeypatch, code):
    def stopped(line, dry_run=False):
        raise SystemExit(code)

    monkeypatch.setattr(Machine, "call", lambda self, line, dry_run=False: stopped(line))
    with pytest.raises(SystemExit) as ended:
        machine(**{"keep-going": True})
    assert ended.value.code == code


def test_an_array_is_one_line_and_its_tasks_one_run_each(machine, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sweep.py", "--sweep=x.py:two", "--array", "--corpus=a b"])
    assert machine(array=True)[0] == 0
    line = "sbatch --array=0-3 launch/slurm/sweep.sbatch --sweep=x.py:two '--corpus=a b'\n"
    assert capsys.readouterr().out == line
    code, found = machine(only=3)
    assert code == 0 and len(found.called) == 3 and "--config.seed=1" in found.called[0]
    with pytest.raises(UserError, match="--only: found 4; write a number up to 3"):
        machine(only=4)


def test_every_ladder_ends_with_curia_2():
    for sweep_name, file in (("ladder", "curia_vitb"), ("demo_ladder", "demo")):
        runs = list(ablations.SWEEPS[sweep_name].values())
        rates = [stages[0][1].get("optim.base_lr") for stages in runs[:-1]]
        assert rates[-1] > (rates[0] or 2e-4), f"{file}: the higher learning rate is higher"
        for before, after in itertools.pairwise(runs[:-1]):
            changed = {k for k, v in after[0][1].items() if before[0][1].get(k) != v}
            assert changed and len({key.split(".")[0] for key in changed}) == 1


CHAIN = """
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


@pytest.mark.soak
def test_a_chain_of_two_resolutions_runs_is_scored_and_is_not_run_again(tmp_path):
    phantom.write_studies(tmp_path / "studies", 6, seed=3, size=48)
    command("launch/ingest.py", f"--input={tmp_path / 'studies'}", f"--output={tmp_path / 'corpus'}")
    (tmp_path / "sweep.py").write_text(CHAIN)
    line = [
        "launch/sweep.py", f"--sweep={tmp_path / 'sweep.py'}:chain", f"--workdir={tmp_path / 'runs'}",
        f"--corpus={tmp_path / 'corpus'}",
    ]  # fmt: skip
    command(*line)
    (run,) = (tmp_path / "runs").glob("low_then_high-seed0-*")
    saved = (run / "stage_1", 3), (run / "stage_2", 2)
    grids = [checkpoints.restore_item(*where, "params")["backbone"]["pos_embed"] for where in saved]
    assert [grid.shape[1] for grid in grids] == [1 + 2**2, 1 + 4**2]
    # The class token's position is not interpolated: two small steps away from where the first stage left it.
    assert np.abs(grids[1][:, 0] - grids[0][:, 0]).max() < 0.01 < np.abs(grids[0][:, 0]).max()
    assert (tmp_path / "runs" / "table.md").read_text().count("low, then high") == 1
    assert "done before" in command(*line).stdout


def test_data_without_labels_are_refused_before_anything_is_trained(machine, tmp_path):
    with pytest.raises(UserError, match="corpus has no labels to score on; write --data=BENCHMARK"):
        machine(data=None)
    assert not (tmp_path / "runs").exists()
