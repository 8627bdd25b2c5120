"""Scores an exported model on the tasks of a folder and writes the report.

Three rows always stand side by side: the trained backbone, the same backbone with random weights, and mean and spread
of the raw pixels. A trained backbone that does not beat the other two has learnt nothing that the task needs.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from curia2_jax.curiabench import features, heads, pictures, report, scores, tasks
from curia2_jax.errors import UserError

ROWS = ("trained", "random", "pixels")
HEADS = ("linear", "knn")
AGAINST = ("random", "pixels")
PRIMARY = ("linear", "balanced_accuracy")


def evaluate(
    model_folder: str | Path,
    data: str | Path,
    names: Sequence[str],
    output: str | Path,
    device: str = "cpu",
    run_pictures: Sequence[Path] = (),
    say: Callable[[str], None] = print,
) -> dict:
    """Scores tasks `names` of the benchmark folder `data`; writes `output`/results.json and `output`/report.html.

    run_pictures: PNG files of the training run to show in the report. say: receives one line a stage. Returns what
    results.json holds: scores are [value, lower, upper] of a 95 % interval, None where undefined. Raises UserError.
    """
    chosen = [tasks.read_task(data, name) for name in dict.fromkeys(names)]
    model = features.load_model(model_folder, device)
    output = Path(output)
    _writable(output)
    results: dict = {"model": _describe(model, model_folder), "settings": _settings(device), "tasks": {}}
    draws, shown = [], {}
    for number, task in enumerate(chosen):
        results["tasks"][task.name], distribution, slices = _score(task, model, number, say)
        draws.append(distribution)
        shown[task.name] = pictures.token_pictures(task.test, model, slices)
    results["mean"] = _summary([_mean([one[part] for one in draws]) for part in range(2)])
    results["verdict"] = report.verdict(results)
    page = report.render(results, shown, {path.stem: pictures.embed(path) for path in run_pictures})
    _write(output / "report.html", page)
    _write(output / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make the folder {folder}: {error.strerror}; write another one") from None


def _write(path: Path, text: str) -> None:
    """Replaces a file whole: under its name there is never half of it."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"--output: cannot write {path}: {error.strerror}; write another folder") from None


def _score(task: tasks.Task, model: features.Model, seed: int, say: Callable[[str], None]):
    """Results of one task, its (points, draws) as {row: {head: {metric: array}}}, and the slice of each test sample."""
    start = time.monotonic()
    train, test = (features.extract(split, model) for split in (task.train, task.test))
    seconds = time.monotonic() - start
    say(f"{task.name}: features of {len(train.slices)} train and {len(test.slices)} test samples, {seconds:.1f} s")
    start = time.monotonic()
    classes = np.array(sorted(task.classes))
    targets = np.searchsorted(classes, task.test.targets)
    unit, groups = _groups(task.test.patients, test.slices)
    train_unit, train_groups = _groups(task.train.patients, train.slices)
    num_groups = int(groups.max()) + 1
    weights = scores.resample(num_groups, seed)
    points, draws, settings, confusion = {}, {}, {}, {}
    for row in ROWS:
        a, b = train.rows[row], test.rows[row]
        predictions = {
            "linear": heads.linear_probe(a, task.train.targets, train_groups, b, classes),
            "knn": heads.nearest_neighbours(a, task.train.targets, b, classes, direction=row != "pixels"),
        }
        settings[row] = {head: prediction.settings for head, prediction in predictions.items()}
        points[row], draws[row], confusion[row] = {}, {}, {}
        for head, (probabilities, _) in predictions.items():
            points[row][head] = scores.evaluate(targets, probabilities, groups, np.ones((1, num_groups)))
            draws[row][head] = scores.evaluate(targets, probabilities, groups, weights)
            confusion[row][head] = scores.confusion(targets, probabilities.argmax(1), len(classes)).tolist()
    say(f"{task.name}: neighbours and linear probe, {time.monotonic() - start:.1f} s")
    seen = int(np.isin(test.slices, train.slices).sum())
    if seen:
        say(f"warning: {task.name}: {seen} of {len(test.slices)} test samples lie on slices that are also in train")
    description = {
        "classes": [task.classes[index] for index in classes.tolist()],
        "train": _count(task.train, train.slices, classes),
        "test": _count(task.test, test.slices, classes),
        "test_samples_seen_in_train": seen,
        "resampled": unit,
        "validated_on": train_unit,
        **_summary((points, draws)),
        "heads": settings,
        "confusion": confusion,
    }
    return description, (points, draws), test.slices


def _groups(patients: np.ndarray, slices: np.ndarray) -> tuple[str, np.ndarray]:
    """What is resampled, and its number for each sample: patients, or slices where there is one patient only."""
    unit, keys = ("patient", patients) if len(np.unique(patients)) > 1 else ("slice", slices)
    return unit, np.unique(keys, return_inverse=True)[1]


def _count(split: tasks.Split, slices: np.ndarray, classes: np.ndarray) -> dict:
    return {
        "samples": len(split.images),
        "slices": len(np.unique(slices)),
        "patients": len(np.unique(split.patients)),
        "per_class": [int((split.targets == index).sum()) for index in classes],
    }


def _mean(trees: list[dict]) -> dict:
    """Mean over tasks of {row: {head: {metric: (draws,)}}}."""
    return {
        row: {head: {m: np.mean([t[row][head][m] for t in trees], axis=0) for m in scores.METRICS} for head in HEADS}
        for row in ROWS
    }


def _summary(distribution) -> dict:
    """Intervals of every row, and of trained minus each other row on the same resamples."""
    points, draws = distribution
    rows: dict = {row: {head: {} for head in HEADS} for row in ROWS}
    differences: dict = {row: {head: {} for head in HEADS} for row in AGAINST}
    for head in HEADS:
        for metric in scores.METRICS:
            point = {row: points[row][head][metric][0] for row in ROWS}
            drawn = {row: draws[row][head][metric] for row in ROWS}
            for row in ROWS:
                rows[row][head][metric] = scores.summary(point[row], drawn[row])
            for row in AGAINST:
                gain = scores.summary(point["trained"] - point[row], drawn["trained"] - drawn[row])
                differences[row][head][metric] = gain
    return {"rows": rows, "trained_minus": differences}


def _describe(model: features.Model, folder: str | Path) -> dict:
    config = model.trained.model.config
    return {
        "folder": str(folder),
        "sha256": model.sha256,
        "parameters": model.parameters,
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "patch_size": config.patch_size,
        "resolution": model.processor.crop_size,
    }


def _settings(device: str) -> dict:
    return {
        "device": device,
        "primary": {"head": PRIMARY[0], "metric": PRIMARY[1]},
        "bootstrap_draws": scores.DRAWS,
        "neighbours": heads.NEIGHBOURS,
        "temperature": heads.TEMPERATURE,
        "regularisation": list(heads.REGULARISATION),
        "versions": {name: version(name) for name in ("torch", "transformers", "scikit-learn", "numpy")}
        | {"python": platform.python_version()},
    }
