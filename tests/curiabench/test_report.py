"""The printed table, the table for a paper, the forest and the verdict, from results made by hand."""

import copy

import pytest

from curia2_jax.curiabench import protocol, report


def part(trained, random, pixels, margin):
    scores = {"trained": trained, "random": random, "pixels": pixels}
    metrics = ("accuracy", "balanced_accuracy", "auroc")

    def about(value, signed=False):
        return {head: {m: [value, value - margin, value + margin] for m in metrics} for head in ("linear", "knn")}

    rows = {row: about(value) for row, value in scores.items()}
    return {"rows": rows, "trained_minus": {row: about(trained - scores[row]) for row in ("random", "pixels")}}


def results(trained=0.8, random=0.6, pixels=0.3, margin=0.1, patients=12):
    one = part(trained, random, pixels, margin)
    count = {"samples": 1234, "slices": 300, "patients": patients, "per_class": [600, 634, 0]}
    task = {
        "classes": ["liver", "<spleen>", "kidney"],
        "train": count,
        "test": count,
        "test_samples_seen_in_train": 0,
        "rare_classes": {},
        "resampled": "patient" if patients > 1 else "slice",
        "confusion": {"trained": {"linear": [[597, 3, 0], [34, 600, 0], [0, 0, 0]]}},
        **one,
    }
    model = {
        "folder": "runs/<b>", "sha256": "f00d", "parameters": 21507840, "width": 384, "depth": 12,
        "patch_size": 16, "resolution": 256,
    }  # fmt: skip
    settings = {
        "neighbors": 20,
        "temperature": 0.07,
        "device": "cpu",
        "versions": {"torch": "2"},
    }
    out = {"model": model, "settings": settings, "tasks": {"organs": task}, "mean": one}
    return out | {"verdict": report.verdict(out)}


@pytest.mark.parametrize(
    ("random", "pixels", "words"),
    [
        (
            0.6,
            0.3,
            "is better than raw pixels (0.300; difference +0.500, 95 % interval +0.400 to +0.600) and better than",
        ),
        (0.75, 0.3, "and not distinguishable from the same backbone with random weights (0.750; difference +0.050"),
        (
            0.95,
            0.95,
            "is worse than raw pixels (0.950; difference -0.150, 95 % interval -0.250 to -0.050) and worse than",
        ),
    ],
)
def test_verdict_says_better_only_when_the_interval_is_above_zero(random, pixels, words):
    """Better, worse, or not distinguishable, by the interval of the difference."""
    assert words in report.verdict(results(random=random, pixels=pixels))


def test_verdict_says_on_how_many_patients_and_tasks():
    """The sentence names the smallest number of test patients and the number of tasks."""
    assert "(balanced accuracy 0.800, on 12 test patients)" in results()["verdict"]
    assert "(balanced accuracy 0.800, on slices of one patient)" in results(patients=1)["verdict"]
    two = results()
    two["tasks"]["second"] = copy.deepcopy(two["tasks"]["organs"])
    two["tasks"]["second"]["test"]["patients"] = 3
    assert "mean of 2 tasks, on 3 test patients in the smallest)" in report.verdict(two)


@pytest.mark.parametrize(("patients", "begins"), [(1, "No verdict"), (9, "No verdict"), (10, "The trained backbone")])
def test_no_verdict_under_ten_patients(patients, begins):
    """However far apart the scores are, few patients call nobody better."""
    said = results(patients=patients)["verdict"]
    assert said.startswith(begins)
    assert ("better" in said) == (patients >= 10)
    assert "0.300; difference +0.500, 95 % interval +0.400 to +0.600" in said


def test_a_task_that_the_mask_answers_is_named():
    """Where place and shape without pixels do as well by any head, the verdict says what that means."""
    found = results()
    task = found["tasks"]["organs"]
    task["rows"]["mask-only"] = task["rows"]["trained"]
    gain = {head: dict(scores) for head, scores in task["trained_minus"]["pixels"].items()}
    task["trained_minus"]["mask-only"] = gain
    assert "without any pixel" not in report.verdict(found)
    gain["knn"]["balanced_accuracy"] = [0.01, -0.02, 0.04]
    assert report.verdict(found).endswith(
        "Place and shape of the mask, without any pixel, do as well in organs (kNN 0.800): that says nothing of a "
        "backbone."
    )


def test_the_table_for_a_paper_has_a_column_a_row_of_the_protocol():
    """The primary score with its interval, names escaped, and a line a task."""
    found = results()
    found["tasks"] = {"or_gans": found["tasks"]["organs"]}
    lines = report.tex(found).splitlines()
    assert lines[1:4] == ["\\begin{tabular}{lccc}", "\\toprule", "task & trained & random & raw pixels \\\\"]
    cells = [r"{} \,{{\scriptsize [{}, {}]}}".format(*one) for one in (
        ("0.800", "0.700", "0.900"), ("0.600", "0.500", "0.700"), ("0.300", "0.200", "0.400"))]  # fmt: skip
    assert lines[5] == " & ".join([r"or\_gans", *cells]) + r" \\"


def test_the_forest_has_a_line_a_difference_on_one_axis():
    """Zero and every end lie where their values do; few patients, or an interval with zero in it, are no difference."""
    found = results(random=0.75, pixels=0.3)
    found["tasks"]["few"] = copy.deepcopy(found["tasks"]["organs"])
    found["tasks"]["few"]["test"]["patients"] = 3
    lines, zero, (low, high) = report.forest(found)
    assert [name for name, _ in lines] == ["organs", "few", "mean of the tasks"]
    assert [(line.row.name, line.sure) for line in lines[0][1]] == [("random", False), ("pixels", True)]
    assert not any(line.sure for _, part in lines[1:] for line in part)
    assert (low, high) == pytest.approx((-0.05, 0.6)) and low + zero * (high - low) == pytest.approx(0)
    for _, part in lines:
        for line in part:
            places = [low + at * (high - low) for at in (line.middle, line.low, line.high)]
            assert places == pytest.approx(line.score)


def test_an_undefined_score_is_said_to_be_so():
    """A score that cannot be computed is neither 0 nor a crash."""
    undefined = results()
    for place in (undefined["mean"], undefined["tasks"]["organs"]):
        place["rows"]["pixels"]["knn"]["auroc"] = [None, None, None]
        place["trained_minus"]["pixels"]["knn"]["auroc"] = [None, None, None]
    assert report.table(undefined).count("undefined") == 1


def test_table_has_a_line_a_row():
    """One line a row and the brief metrics of both heads."""
    lines = report.table(results()).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("organs  Trained backbone")
    assert lines[1].count("0.800 [0.700, 0.900]") == 4


def test_the_verdict_is_about_the_primary_score(monkeypatch):
    """Another primary score is another sentence, without a change of the report's code."""
    found = results()
    for row, value in (("trained", 0.9), ("random", 0.2), ("pixels", 0.4)):
        found["mean"]["rows"][row]["knn"]["auroc"] = [value, value, value]
    for row, value in (("random", 0.7), ("pixels", 0.5)):
        found["mean"]["trained_minus"][row]["knn"]["auroc"] = [value, value - 0.1, value + 0.1]
    scoring = protocol.scoring_of("classification")
    other = scoring._replace(primary=protocol.Primary(protocol.KNN, protocol.AUROC))
    monkeypatch.setattr(protocol, "SCORINGS", (other,))
    sentence = report.verdict(found)
    assert sentence.startswith(
        "The trained backbone (AUROC 0.900, on 12 test patients) is better than raw pixels (0.400;"
    )
