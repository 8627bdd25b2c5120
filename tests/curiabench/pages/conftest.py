"""Reports of every kind of task, their numbers computed from drawn answers as an evaluation computes them."""

from typing import NamedTuple

import numpy as np
import pytest

from curia2_jax.curiabench import class_facts, comparison, intervals, pictures, report
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.pages.cases import Case, Cases
from curia2_jax.curiabench.pages.images import Images
from curia2_jax.curiabench.pages.tokens import SlicePicture
from curia2_jax.curiabench.protocol import scoring_of
from curia2_jax.curiabench.results import Results

SCRIPT = "<script>console.error('a label ran')</script>"
CLASSES = ["lung", "kidney_right_and_its_very_long_name", SCRIPT, "nobody has it"]
ROWS = ("trained", "random", "mask-only", "a model & <b>of</b> others")


class Report(NamedTuple):
    results: Results
    answers: Answers
    images: Images


def draw(kind: str) -> Answers:
    """240 samples of 12 patients; the first rows are the better ones."""
    rng = np.random.default_rng(5)
    names = np.array([f"{i:03}" for i in range(240)])
    patients, slices = np.array([f"{i // 20:016x}" for i in range(240)]), names
    targets, found = {
        "classification": _classes, "retrieval": _classes, "regression": _values, "survival": _values,
        "multi-label": _labels, "segmentation": _structures,
    }[kind](rng, kind)  # fmt: skip
    heads = [head.name for head in scoring_of(kind).heads]
    draws = {row: 2 if row == "random" else 1 for row in ROWS}
    outputs = {(row, head): [found[row]] * draws[row] for row in ROWS for head in heads}
    classes = [] if kind in ("regression", "survival") else CLASSES[: 3 if kind == "multi-label" else 4]
    few = {(row, f"{heads[0]}@{percent}%"): seeds * 3 for row in ROWS for percent in (10, 50)
           for seeds in [outputs[row, heads[-1]]]} if kind == "classification" else {}  # fmt: skip
    return Answers(f"a task of {kind}", kind, classes, names, patients, slices, targets, outputs, few)


def _classes(rng, kind):
    targets = rng.integers(0, 3, 240)
    found = {row: rng.dirichlet(np.ones(4) / 3, 240) + np.eye(4)[targets] / (2 + n) for n, row in enumerate(ROWS)}
    return targets, {row: one / one.sum(1, keepdims=True) for row, one in found.items()}


def _values(rng, kind):
    targets = rng.uniform(20, 80, 240) * (1 if kind == "regression" else np.sign(rng.random(240) - 0.3))
    way = 1 if kind == "regression" else -1
    return targets, {row: way * np.abs(targets) + rng.normal(0, 5 + 9 * n, 240) for n, row in enumerate(ROWS)}


def _labels(rng, kind):
    """Some answers unknown."""
    targets = np.where(rng.random((240, 3)) < 0.1, np.nan, rng.random((240, 3)) < 0.4)
    odds = {
        row: (np.nan_to_num(targets) - 0.5) * 4 / (1 + n) + rng.normal(0, 2, (240, 3)) for n, row in enumerate(ROWS)
    }
    return targets, {row: 1 / (1 + np.exp(-one)) for row, one in odds.items()}


def _structures(rng, kind):
    """The last of four on no slice."""
    truth = rng.integers(0, 90, (240, 4)) * (rng.random((240, 4)) < 0.7) * (np.arange(4) < 3)
    found = {}
    for n, row in enumerate(ROWS):
        both = np.round(truth * rng.uniform(0.2, 1 - n / 9, (240, 4)))
        near = np.where(truth > 0, rng.uniform(0, 1, (240, 4)), np.nan)
        found[row] = np.stack([both, both + 9, truth, 20 * near, near], axis=2).reshape(240, 20)
    return np.zeros(240, np.int64), found


def results_of(one: Answers) -> Results:
    """As `evaluate.py` writes them."""
    estimates = comparison.estimates([one], scoring_of(one.kind))
    of_classes = one.kind in ("classification", "retrieval")
    per_class = np.bincount(one.targets, minlength=4).tolist() if of_classes else []
    count = {"samples": 240, "slices": 240, "patients": 12, "per_class": per_class}
    part = {
        "classes": one.classes, "train": count, "test": count, "test_samples_seen_in_train": 0,
        "rare_classes": {}, "resampled": "patient", "validated_on": "patient", "heads": {},
        **comparison.compare(estimates[0]), **class_facts.confusions(one),
    }  # fmt: skip
    if one.aside:
        part["few_shot"] = few_shot_of(one)
    model = {"folder": "runs/<b>", "sha256": "f00d" * 16, "parameters": 21507840, "width": 384, "depth": 12,
             "patch_size": 16, "resolution": 256}  # fmt: skip
    settings = {"device": "cpu", "kind": one.kind, "primary": {}, "versions": {"torch": "2"}}
    made = {"command": "launch/evaluate.py --model=" + "a" * 90, "date": "2026-01-01", "version": "1",
            "commit": "c0ffee", "tasks": {one.task: "5ha"}}  # fmt: skip
    leak = {
        "corpus": "c",
        "salts": "same",
        "patients": 12,
        "patients_in_corpus": 3,
        "images": 240,
        "images_in_corpus": 7,
    }
    out = {"model": model, "settings": settings, "provenance": made, "tasks": {one.task: part},
           "mean": comparison.compare(estimates[0]), "leak": leak}  # fmt: skip
    return out | {"verdict": report.verdict(out)}


def few_shot_of(one: Answers) -> dict:
    """As `few_shot.curve` has it of 30 patients."""
    head, metric = scoring_of(one.kind).primary
    out: dict = {}
    for percent, count in ((10, 3), (50, 15), (100, 30)):
        name = head.name if percent == 100 else f"{head.name}@{percent}%"
        for row in ROWS:
            each = [comparison.alone(one, metric, one_seed) for one_seed in (one.outputs | dict(one.aside))[row, name]]
            score = intervals.interval(intervals.mean(each))
            out.setdefault(row, []).append({"percent": percent, "patients": count, "score": score})
    return out


def images_of(one: Answers) -> Images:
    picture = pictures.png(np.arange(64, dtype=np.uint8).reshape(8, 8), (256, 200))
    case = Case(picture, 17, "0000abcd", f"{SCRIPT} (0.02)", "lung (0.97)", False)
    labels = picture if one.classes else ""
    tokens = [SlicePicture(picture, labels, picture, picture)] * 5
    return Images(tokens, [(SCRIPT, "rgb(1, 2, 3)")] if labels else [], Cases([case] * 10, [case] * 10))


@pytest.fixture(scope="package")
def reports() -> dict[str, Report]:
    kinds = ("classification", "regression", "survival", "retrieval", "multi-label", "segmentation")
    found = {kind: draw(kind) for kind in kinds}
    return {kind: Report(results_of(one), one, images_of(one)) for kind, one in found.items()}
