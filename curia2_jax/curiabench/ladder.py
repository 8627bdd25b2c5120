"""Runs of a sweep on the same test samples: scores, and paired differences to the first, from their answers alone."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from curia2_jax.curiabench import answers, comparison, intervals, results
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.protocol import TRAINED, Metric, Scoring, scoring_behind
from curia2_jax.errors import UserError

Interval = tuple[float, float, float]  # value, lower, upper


class Rung(NamedTuple):
    """One run, over its seeds: a score of every head, and what it has more than the first rung, whose own is None."""

    scores: list[Interval]
    gains: list[Interval] | None


def climb(reports: Mapping[str, Sequence[Path]]) -> tuple[dict[str, Rung], Scoring]:
    """Every run by name, and how all were scored. Intervals go over patients; seeds are averaged before.

    Args:
      reports: folders that launch/evaluate.py wrote, those of the seeds of each run; the first run is compared with.
    Raises:
      UserError: a report has no predictions, or they are of other samples than those of the first.
    """
    first = next(iter(reports.values()))[0]
    scoring = scoring_behind(results.read(first))
    found = comparison.mean(comparison.estimates(_together(reports), scoring))
    metric = scoring.primary.metric.name

    def of(name: str) -> list[intervals.Estimate]:
        return [intervals.mean(found[name, head.name, metric]) for head in scoring.heads]

    base, rungs = of(next(iter(reports))), {}
    for number, name in enumerate(reports):
        scores = [results.defined(intervals.interval(one)) for one in of(name)]
        gains = [
            results.defined(intervals.interval(intervals.minus(*pair))) for pair in zip(of(name), base, strict=True)
        ]
        rungs[name] = Rung(scores, gains if number else None)
    return rungs, scoring


def _together(reports: Mapping[str, Sequence[Path]]) -> list[Answers]:
    """The answers of the trained backbones of all runs and seeds, with the name of the run for the row."""
    read = {name: [answers.read(folder) for folder in folders] for name, folders in reports.items()}
    joined = []
    for number, one in enumerate(next(iter(read.values()))[0]):
        outputs: dict = {}
        for name, seeds in read.items():
            for folder, tasks in zip(reports[name], seeds, strict=True):
                other = tasks[number] if number < len(tasks) else None
                if other is None or other.task != one.task or not _same(other, one):
                    raise UserError(
                        f"{folder}: scored on other samples of {one.task} than the first run; score it anew"
                    )
                for (row, head), values in other.outputs.items():
                    if row == TRAINED.name:
                        outputs.setdefault((name, head), []).extend(values)
        joined.append(one._replace(outputs=outputs))
    return joined


def _same(one: Answers, other: Answers) -> bool:
    return one.samples.tolist() == other.samples.tolist() and one.patients.tolist() == other.patients.tolist()


def draw(path: Path, rungs: Mapping[str, Rung], titles: Sequence[str], metric: Metric) -> None:
    """A forest plot: scores of every run and head, and beside them what each run has more than the first."""
    from matplotlib.figure import Figure  # not pyplot: nothing global to close

    figure = Figure(figsize=(9, 0.55 * len(rungs) + 1.4))
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (title, marker) in enumerate(zip(titles, itertools.cycle("os^D"), strict=False)):
        offset = 0.24 * (number - (len(titles) - 1) / 2)
        for axis, shown in (
            (left, {place: rung.scores[number] for place, rung in enumerate(rungs.values())}),
            (right, {place: rung.gains[number] for place, rung in enumerate(rungs.values()) if rung.gains}),
        ):
            middle = [value for value, _, _ in shown.values()]
            reach = [[v - low for v, low, _ in shown.values()], [high - v for v, _, high in shown.values()]]
            axis.errorbar(middle, [place + offset for place in shown], xerr=reach, fmt=marker, label=title, capsize=3)
            axis.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(rungs)), list(rungs))
    left.invert_yaxis()
    left.set_xlabel(f"{metric.phrase} (95 % over patients)")
    right.axvline(0, color="black", linewidth=0.8)
    right.set_xlabel(f"difference to {next(iter(rungs))}")
    left.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
