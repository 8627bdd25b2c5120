"""Scores an exported model on the tasks of a folder and writes the report.

Beside the trained backbone always stand what has learned nothing: the same backbone with random weights (several
draws), a linear projection of each patch, mean and spread of the raw pixels, and the mask without any pixel. A trained
backbone that does not beat them has learned nothing that the task needs, or the task asks for nothing.
"""

import json
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np

from curia2_jax import files
from curia2_jax.curiabench import (
    aggregate,
    asking,
    attention,
    class_facts,
    comparison,
    few_shot,
    forward,
    intervals,
    leaks,
    pictures,
    report,
    tasks,
)
from curia2_jax.curiabench import answers as answering
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.asking import ATTENTION, CROSS, FEW
from curia2_jax.curiabench.model import Model, load_model
from curia2_jax.curiabench.others import Others
from curia2_jax.curiabench.pages import render
from curia2_jax.curiabench.pages.images import images_of
from curia2_jax.curiabench.protocol import Scoring, scoring_of
from curia2_jax.curiabench.provenance import provenance
from curia2_jax.curiabench.results import (
    FILE,
    PAGE,
    SCORES,
    TEX,
    Count,
    ModelFacts,
    Results,
    Settings,
    TaskResults,
    page_of,
)
from curia2_jax.curiabench.splits import Split
from curia2_jax.data.corpus.layout import CONTRACT
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
    settings: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Results:
    """Scores tasks `names` of the benchmark folder `data`; writes `output`/results.json and `output`/report.html.

    Args:
      run_pictures: PNG files of the training run to show in the report.
      trust_remote_code: run an image processor of the folder that is not ours.
      began: exported folders of weights that runs began with; without, random ones of transformers.
      trained_on: the corpus of pre-training, in which test patients and images are looked for.
      others: other people's models, each a row beside the trained one.
      settings: of `asking.SETTINGS`.
      say: receives one line a stage.
    Returns:
      What results.json holds.
    Raises:
      UserError: a task, the model or the output is at fault, or the tasks are of several kinds.
    """
    read = [tasks.read_task(data, name) for name in dict.fromkeys(names)]
    chosen = [tasks.across(task) for task in read] if CROSS in settings else read
    scoring = _scoring(chosen)
    model = load_model(model_folder, device, trust_remote_code, began)
    others = others or Others()
    _writable(output := Path(output))
    asked = asking.ask(chosen, scoring, model, others, settings, say)
    scored = [_score(task, one, scoring, settings, say) for task, one in zip(chosen, asked, strict=True)]
    answers = [one for one, _ in scored]
    salted = (Path(data).parent / CONTRACT).is_file()  # a benchmark of ours lies in its corpus
    shown = [images_of(task, model, one, salted) for task, one in zip(chosen, answers, strict=True)]
    estimates = comparison.estimates(answers, scoring)
    results: Results = {
        "model": _describe(model, model_folder),
        "settings": _settings(device, scoring, began, others),
        "provenance": provenance(Path(data), list(dict.fromkeys(names))),
        "tasks": {
            one.task: _results(one, facts, found, scoring)
            for (one, facts), found in zip(scored, estimates, strict=True)
        },
        "mean": comparison.compare(comparison.mean(estimates)),
        "verdict": "",
    }
    if trained_on:
        results["leak"] = leaks.find([task.test for task in chosen], Path(data), trained_on)
    results["verdict"] = report.verdict(results)
    pages = {page_of(one.task): render.task(results, one, found) for one, found in zip(answers, shown, strict=True)}
    pages[PAGE] = render.index(results, {path.stem: pictures.embed(path) for path in run_pictures})
    _save(output, results, answers, pages)
    return results


def _results(one: Answers, facts: dict, found: comparison.Estimates, scoring: Scoring) -> TaskResults:
    """Everything that results.json says of a task."""
    more = class_facts.confusions(one) | class_facts.labels(one, scoring)
    return cast(TaskResults, facts | comparison.compare(found) | more)


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


def _save(folder: Path, results: Results, answers: Sequence[Answers], pages: dict[str, str]) -> None:
    """Every file of a report; what the disk refuses is the user's to mend."""
    try:
        answering.write(folder / answering.FILE, answers)
        files.write_text(folder / SCORES, report.csv(results))
        files.write_text(folder / TEX, report.tex(results))
        for name, page in pages.items():
            (folder / name).parent.mkdir(exist_ok=True)
            files.write_text(folder / name, page)
        files.write_text(folder / FILE, json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--output: cannot write in {folder}: {error.strerror}; write another folder") from None


def _score(
    task: tasks.Task, asked: asking.Asked, scoring: Scoring, settings: Sequence[str], say: Callable[[str], None]
) -> tuple[Answers, dict]:
    """Answers of one task, and what results.json says of the task beside its scores."""
    classes = np.array(sorted(task.classes), np.int64)
    targets = np.searchsorted(classes, task.test.targets) if task.kind.has_classes else task.test.targets
    names = [task.classes[index] for index in classes.tolist()]
    samples = np.array([path.stem for path in task.test.images])
    test = asked.slices[TEST]
    answers = Answers(
        task.name, task.kind.name, names, samples, task.test.patients, test, targets, asked.outputs, asked.aside
    )
    by_attention = attention.compared(answers, scoring) if ATTENTION in settings else None
    for line in attention.lines(by_attention, scoring) if by_attention else []:
        say(f"{task.name}: {line}")
    seen = int(np.isin(test, asked.slices[TRAIN]).sum())
    if seen:
        say(f"warning: {task.name}: {seen} of {len(test)} test samples lie on slices that are also in train")
    return answers, {
        "classes": names,
        **{name: _count(task, split, asked.slices[name]) for name, split in task.splits.items()},
        "warnings": list(task.warnings),
        "test_samples_seen_in_train": seen,
        "rare_classes": class_facts.rare_classes(answers),
        "resampled": answers.unit,
        "validated_on": VAL if task.val else asked.validated_on,
        "heads": class_facts.tree(asked.settings),
        **({"few_shot": few_shot.curve(answers, task, scoring)} if FEW in settings else {}),
        **({"attention": by_attention} if by_attention else {}),
    }


def _count(task: tasks.Task, split: Split, slices: np.ndarray) -> Count:
    return {
        "samples": len(split.images),
        "slices": len(np.unique(slices)),
        "patients": len(np.unique(split.patients)),
        "per_class": [int((split.targets == index).sum()) for index in sorted(task.classes)]
        if task.kind.has_classes
        else [],
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


def _settings(device: str, scoring: Scoring, began: Sequence[str], others: Others) -> Settings:
    found: Settings = {
        "device": device,
        "precision": forward.precision(device),
        "pooling": others.choice._asdict(),
        "pooling_defects": aggregate.defects(others.choice),
        "kind": scoring.kind,
        "random_weights": list(began) or "as transformers draws them, LayerScale 1",
        "primary": {"head": scoring.primary.head.name, "metric": scoring.primary.metric.name},
        "intervals": f"jackknife over patients, t, {intervals.LEVEL:.0%}",
        **scoring.settings,
        "versions": {name: version(name) for name in ("torch", "transformers", "scikit-learn", "numpy")}
        | {"python": platform.python_version()},
    }
    if others.models:
        found["others"] = others.described()
    return found
