"""Scores an exported model on the tasks of a folder and writes the report.

Beside the trained backbone always stand what has learned nothing: the same backbone with random weights (several
draws), a linear projection of each patch, mean and spread of the raw pixels, and the mask without any pixel. A trained
backbone that does not beat them has learned nothing that the task needs, or the task asks for nothing.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from sklearn.metrics import confusion_matrix

from curia2_jax import files
from curia2_jax.curiabench import answers as answering
from curia2_jax.curiabench import (
    comparison,
    features,
    forward,
    heads,
    intervals,
    leaks,
    pictures,
    report,
    scores,
    tasks,
)
from curia2_jax.curiabench.aggregate import Choice
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.model import Model, load_model
from curia2_jax.curiabench.others import Others
from curia2_jax.curiabench.protocol import Scoring, rows_of, scoring_of
from curia2_jax.curiabench.provenance import provenance
from curia2_jax.curiabench.results import FILE, PAGE, SCORES, TEX, Count, ModelFacts, Results, Settings, TaskResults
from curia2_jax.curiabench.splits import Split
from curia2_jax.data.ingest.benchmark_schema import TEST, TRAIN, VAL
from curia2_jax.errors import UserError


def evaluate(
    model_folder: str | Path,
    data: str | Path,
    names: Sequence[str],
    output: str | Path,
    device: str = "cpu",
    run_pictures: Sequence[Path] = (),
    trust_remote_code: bool = False,
    began: Sequence[str] = (),
    trained_on: leaks.Trained | None = None,
    others: Others | None = None,
    say: Callable[[str], None] = print,
) -> Results:
    """Scores tasks `names` of the benchmark folder `data`; writes `output`/results.json and `output`/report.html.

    Args:
      run_pictures: PNG files of the training run to show in the report.
      trust_remote_code: run an image processor of the folder that is not ours.
      began: exported folders of weights that runs began with; without, random ones of transformers.
      trained_on: the corpus of pre-training, in which test patients and images are looked for.
      others: other people's models, each a row beside the trained one.
      say: receives one line a stage.
    Returns:
      What results.json holds.
    Raises:
      UserError: a task, the model or the output is at fault, or the tasks are of several kinds.
    """
    chosen = [tasks.read_task(data, name) for name in dict.fromkeys(names)]
    scoring = _scoring(chosen)
    model = load_model(model_folder, device, trust_remote_code, began)
    others = others or Others()
    _writable(output := Path(output))
    found = _features(chosen, model, others, say)
    scored = {task.name: _score(task, scoring, found[task.name], device, say) for task in chosen}
    answers = [one for one, _ in scored.values()]
    shown = {task.name: pictures.token_pictures(task.test, model, scored[task.name][0].slices) for task in chosen}
    estimates = comparison.estimates(answers, scoring)
    results: Results = {
        "model": _describe(model, model_folder),
        "settings": _settings(device, scoring, began, others.choice),
        "provenance": provenance(Path(data), [task.name for task in chosen]),
        "tasks": {
            one.task: cast(TaskResults, {**facts, **comparison.compare(found), **confusions(one)})
            for (one, facts), found in zip(scored.values(), estimates, strict=True)
        },
        "mean": comparison.compare(comparison.mean(estimates)),
        "verdict": "",
    }
    if others.models:
        results["settings"]["others"] = others.described()
    if trained_on:
        results["leak"] = leaks.find([task.test for task in chosen], Path(data), trained_on)
    results["verdict"] = report.verdict(results)
    page = report.render(results, shown, {path.stem: pictures.embed(path) for path in run_pictures})
    _save(output, results, answers, page)
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


def _save(folder: Path, results: Results, answers: Sequence[Answers], page: str) -> None:
    """Every file of a report; what the disk refuses is the user's to mend."""
    try:
        answering.write(folder / answering.FILE, answers)
        files.write_text(folder / SCORES, report.csv(results))
        files.write_text(folder / TEX, report.tex(results))
        files.write_text(folder / PAGE, page)
        files.write_text(folder / FILE, json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--output: cannot write in {folder}: {error.strerror}; write another folder") from None


def _features(
    chosen: list[tasks.Task], model: Model, others: Others, say: Callable[[str], None]
) -> dict[str, dict[str, features.Features]]:
    """{task: {split: features}}, of all tasks by one backbone after another."""
    start = time.monotonic()
    keys = [(task.name, name) for task in chosen for name in task.splits]
    splits = [split for task in chosen for split in task.splits.values()]
    out: dict[str, dict[str, features.Features]] = {}
    for (task, name), found in zip(keys, features.extract(splits, model, others, say), strict=True):
        out.setdefault(task, {})[name] = found
    for task, by_split in out.items():
        say(f"{task}: " + ", ".join(f"{len(one.slices)} {name}" for name, one in by_split.items()) + " samples")
    say(f"features of all: {time.monotonic() - start:.1f} s")
    return out


def _score(
    task: tasks.Task, scoring: Scoring, found: dict[str, features.Features], device: str, say: Callable[[str], None]
) -> tuple[Answers, dict]:
    """Predictions of one task, and what results.json says of the task beside its scores. `found`: of each split."""
    for warning in task.warnings:
        say(f"warning: {warning}")
    train, test, val = found[TRAIN], found[TEST], found.get(VAL)
    start = time.monotonic()
    classes = np.array(sorted(task.classes), np.int64)
    targets = np.searchsorted(classes, task.test.targets) if task.kind.has_classes else task.test.targets
    validated_on, train_groups = _groups(task.train.patients, train.slices)
    predictions: dict[tuple[str, str], list[heads.Prediction]] = {}
    for row in rows_of(train.rows):
        for seed, (before, after) in enumerate(zip(train.rows[row.name], test.rows[row.name], strict=True)):
            problem = heads.Problem(
                before,
                task.train.targets,
                train_groups,
                after,
                classes,
                row.has_direction,
                None if val is None else val.rows[row.name][seed],
                None if task.val is None else task.val.targets,
                device,
            )
            for head in scoring.heads:
                predictions.setdefault((row.name, head.name), []).append(head.predict(problem))
    outputs = {key: [one.outputs for one in seeds] for key, seeds in predictions.items()}
    names = [task.classes[index] for index in classes.tolist()]
    samples = np.array([path.stem for path in task.test.images])
    answers = Answers(task.name, task.kind.name, names, samples, task.test.patients, test.slices, targets, outputs)
    titles = " and ".join(head.title.lower() for head in scoring.heads)
    say(f"{task.name}: {titles}, {time.monotonic() - start:.1f} s")
    seen = int(np.isin(test.slices, train.slices).sum())
    if seen:
        say(f"warning: {task.name}: {seen} of {len(test.slices)} test samples lie on slices that are also in train")
    return answers, {
        "classes": names,
        **{name: _count(split, found[name].slices, classes) for name, split in task.splits.items()},
        "warnings": list(task.warnings),
        "test_samples_seen_in_train": seen,
        "rare_classes": rare_classes(answers),
        "resampled": answers.unit,
        "validated_on": VAL if task.val else validated_on,
        "heads": _tree({key: seeds[0].settings for key, seeds in predictions.items()}),
    }


def _tree(found: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    """{row: {head: ...}}."""
    out: dict[str, dict[str, Any]] = {}
    for (row, head), value in found.items():
        out.setdefault(row, {})[head] = value
    return out


def confusions(one: Answers) -> dict:
    """`confusion` of results.json, of the first seed; nothing in kinds without classes."""
    if not one.classes:
        return {}
    labels = range(len(one.classes))
    return {
        "confusion": _tree(
            {
                key: confusion_matrix(one.targets, seeds[0].argmax(1), labels=labels).tolist()
                for key, seeds in one.outputs.items()
            }
        )
    }


def rare_classes(one: Answers) -> dict[str, int]:
    """Classes of the test split with fewer patients than an interval can be read from, and how many they have."""
    groups = np.unique(one.units, return_inverse=True)[1]
    counts = scores.patients_of_classes(one.targets, groups, len(one.classes)).tolist()
    return {name: count for name, count in zip(one.classes, counts, strict=True) if 0 < count < intervals.RARE}


def _groups(patients: np.ndarray, slices: np.ndarray) -> tuple[str, np.ndarray]:
    """What is left out to choose C, and its number for each sample: patients, or slices where there is one patient."""
    unit, keys = ("patient", patients) if len(np.unique(patients)) > 1 else ("slice", slices)
    return unit, np.unique(keys, return_inverse=True)[1]


def _count(split: Split, slices: np.ndarray, classes: np.ndarray) -> Count:
    return {
        "samples": len(split.images),
        "slices": len(np.unique(slices)),
        "patients": len(np.unique(split.patients)),
        "per_class": [int((split.targets == index).sum()) for index in classes],
    }


def _describe(model: Model, folder: str | Path) -> ModelFacts:
    config = model.config
    return {
        "folder": str(folder),
        "sha256": model.sha256,
        "parameters": model.parameters,
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "patch_size": config.patch_size,
        "resolution": model.processor.crop_size,
    }


def _settings(device: str, scoring: Scoring, began: Sequence[str], choice: Choice) -> Settings:
    return {
        "device": device,
        "precision": forward.precision(device),
        "pooling": choice._asdict(),
        "kind": scoring.kind,
        "random_weights": list(began) or "as transformers draws them, LayerScale 1",
        "primary": {"head": scoring.primary.head.name, "metric": scoring.primary.metric.name},
        "intervals": f"jackknife over patients, t, {intervals.LEVEL:.0%}",
        **scoring.settings,
        "versions": {name: version(name) for name in ("torch", "transformers", "scikit-learn", "numpy")}
        | {"python": platform.python_version()},
    }
