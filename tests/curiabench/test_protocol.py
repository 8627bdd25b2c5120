"""The lists of the protocol, and what it costs to lengthen them."""

import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from curia2_jax.curiabench import answers, comparison, evaluate, heads, protocol
from curia2_jax.curiabench.results import read
from curia2_jax.data.ingest import benchmark_schema
from curia2_jax.errors import UserError
from tests import small_benchmark


def test_every_kind_that_can_be_read_can_be_scored():
    """Schema and protocol name the same kinds, and the primary score is one of those that are computed."""
    assert [scoring.kind for scoring in protocol.SCORINGS] == [kind.name for kind in benchmark_schema.KINDS]
    for scoring in protocol.SCORINGS:
        assert scoring.primary.head in scoring.heads and scoring.primary.metric in scoring.metrics
    assert protocol.PRIMARY == (protocol.LINEAR, protocol.BALANCED_ACCURACY)
    assert set(protocol.JUDGED_BY) < set(protocol.ROWS) and protocol.TRAINED not in protocol.JUDGED_BY


def ridge(problem: heads.Problem) -> heads.Prediction:
    """A head of a kind that this house does not have."""
    return heads.Prediction(Ridge(10.0).fit(problem.train, problem.targets).predict(problem.test), {"alpha": 10.0})


def explained(targets, outputs, groups, weights):
    """Share of the variance that is explained, of every resample; negative for what is worse than the mean."""
    weights = weights[:, groups] / weights[:, groups].sum(1, keepdims=True)
    spread = (weights * (targets - (weights @ targets)[:, None]) ** 2).sum(1)
    return 1 - (weights * (targets - outputs) ** 2).sum(1) / np.where(spread > 0, spread, np.nan)


@pytest.fixture
def sizes(tmp_path, monkeypatch):
    """A benchmark with one task of a new kind, `regression`: the area of the structure that is asked about."""
    kind = benchmark_schema.Kind("area", np.float64, has_classes=False)
    head = protocol.Head("ridge", "Ridge regression", "ridge", "Ridge regression.", ridge)
    metric = protocol.Metric("r2", "R\u00b2", "R\u00b2 is the share of explained variance.", explained)
    scoring = protocol.Scoring("area", (head,), (metric,), protocol.Primary(head, metric), {"alpha": 10.0})
    monkeypatch.setattr(benchmark_schema, "KINDS", (*benchmark_schema.KINDS, kind))
    monkeypatch.setattr(protocol, "SCORINGS", (*protocol.SCORINGS, scoring))
    samples = {"train": small_benchmark.organ_samples(range(0, 6)), "test": small_benchmark.organ_samples(range(6, 10))}
    folder = small_benchmark.write_task(tmp_path / "benchmark" / "area", samples, {})
    for split, rows in samples.items():
        path = folder / split / benchmark_schema.TABLE
        table = np.load(path).astype(benchmark_schema.table_dtype(kind))
        table["target"] = [mask.sum() / 100 for _, mask, *_ in rows]
        np.save(path, table)
    card = json.loads((folder / "task.json").read_text())
    del card["classes"]
    (folder / "task.json").write_text(json.dumps(card | {"kind": "area"}))
    return folder.parent


def test_another_kind_of_task_needs_rows_a_head_and_a_score_alone(sizes, tmp_path):
    """No file of the evaluation, the report or the page knows which kinds there are."""
    model = small_benchmark.write_model(tmp_path / "model")
    results = evaluate.evaluate(model, sizes, ["area"], tmp_path / "report", say=lambda line: None)
    assert read(tmp_path / "report") == results
    assert results["settings"]["kind"] == "area" and results["settings"]["alpha"] == 10
    for row in results["tasks"]["area"]["rows"].values():
        value, low, high = row["ridge"]["r2"]
        assert low <= value <= high and value <= 1
    assert "the trained backbone (R\u00b2 " in results["verdict"]
    index, page = ((tmp_path / "report" / name).read_text() for name in ("report.html", "tasks/area.html"))
    assert "R\u00b2, 0 to 1" in page and "Ridge regression." in index
    for source in (index, page):
        assert "taken for what" not in source and "classes." not in source and ":-" not in source.split("<main>")[1]


def test_tasks_of_two_kinds_have_no_mean(sizes, tmp_path):
    """They are refused in one line that names one of each."""
    split = small_benchmark.organ_samples(range(0, 1))
    half = {"train": split[::2], "test": split[1::2]}
    small_benchmark.write_task(sizes / "organ", half, {i: str(i) for i in range(1, 13)})
    model = small_benchmark.write_model(tmp_path / "model")
    with pytest.raises(UserError, match=r"several kinds, area \(area\) and organ \(classification\)"):
        evaluate.evaluate(model, sizes, ["area", "organ"], tmp_path / "report", say=lambda line: None)


@pytest.mark.parametrize("kind, score, at_least", [
    ("regression", ("ridge", "r2"), 0.5), ("survival", ("cox", "concordance"), 0.7),
    ("retrieval", ("nearest", "recall_at_1"), 0.6),
])  # fmt: skip
def test_a_task_of_every_kind_is_scored_and_its_predictions_are_read_again(tmp_path, kind, score, at_least):
    """Targets that follow from the brightness of a slice, which the mean of the pixels tells."""
    rng = np.random.default_rng(0)
    light = rng.uniform(0, 6, 60)
    bright = light.round() if kind == "retrieval" else light
    times = np.where(rng.random(60) < 0.8, 9 - light, light - 9)
    targets = {"regression": light * 9, "survival": times, "retrieval": bright}[kind]
    rows = [(100 * one + rng.normal(0, 5, (32, 32)), None, 0, f"p{n}", "MR") for n, one in enumerate(bright)]
    names = {number: f"level {number}" for number in range(7)} if kind == "retrieval" else {}
    splits = {"train": rows[:40], "test": rows[40:]}
    folder = small_benchmark.write_task(tmp_path / "data" / "task", splits, names, False)
    known = next(one for one in benchmark_schema.KINDS if one.name == kind)
    for split, part in (("train", targets[:40]), ("test", targets[40:])):
        path = folder / split / benchmark_schema.TABLE
        table = np.load(path).astype(benchmark_schema.table_dtype(known))
        table["target"] = part
        np.save(path, table)
    card = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(card | {"kind": kind}))
    model = small_benchmark.write_model(tmp_path / "model")
    results = evaluate.evaluate(model, folder.parent, ["task"], tmp_path / "report", say=lambda line: None)
    head, metric = score
    value, low, high = results["tasks"]["task"]["rows"]["pixels"][head][metric]
    assert at_least < value <= 1 and low <= value <= high
    (again,) = answers.read(tmp_path / "report")
    scored = comparison.compare(comparison.estimates([again], protocol.scoring_of(kind))[0])
    assert scored["rows"]["pixels"][head][metric] == pytest.approx([value, low, high])
