"""What the page of a task shows beside its scores, by its kind: the numbers of charts and tables, and where they lie.

A kind that is not in `SECTIONS` has a page with its scores.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np

from curia2_jax.curiabench import attention, class_facts
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.pages import charts, curves
from curia2_jax.curiabench.pages.classes import LabelFacts, StructureFacts, per_class, per_label, per_structure
from curia2_jax.curiabench.pages.efficiency import labels_needed
from curia2_jax.curiabench.protocol import (
    KNOWN,
    MASK_ONLY,
    RANDOM,
    RANDOM_PATCHES,
    TRAINED,
    TRAINED_PATCHES,
    Head,
    Row,
    Scoring,
    rows_of,
)
from curia2_jax.curiabench.results import TaskResults
from curia2_jax.data.ingest import benchmark_schema

DRAWN = (TRAINED, TRAINED_PATCHES, RANDOM, RANDOM_PATCHES, MASK_ONLY)  # in charts, and other people's models
AT_MOST = 6  # lines in a chart


def sections_of(part: TaskResults, one: Answers, scoring: Scoring) -> dict[str, Any]:
    """{section of task.html.j2: what it shows}."""
    head = scoring.primary.head.name
    found = _of_kind(part, one, head)
    if "few_shot" in part:
        rows = [row for row in rows_of(part["few_shot"]) if row in drawn(one, head)]
        found["labels_needed"] = labels_needed(part["few_shot"], rows)
    return found


class ByAttention(NamedTuple):
    """Of volumes that a head reads by attention over their slices; `scoring` has that head alone."""

    scoring: Scoring
    head: Head
    sections: dict[str, Any]


def by_attention(part: TaskResults, one: Answers, scoring: Scoring) -> ByAttention | None:
    """The same sections of these answers, where there are any."""
    if "attention" not in part:
        return None
    asked = attention.answered(one)
    facts = cast(TaskResults, part | class_facts.confusions(asked))
    alone = scoring._replace(heads=(attention.HEAD,))
    return ByAttention(alone, attention.HEAD, _of_kind(facts, asked, attention.HEAD.name))


def _of_kind(part: TaskResults, one: Answers, head: str) -> dict[str, Any]:
    return {name: section(part, one, head) for name, section in SECTIONS.get(one.kind, {}).items()}


def drawn(one: Answers, head: str) -> list[Row]:
    """The rows that charts have, the trained one last, so that it lies above the others."""
    rows = rows_of(dict.fromkeys(row for row, by in one.outputs if by == head))
    names = {row.name for row in DRAWN}
    return [row for row in rows if row.name in names or row.name not in KNOWN][:AT_MOST][::-1]


def _asked(one: Answers, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples (n,) bool of which it is known whether they are of class k, and (known,) bool whether they are."""
    if one.targets.ndim == 1:
        return np.ones(len(one.targets), bool), one.targets == k
    known = ~np.isnan(one.targets[:, k])
    return known, one.targets[known, k] == 1


class Panel(NamedTuple):
    """A class with its curves: row, path in the SVG, and area of each."""

    name: str
    samples: int
    share: float  # of the samples: the precision of guessing
    roc: list[tuple[Row, str, float]]
    precision: list[tuple[Row, str, float]]


def _curves(part: TaskResults, one: Answers, head: str) -> dict[str, Any]:
    rows = drawn(one, head)
    learned = np.isfinite(one.outputs[TRAINED.name, head][0]).all(0)  # train may know nothing of a label
    classes = [k for k in range(len(one.classes)) if learned[k] and len(np.unique(_asked(one, k)[1])) == 2]
    if one.targets.ndim == 1 and len(one.classes) == 2:
        classes = classes[-1:]  # the curves of the other are these, seen from behind
    return {"rows": rows[::-1], "panels": [_panel(one, head, k, rows) for k in classes]}


def _panel(one: Answers, head: str, k: int, rows: list[Row]) -> Panel:
    known, positive = _asked(one, k)
    roc: list[tuple[Row, str, float]] = []
    precision: list[tuple[Row, str, float]] = []
    for row in rows:
        score = one.outputs[row.name, head][0][known, k]
        for found, curve, path in ((roc, curves.roc, charts.line), (precision, curves.precision_recall, _held)):
            if (got := curve(positive, score)) is not None:
                found.append((row, path(got.x, got.y), got.area))
    return Panel(one.classes[k], int(positive.sum()), float(positive.mean()), roc, precision)


def _held(x: np.ndarray, y: np.ndarray) -> str:
    return charts.steps(x, y, first=True)


