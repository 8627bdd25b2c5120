"""Registration from folders to the report through the command, and what may be asked beside it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from curia2_jax.curiabench import answers, asking, comparison, paired, protocol, tasks
from curia2_jax.curiabench.model import load_model
from curia2_jax.curiabench.others import Others, Waiting
from curia2_jax.curiabench.pages.classes import per_structure
from curia2_jax.errors import UserError
from tests import small_benchmark
from tests.curiabench.registration import scans

SCRIPT = pathlib.Path(__file__).resolve().parents[3] / "launch" / "evaluate.py"
HEAD = "convex-adam"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model, and a task of two pairs: of one patient, and of this patient with another."""
    root = tmp_path_factory.mktemp("root")
    model = small_benchmark.write_model(root / "model", patch=4)
    folder = scans.write(root / "data" / "organs", "mm", patients=2)
    (folder / "test" / "pairs.csv").write_text("fixed,moving\na0,b0\na0,b1\n")
    return model, root / "data", root / "report"


@pytest.fixture(scope="module")
def report(places):
    model, data, output = places
    line = [sys.executable, SCRIPT, "--model", model, "--data", data, "--output", output, "--random", model]
    done = subprocess.run(
        list(map(str, line)), capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((output / "results.json").read_text()), output


def test_every_row_is_in_the_report_beside_volumes_as_they_lie(report):
    said, results, output = report
    task = results["tasks"]["organs"]
    assert list(task["rows"]) == ["identity", "pixels", "trained", "random", "pixels-linear"]
    for name in ("No displacement", "Raw pixels", "Trained backbone"):
        assert name in said and name in (output / "pages" / "organs.html").read_text()
    scores = {row: {name: one[0] for name, one in heads[HEAD].items()} for row, heads in task["rows"].items()}
    still = scores["identity"]
    assert still["minus_sd_log_j"] == still["minus_folded"] == 0
    assert scores["trained"] == scores["random"]  # --random is the model itself
    for row in ("pixels", "trained", "pixels-linear"):
        assert 0 < scores[row]["dice"] < 1 and scores[row]["minus_sd_log_j"] < 0
    assert task["trained_minus"]["identity"][HEAD]["dice"][1] is not None
    assert task["test"] == {"samples": 2, "slices": 2, "patients": 2, "per_class": []} and "train" not in task
    assert task["resampled"] == "patient" and task["heads"]["trained"][HEAD] == {"channels": 24}
    assert task["heads"]["pixels"][HEAD] == {"channels": 1}
    page = (output / "pages" / "organs.html").read_text()
    assert (
        "2 pairs of volumes of 2 patients" in page
        and "A pair counts for the patients" in (output / "report.html").read_text()
    )
    (kept,) = answers.read(output)
    lines = per_structure(kept, "trained", HEAD)
    assert [one.name for one in lines] == ["liver", "spleen"] and [one.patients for one in lines] == [2, 2]
    for name in ("dice", "surface_dice", "minus_hd95"):
        assert np.mean([getattr(one, name)[0] for one in lines]) == pytest.approx(scores["trained"][name])
    assert f"<td>{lines[0].dice[0]:.3f}<small>" in page
    assert results["settings"]["adam"]["steps"] == 80 and "volumes as they lie" in results["verdict"]


def test_a_known_warp_is_undone(report):
    """Of the pair of one patient: landmarks of 3.9 mm end within 0.7 mm, a third of a slice, and labels agree."""
    _, _, output = report
    (kept,) = answers.read(output)
    assert kept.samples.tolist() == ["a0 b0", "a0 b1"]
    assert kept.patients.tolist() == [["patient 0", "patient 0"], ["patient 0", "patient 1"]]
    marks = np.random.default_rng(9).uniform(0.3, 0.7, (scans.MARKS, 3)) * scans.SHAPE
    apart = np.linalg.norm(scans.warp(marks.T).T * scans.SPACING, axis=1).mean()
    still, moved = (kept.outputs[row, HEAD][0][0] for row in ("identity", "pixels"))
    assert still[-3] == pytest.approx(apart) and apart > 3.5 and moved[-3] < 0.7
    dice = [2 * one[[0, 5]] / (one[[1, 6]] + one[[2, 7]]) for one in (still, moved)]
    assert (dice[0] < 0.7).all() and (dice[1] > 0.9).all()


def test_scores_follow_from_the_predictions_and_reports_are_compared_by_them(report):
    _, results, output = report
    (kept,) = answers.read(output)
    scored = comparison.compare(comparison.estimates([kept], protocol.scoring_of("registration"))[0])
    assert scored["rows"] == results["tasks"]["organs"]["rows"]
    (line,) = paired.compare([kept], [kept])
    assert line.gain[0] == 0 and line.patients == 2


def test_what_registration_has_not_is_refused_before_any_pair_is_read(places):
    model, data, _ = places
    loaded, task = load_model(model, "cpu"), tasks.read_task(data, "organs")
    scoring = protocol.scoring_of(task.kind.name)
    for setting in ("few-shot", "attention"):
        with pytest.raises(UserError, match=f"--setting={setting}: organs is registration, which has no such setting"):
            next(asking.ask([task], scoring, loaded, Others(), [setting], print))
    with pytest.raises(UserError, match="--setting=cross-modality: organs is registration"):
        tasks.across(task)


def test_landmarks_alone_are_a_kind_of_their_own(tmp_path, places, monkeypatch):
    """Scored by minus TRE; other people's models stand beside ours."""
    monkeypatch.setattr("curia2_jax.curiabench.registration.adam.STEPS", 2)
    monkeypatch.setattr("curia2_jax.curiabench.registration.search.HALF_WIDTH", 1)
    scans.write(tmp_path / "marks", labels=False, patients=1)
    task = tasks.read_task(tmp_path, "marks")
    scoring, said = protocol.scoring_of(task.kind.name), []
    assert scoring.primary.metric.name == "minus_tre" and not task.classes
    loaded = load_model(places[0], "cpu", began=[places[0]])
    other = next(load for _, load in asking.features.backbones(loaded, Others()))()
    beside = Others((Waiting("mine", "slice", "", "", lambda: other),))
    (asked,) = asking.ask([task], scoring, loaded, beside, [], said.append)
    assert [seeds[0].shape for seeds in asked.outputs.values()] == [(1, 3)] * 6
    np.testing.assert_array_equal(asked.outputs["mine", HEAD], asked.outputs["trained", HEAD])
    assert said[-1].startswith("registration of features of all") and len(said) == 5
    whole = Others((Waiting("net", "volume", "", "", lambda: other),))
    with pytest.raises(UserError, match="net takes whole volumes, and marks, which is landmark-registration, asks"):
        next(asking.ask([task], scoring, loaded, whole, [], print))
