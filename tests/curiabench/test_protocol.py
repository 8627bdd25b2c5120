"""The lists of the protocol, and what it costs to lengthen them."""

import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from curia2_jax.curiabench import evaluate, heads, protocol
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
    rows = {protocol.TRAINED, protocol.TRAINED_PATCHES, *protocol.BASELINES}
    assert rows == set(protocol.ROWS) and set(protocol.JUDGED_BY) < rows


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
    kind = benchmark_schema.Kind("regression", np.float64, has_classes=False)
    head = protocol.Head("ridge", "Ridge regression", "ridge", "Ridge regression.", ridge)
    metric = protocol.Metric("r2", "R\u00b2", "R\u00b2 is the share of explained variance.", explained)
    scoring = protocol.Scoring("regression", (head,), (metric,), protocol.Primary(head, metric), {"alpha": 10.0})
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
    (folder / "task.json").write_text(json.dumps(card | {"kind": "regression"}))
    return folder.parent


def test_another_kind_of_task_needs_rows_a_head_and_a_score_alone(sizes, tmp_path):
    """No file of the evaluation, the report or the page knows which kinds there are."""
    model = small_benchmark.write_model(tmp_path / "model")
    results = evaluate.evaluate(model, sizes, ["area"], tmp_path / "report", say=lambda line: None)
    assert read(tmp_path / "report") == results
    assert results["settings"]["kind"] == "regression" and results["settings"]["alpha"] == 10
    for row in results["tasks"]["area"]["rows"].values():
        value, low, high = row["ridge"]["r2"]
        assert low <= value <= high and value <= 1
    assert "the trained backbone (R\u00b2 " in results["verdict"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "R\u00b2, 0 to 1" in page and "Ridge regression." in page
    assert "Confusion" not in page and "classes." not in page and ":-" not in page.split("<main>")[1]


def test_tasks_of_two_kinds_have_no_mean(sizes, tmp_path):
    """They are refused in one line that names one of each."""
    split = small_benchmark.organ_samples(range(0, 1))
    half = {"train": split[::2], "test": split[1::2]}
    small_benchmark.write_task(sizes / "organ", half, {i: str(i) for i in range(1, 13)})
    model = small_benchmark.write_model(tmp_path / "model")
    with pytest.raises(UserError, match=r"several kinds, area \(regression\) and organ \(classification\)"):
        evaluate.evaluate(model, sizes, ["area", "organ"], tmp_path / "report", say=lambda line: None)
