"""An evaluation from the folders to the report."""

import csv
import hashlib
import json
import re

import numpy as np
import pytest
from pyarrow import parquet
from scipy import special, stats
from sklearn import metrics

from curia2_jax.curiabench import answers, comparison, evaluate, features, heads, protocol, tasks
from curia2_jax.curiabench.model import load_model
from curia2_jax.curiabench.results import read
from curia2_jax.errors import UserError
from tests import small_benchmark


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_benchmark.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return small_benchmark.write_benchmark(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def scored(model, benchmark, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    said = []
    results = evaluate.evaluate(model, benchmark, tasks.task_names(benchmark), output, say=said.append)
    return results, output, said


def test_three_rows_two_heads_three_scores_and_the_files(scored):
    """Everything is scored, the files hold what is returned, and a line is said a stage."""
    results, output, said = scored
    assert json.loads((output / "results.json").read_text()) == results == read(output)
    names = ["predictions.parquet", "report.html", "results.json", "scores.csv", "table.tex"]
    pages = ["pages/organs-ct.html", "pages/organs-mr.html"]
    assert sorted(str(path.relative_to(output)) for path in output.rglob("*.*")) == [*pages, *names]
    assert results["verdict"] in (output / "report.html").read_text().replace("&#39;", "'")
    assert list(results["tasks"]) == ["organs-ct", "organs-mr"]
    assert len(said) == 5 + 3 + 2  # a model that encodes, all features, heads of a task
    for part in (*results["tasks"].values(), results["mean"]):
        assert list(part["rows"]) == ["trained", "random", "pixels-linear", "mask-only", "pixels"]
        for heads_of_row in part["rows"].values():
            for by_metric in heads_of_row.values():
                for value, low, high in by_metric.values():
                    assert 0 <= low <= value <= high <= 1


def answer_of(model, task, row, head=heads.linear_probe):
    """What a head makes of a row: patients kept apart, tokens compared by direction and pixels by distance."""
    loaded = load_model(model, "cpu")
    train, test = features.extract([task.train, task.test], loaded)
    classes = np.array(sorted(task.classes))
    groups = np.unique(task.train.patients, return_inverse=True)[1]
    before, after = train.rows[row][0], test.rows[row][0]
    problem = heads.Problem(before, task.train.targets, groups, after, classes, row not in ("pixels", "mask-only"))
    return head(problem)


def test_pages_of_tasks_show_cases_and_tokens_and_no_names(scored):
    """Ten worst and ten best, six slices in four rows; tables that are not of our ingest may hold real names."""
    _, output, _ = scored
    page = (output / "pages" / "organs-ct.html").read_text()
    assert page.count('<figure class="case">') == 20 and page.count("<img ") == 20 + 6 * 4
    assert "patient 3<" in page and not re.search(r"patient 1[246]|sample_\d", page)


def test_scores_are_those_of_scikit_learn_on_the_same_features(scored, model, benchmark):
    """Accuracy, recall, confusion and the chosen C of one row, computed beside the evaluation."""
    results = scored[0]["tasks"]["organs-ct"]
    task = tasks.read_task(benchmark, "organs-ct")
    got = answer_of(model, task, "mask-only")
    classes = np.array(sorted(task.classes))
    predicted = classes[got.outputs.argmax(1)]
    row = results["rows"]["mask-only"]["linear"]
    assert row["accuracy"][0] == pytest.approx(metrics.accuracy_score(task.test.targets, predicted))
    assert row["balanced_accuracy"][0] == pytest.approx(metrics.balanced_accuracy_score(task.test.targets, predicted))
    assert results["heads"]["mask-only"]["linear"] == got.settings
    confusion = np.array(results["confusion"]["mask-only"]["linear"])
    np.testing.assert_array_equal(confusion.sum(1), results["test"]["per_class"])
    assert confusion.trace() == (predicted == task.test.targets).sum()


@pytest.mark.parametrize("row", ["trained", "random", "pixels"])
def test_neighbors_of_every_row_are_those_of_its_own_features(scored, model, benchmark, row):
    """Pixels have no direction, tokens have one; no row is scored with the features of another."""
    task = tasks.read_task(benchmark, "organs-ct")
    got = answer_of(model, task, row, heads.nearest_neighbors)
    predicted = np.array(sorted(task.classes))[got.outputs.argmax(1)]
    confusion = metrics.confusion_matrix(task.test.targets, predicted, labels=sorted(task.classes))
    assert scored[0]["tasks"]["organs-ct"]["confusion"][row]["knn"] == confusion.tolist()


def test_intervals_are_those_of_a_jackknife_over_test_patients(scored, model, benchmark):
    """Half of a patient away is scored by scikit-learn with half the sample weight; t on the logit scale."""
    task = tasks.read_task(benchmark, "organs-mr")
    got = answer_of(model, task, "trained")
    predicted = np.array(sorted(task.classes))[got.outputs.argmax(1)]
    patients = np.unique(task.test.patients)
    right = predicted == task.test.targets
    left = [metrics.accuracy_score(task.test.targets, predicted, sample_weight=1 - 0.5 * (task.test.patients == p))
            for p in patients]  # fmt: skip
    n, value = len(patients), right.mean()
    pseudo = value + (n - 0.5) / 0.5 * (value - np.array(left))
    reach = stats.t.ppf(0.975, n - 1) * pseudo.std(ddof=1) / np.sqrt(n) / (value * (1 - value))
    expected = special.expit(special.logit(value) + np.array([-reach, reach]))
    row = scored[0]["tasks"]["organs-mr"]["rows"]["trained"]["linear"]
    np.testing.assert_allclose(row["accuracy"][1:], expected, rtol=1e-9)


def test_everything_follows_from_the_predictions_on_disk(scored):
    """Read back, they give every score of results.json bit for bit, and scores.csv has the same numbers."""
    results, output, _ = scored
    scoring = protocol.scoring_of("classification")
    estimates = comparison.estimates(answers.read(output), scoring)
    for (name, task), found in zip(results["tasks"].items(), estimates, strict=True):
        compared = json.loads(json.dumps(comparison.compare(found)))
        assert {key: task[key] for key in compared} == compared, name
    rows = list(csv.DictReader((output / "scores.csv").read_text().splitlines()))
    for row in rows:
        part = results["tasks"].get(row["task"], results["mean"])
        name = row["row"].removeprefix("trained minus ")
        table = part["rows" if name == row["row"] else "trained_minus"]
        assert [float(row[key]) for key in ("value", "lower", "upper")] == table[name][row["head"]][row["score"]]
    assert len(rows) == 3 * (5 + 4) * 2 * 3


def test_a_row_of_the_predictions_names_its_file_by_task_and_sample_and_its_numbers_by_a_hash(scored, benchmark):
    """The image is where both say, and has that hash; patient and target are those of its row in the table."""
    table = parquet.read_table(scored[1] / "predictions.parquet").to_pylist()
    for row in table[:: len(table) // 40]:
        folder = benchmark / row["task"] / "test"
        image = np.load(folder / "images" / f"{row['sample']}.npy")
        named = repr(image.shape).encode() + (image.astype(np.float32) + np.float32(0)).tobytes()
        assert row["slice"] == hashlib.blake2b(named, digest_size=16).hexdigest()
        told = np.load(folder / "extra_data.npy")
        (of,) = told[told["filename"] == row["sample"]]
        classes = sorted(int(number) for number in json.loads((folder.parent / "task.json").read_text())["classes"])
        assert (row["patient"], classes[int(row["target"])]) == (of["patient_id"], of["target"])


def test_random_rows_are_the_mean_of_three_draws(scored):
    """With every single value beside it."""
    task = scored[0]["tasks"]["organs-mr"]
    values = task["seeds"]["random"]["knn"]["auroc"]
    assert len(set(values)) == 3
    assert task["rows"]["random"]["knn"]["auroc"][0] == pytest.approx(np.mean(values))


def test_differences_and_means_are_those_of_the_rows(scored):
    """Values of differences and of the mean of the tasks follow from those of the rows."""
    results = scored[0]
    for part in (*results["tasks"].values(), results["mean"]):
        for row, heads_of_row in part["trained_minus"].items():
            for head, by_metric in heads_of_row.items():
                for metric, (value, low, high) in by_metric.items():
                    trained, other = (part["rows"][r][head][metric][0] for r in ("trained", row))
                    assert value == pytest.approx(trained - other)
                    assert low <= value <= high
    one, two = (task["rows"]["trained"]["knn"]["auroc"][0] for task in results["tasks"].values())
    assert results["mean"]["rows"]["trained"]["knn"]["auroc"][0] == pytest.approx((one + two) / 2)


def test_patients_are_counted_and_resampled(scored):
    """Six patients to train on, three to test on, and no slice in both."""
    for task in scored[0]["tasks"].values():
        assert task["train"]["patients"] == 6
        assert task["test"]["patients"] == 3
        assert task["resampled"] == "patient"
        assert task["test_samples_seen_in_train"] == 0
        assert task["test"]["slices"] < task["test"]["samples"]


def test_tokens_of_anything_tell_more_than_two_numbers_of_the_pixels(scored):
    """The rows are what they are called: two numbers cannot name twelve organs."""
    mean = scored[0]["mean"]["rows"]
    assert mean["pixels"]["linear"]["balanced_accuracy"][0] < 0.4 < mean["trained"]["linear"]["balanced_accuracy"][0]


def test_scoring_again_gives_the_same_numbers(scored, model, benchmark, tmp_path):
    """Bit for bit, however often a task is named and whatever is scored beside it."""
    again = evaluate.evaluate(model, benchmark, ["organs-mr", "organs-mr"], tmp_path / "a", say=lambda line: None)
    assert list(again["tasks"]) == ["organs-mr"]
    before, now = (results["tasks"]["organs-mr"] for results in (scored[0], again))
    assert before["confusion"] == now["confusion"] and before["seeds"] == now["seeds"]
    for row, by_head in before["rows"].items():
        for head, by_metric in by_head.items():
            for metric, score in by_metric.items():
                assert score[0] == now["rows"][row][head][metric][0]
                assert score == pytest.approx(now["rows"][row][head][metric], rel=1e-12)


def test_one_patient_is_said_to_be_one(model, tmp_path):
    """Intervals over slices of one patient are called too narrow, in words."""
    samples = [(*rest, "the only one", m) for *rest, _, m in small_benchmark.organ_samples(range(0, 1))]
    split = {"train": samples[::2], "test": samples[1::2]}
    task = small_benchmark.write_task(tmp_path / "organs", split, {i: str(i) for i in range(1, 13)})
    results = evaluate.evaluate(model, task.parent, ["organs"], tmp_path / "report", say=lambda line: None)
    assert results["tasks"]["organs"]["resampled"] == "slice"
    assert "on slices of one patient" in results["verdict"]
    for page in ("report.html", "pages/organs.html"):
        assert "too narrow" in (tmp_path / "report" / page).read_text()


def test_slices_that_are_in_both_splits_are_reported(model, tmp_path):
    """A test slice that train has too is counted, said, and warned of on the page."""
    samples = small_benchmark.organ_samples(range(0, 3, 2))
    other = [(*rest, "another patient", m) for *rest, _, m in samples if m == "CT"][:7]
    split = {"train": samples, "test": other}
    task = small_benchmark.write_task(tmp_path / "organs", split, {i: str(i) for i in range(1, 13)})
    said = []
    results = evaluate.evaluate(model, task.parent, ["organs"], tmp_path / "report", say=said.append)
    assert results["tasks"]["organs"]["test_samples_seen_in_train"] == 7
    assert said[-1] == "warning: organs: 7 of 7 test samples lie on slices that are also in train"
    for page in ("report.html", "pages/organs.html"):
        assert "not scores on new patients" in (tmp_path / "report" / page).read_text()


def test_output_that_cannot_be_a_folder(model, benchmark, tmp_path):
    """A file where the report should go is one line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output: cannot make the folder"):
        evaluate.evaluate(model, benchmark, ["organs-ct"], tmp_path / "file", say=lambda line: None)
