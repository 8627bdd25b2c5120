"""Reports of three kinds of task, their numbers computed from drawn answers as an evaluation computes them."""

from typing import NamedTuple

import numpy as np
import pytest

from curia2_jax.curiabench import comparison, evaluate, pictures, report
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
    if kind in ("classification", "retrieval"):
        targets = rng.integers(0, 3, 240)
        outputs = {row: rng.dirichlet(np.ones(4) / 3, 240) + np.eye(4)[targets] / (2 + n) for n, row in enumerate(ROWS)}
        found = {row: one / one.sum(1, keepdims=True) for row, one in outputs.items()}
    else:
        targets = rng.uniform(20, 80, 240) * (1 if kind == "regression" else np.sign(rng.random(240) - 0.3))
        way = 1 if kind == "regression" else -1
        found = {row: way * np.abs(targets) + rng.normal(0, 5 + 9 * n, 240) for n, row in enumerate(ROWS)}
    heads = [head.name for head in scoring_of(kind).heads]
    draws = {row: 2 if row == "random" else 1 for row in ROWS}
    outputs = {(row, head): [found[row]] * draws[row] for row in ROWS for head in heads}
    classes = CLASSES if kind in ("classification", "retrieval") else []
    return Answers(f"a task of {kind}", kind, classes, names, patients, slices, targets, outputs)


def results_of(one: Answers) -> Results:
    """As `evaluate.py` writes them."""
    estimates = comparison.estimates([one], scoring_of(one.kind))
    per_class = np.bincount(one.targets, minlength=4).tolist() if one.classes else []
    count = {"samples": 240, "slices": 240, "patients": 12, "per_class": per_class}
    part = {
        "classes": one.classes, "train": count, "test": count, "test_samples_seen_in_train": 0,
        "rare_classes": {}, "resampled": "patient", "validated_on": "patient", "heads": {},
        **comparison.compare(estimates[0]), **evaluate.confusions(one),
    }  # fmt: skip
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


def images_of(one: Answers) -> Images:
    picture = pictures.png(np.arange(64, dtype=np.uint8).reshape(8, 8), (256, 200))
    case = Case(picture, 17, "0000abcd", f"{SCRIPT} (0.02)", "lung (0.97)", False)
    labels = picture if one.classes else ""
    tokens = [SlicePicture(picture, labels, picture, picture)] * 5
    return Images(tokens, [(SCRIPT, "rgb(1, 2, 3)")] if labels else [], Cases([case] * 10, [case] * 10))


@pytest.fixture(scope="package")
def reports() -> dict[str, Report]:
    found = {kind: draw(kind) for kind in ("classification", "regression", "survival", "retrieval")}
    return {kind: Report(results_of(one), one, images_of(one)) for kind, one in found.items()}