def _calibration(part: TaskResults, one: Answers, head: str) -> dict[str, Any]:
    """Bars of the trained row, and the expected calibration error of every row that charts have."""
    found = {row.name: curves.reliability(one.targets, one.outputs[row.name, head][0]) for row in drawn(one, head)}
    bins = found[TRAINED.name]
    bars = [
        (*charts.place(one.low, one.right), charts.SIDE * (one.high - one.low), charts.SIDE * one.right) for one in bins
    ]
    errors = [(row, curves.calibration_error(found[row.name])) for row in drawn(one, head)[::-1]]
    return {"bins": bins, "bars": bars, "errors": errors}


def _classes(part: TaskResults, one: Answers, head: str) -> dict[str, Any]:
    train = dict(zip(part["classes"], part["train"]["per_class"], strict=True))
    return {"facts": per_class(one, TRAINED.name, head), "train": train}


def _labels(part: TaskResults, one: Answers, head: str) -> list[LabelFacts]:
    return per_label(one, TRAINED.name, head)


def _structures(part: TaskResults, one: Answers, head: str) -> list[StructureFacts]:
    return per_structure(one, TRAINED.name, head)


def _confusion(part: TaskResults, one: Answers, head: str) -> list[list[int]]:
    return part["confusion"][TRAINED.name][head]


class Scatter(NamedTuple):
    """Dots and the line they should lie on, and numbers at the axes as (place, value) pairs."""

    dots: list[tuple[float, float]]
    ideal: str
    across: list[tuple[float, float]]
    upwards: list[tuple[float, float]]


def _agreement(part: TaskResults, one: Answers, head: str) -> dict[str, Any]:
    """Predicted against true, and their difference against true."""
    values, predicted = one.targets, one.outputs[TRAINED.name, head][0]
    own, off = charts.reach([values, predicted]), charts.reach([predicted - values, np.zeros(1)])
    found = {row: curves.residuals(values, one.outputs[row.name, head][0]) for row in drawn(one, head)[::-1]}
    across = np.array(charts.reach([values]))
    return {
        "predicted": _scatter(values, predicted, own, own, own),
        "residuals": _scatter(values, predicted - values, (across[0], across[1]), off, (0.0, 0.0)),
        "errors": list(found.items()),
        "samples": len(values),
        "shown": min(len(values), charts.MOST_DOTS),
    }


def _scatter(x: np.ndarray, y: np.ndarray, wide: tuple, high: tuple, ideal: tuple) -> Scatter:
    """`wide` and `high`: the ends of the axes; `ideal`: heights of the line at both ends of `wide`."""

    def scaled(value, ends):
        return (np.asarray(value) - ends[0]) / (ends[1] - ends[0])

    across, upwards = ([(one, float(scaled(one, ends))) for one in charts.ticks(*ends)] for ends in (wide, high))
    return Scatter(
        charts.dots(scaled(x, wide), scaled(y, high)),
        charts.line(np.array([0.0, 1.0]), scaled(ideal, high)),
        [(charts.place(at, 0)[0], value) for value, at in across],
        [(charts.place(0, at)[1], value) for value, at in upwards],
    )


def _survival(part: TaskResults, one: Answers, head: str) -> dict[str, Any]:
    """Kaplan and Meier's curves of the half with the larger predicted risk and of the other half."""
    risk, times = one.outputs[TRAINED.name, head][0], np.abs(one.targets)
    larger = risk > np.median(risk)
    end = float(times.max())
    halves = []
    for name, half in (("larger", larger), ("smaller", ~larger)):
        if half.any():
            curve = curves.kaplan_meier(one.targets[half])
            halves.append((name, charts.steps(curve.x / end, curve.y, first=False), int(half.sum())))
    across = [(charts.place(value / end, 0)[0], value) for value in charts.ticks(0.0, end)]
    return {"halves": halves, "across": across}


Section = Callable[[TaskResults, Answers, str], Any]  # of a task, its answers and the primary head
SECTIONS: dict[str, dict[str, Section]] = {
    benchmark_schema.CLASSIFICATION.name: {
        "curves": _curves,
        "calibration": _calibration,
        "confusion": _confusion,
        "classes": _classes,
    },
    benchmark_schema.RETRIEVAL.name: {"confusion": _confusion},
    benchmark_schema.MULTI_LABEL.name: {"labels": _labels, "curves": _curves},
    benchmark_schema.SEGMENTATION.name: {"structures": _structures},
    benchmark_schema.REGRESSION.name: {"agreement": _agreement},
    benchmark_schema.SURVIVAL.name: {"survival": _survival},
}
