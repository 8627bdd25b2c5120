"""Scores an exported model on the tasks of a folder and writes the report.

Three rows always stand side by side: the trained backbone, the same backbone with random weights, and mean and spread
of the raw pixels. A trained backbone that does not beat the other two has learnt nothing that the task needs.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix

from curia2_jax import files
from curia2_jax.curiabench import comparison, features, heads, pictures, report, scores, tasks
from curia2_jax.curiabench.model import Model, load_model
from curia2_jax.curiabench.protocol import ROWS, Scoring, scoring_of
from curia2_jax.curiabench.results import FILE, PAGE, Count, ModelFacts, Results, Settings, TaskResults
from curia2_jax.errors import UserError


class Scored(NamedTuple):
    """What is known of a task: for results.json, for the mean of the tasks, and the slice of each test sample."""

    results: TaskResults
    distribution: comparison.Distribution
    slices: np.ndarray  # (n,) str


def evaluate(
    model_folder: str | Path,
    data: str | Path,
    names: Sequence[str],
    output: str | Path,
    device: str = "cpu",
    run_pictures: Sequence[Path] = (),
    trust_remote_code: bool = False,
    say: Callable[[str], None] = print,
) -> Results:
    """Scores tasks `names` of the benchmark folder `data`; writes `output`/results.json and `output`/report.html.

    Args:
      run_pictures: PNG files of the training run to show in the report.
      trust_remote_code: run an image processor of the folder that is not ours.
      say: receives one line a stage.
    Returns:
      What results.json holds.
    Raises:
      UserError: a task, the model or the output is at fault, or the tasks are of several kinds.
    """
    chosen = [tasks.read_task(data, name) for name in dict.fromkeys(names)]
    scoring = _scoring(chosen)
    model = load_model(model_folder, device, trust_remote_code)
    output = Path(output)
    _writable(output)
    scored = {task.name: _score(task, scoring, model, number, say) for number, task in enumerate(chosen)}
    shown = {task.name: pictures.token_pictures(task.test, model, scored[task.name].slices) for task in chosen}
    results: Results = {
        "model": _describe(model, model_folder),
        "settings": _settings(device, scoring),
        "tasks": {name: one.results for name, one in scored.items()},
        "mean": comparison.compare(comparison.mean([one.distribution for one in scored.values()]), scoring),
        "verdict": "",
    }
    results["verdict"] = report.verdict(results)
    page = report.render(results, shown, {path.stem: pictures.embed(path) for path in run_pictures})
    _write(output / PAGE, page)
    _write(output / FILE, json.dumps(results, indent=1) + "\n")
    return results


def _scoring(chosen: list[tasks.Task]) -> Scoring:
    """How all of the tasks are scored: a mean over tasks, and a verdict, need scores of one kind."""
    kinds = {task.kind.name: task.name for task in chosen}
    if len(kinds) > 1:
        found = " and ".join(f"{name} ({kind})" for kind, name in kinds.items())
        raise UserError(f"--task: found tasks of several kinds, {found}; score those of one kind at a time")
    return scoring_of(*kinds)


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make the folder {folder}: {error.strerror}; write another one") from None


def _write(path: Path, text: str) -> None:
    """Replaces a file whole: under its name there is never half of it."""
    try:
        files.write_text(path, text)
    except OSError as error:
        raise UserError(f"--output: cannot write {path}: {error.strerror}; write another folder") from None


def _score(task: tasks.Task, scoring: Scoring, model: Model, seed: int, say: Callable[[str], None]) -> Scored:
    """Features, predictions and scores of one task; `seed` draws its resamples."""
    start = time.monotonic()
    train, test = (features.extract(split, model) for split in (task.train, task.test))
    seconds = time.monotonic() - start
    say(f"{task.name}: features of {len(train.slices)} train and {len(test.slices)} test samples, {seconds:.1f} s")
    start = time.monotonic()
    classes = np.array(sorted(task.classes), np.int64)
    targets = np.searchsorted(classes, task.test.targets) if task.kind.has_classes else task.test.targets
    resampled, groups = _groups(task.test.patients, test.slices)
    validated_on, train_groups = _groups(task.train.patients, train.slices)
    predictions: comparison.Predictions = {}
    for row in ROWS:
        problem = heads.Problem(
            train.rows[row.name], task.train.targets, train_groups, test.rows[row.name], classes, row.has_direction
        )
        predictions[row.name] = {head.name: head.predict(problem) for head in scoring.heads}
    distribution = comparison.distribution(predictions, scoring, targets, groups, seed)
    titles = " and ".join(head.title.lower() for head in scoring.heads)
    say(f"{task.name}: {titles}, {time.monotonic() - start:.1f} s")
    seen = int(np.isin(test.slices, train.slices).sum())
    if seen:
        say(f"warning: {task.name}: {seen} of {len(test.slices)} test samples lie on slices that are also in train")
    results: TaskResults = {
        "classes": [task.classes[index] for index in classes.tolist()],
        "train": _count(task.train, train.slices, classes),
        "test": _count(task.test, test.slices, classes),
        "test_samples_seen_in_train": seen,
        "resampled": resampled,
        "validated_on": validated_on,
        **comparison.compare(distribution, scoring),
        "heads": _each(predictions, lambda prediction: prediction.settings),
    }
    if task.kind.has_classes:
        labels = range(len(classes))
        results["confusion"] = _each(
            predictions, lambda p: confusion_matrix(targets, p.outputs.argmax(1), labels=labels).tolist()
        )
    return Scored(results, distribution, test.slices)


def _each(predictions: comparison.Predictions, fact: Callable[[heads.Prediction], object]) -> dict:
    """{row: {head: fact of its prediction}}."""
    return {row: {head: fact(one) for head, one in by_head.items()} for row, by_head in predictions.items()}


def _groups(patients: np.ndarray, slices: np.ndarray) -> tuple[str, np.ndarray]:
    """What is resampled, and its number for each sample: patients, or slices where there is one patient only."""
    unit, keys = ("patient", patients) if len(np.unique(patients)) > 1 else ("slice", slices)
    return unit, np.unique(keys, return_inverse=True)[1]


def _count(split: tasks.Split, slices: np.ndarray, classes: np.ndarray) -> Count:
    return {
        "samples": len(split.images),
        "slices": len(np.unique(slices)),
        "patients": len(np.unique(split.patients)),
        "per_class": [int((split.targets == index).sum()) for index in classes],
    }


def _describe(model: Model, folder: str | Path) -> ModelFacts:
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


def _settings(device: str, scoring: Scoring) -> Settings:
    return {
        "device": device,
        "kind": scoring.kind,
        "primary": {"head": scoring.primary.head.name, "metric": scoring.primary.metric.name},
        "bootstrap_draws": scores.DRAWS,
        **scoring.settings,
        "versions": {name: version(name) for name in ("torch", "transformers", "scikit-learn", "numpy")}
        | {"python": platform.python_version()},
    }
