"""Two reports against each other, from their predictions alone: differences on the same patients, with p of all."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench import attention, comparison, intervals
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.probing import Key
from curia2_jax.curiabench.protocol import TRAINED, Head, Scoring, scoring_of
from curia2_jax.curiabench.results import Score
from curia2_jax.errors import UserError

MEAN = "mean of the tasks"


class Difference(NamedTuple):
    """The trained row of a first report minus that of a second by one head: the primary score of a task.

    `p` is of sign flips over patients; `adjusted` is Holm's over all tasks and heads, None for the mean, which is no
    question of its own.
    """

    task: str
    head: str
    first: float
    second: float
    gain: Score
    patients: int
    p: float
    adjusted: float | None


def compare(first: Sequence[Answers], second: Sequence[Answers]) -> list[Difference]:
    """Every task and head that both have, and the mean of the tasks.

    Raises:
      UserError: they have no task in common, or other test samples in one.
    """
    pairs = [(one, other) for one in first for other in second if one.task == other.task]
    if not pairs:
        found = (", ".join(one.task for one in side) for side in (first, second))
        raise UserError("compare: found the tasks {} and {}; write two reports of the same tasks".format(*found))
    kinds = {one.kind for pair in pairs for one in pair}
    if len(kinds) > 1:
        raise UserError(
            f"compare: found tasks of several kinds, {', '.join(sorted(kinds))}; compare one kind at a time"
        )
    scoring = scoring_of(kinds.pop())
    both = comparison.estimates([_joined(*pair) for pair in pairs], scoring)
    out = [line for (one, _), found in zip(pairs, both, strict=True) for line in _lines(one.task, found, scoring)]
    adjusted = intervals.holm([line.p for line in out])
    out = [line._replace(adjusted=value) for line, value in zip(out, adjusted, strict=True)]
    return out + (_lines(MEAN, comparison.mean(both), scoring) if len(pairs) > 1 else [])


def _joined(one: Answers, other: Answers) -> Answers:
    """The trained rows of both as rows "first" and "second" of one task, sample by sample."""
    at = {sample: place for place, sample in enumerate(other.samples.tolist())}
    places = [at.get(sample, -1) for sample in one.samples.tolist()]
    if sorted(places) != list(range(len(other.samples))) or one.classes != other.classes:
        raise UserError(f"compare: {one.task}: the test samples or classes of the reports differ; score both anew")
    told, known = one.targets, other.targets[places]
    if not np.array_equal(told, known, equal_nan=told.dtype.kind == "f") or not np.array_equal(
        one.units, other.units[places]
    ):
        raise UserError(f"compare: {one.task}: targets or patients of the reports differ; score both anew")
    outputs = {("first", head): seeds for (row, head), seeds in _all(one) if row == TRAINED.name}
    for (row, head), seeds in _all(other):
        if row == TRAINED.name:
            outputs["second", head] = [outputs_of[places] for outputs_of in seeds]
    return one._replace(outputs=outputs)


def _all(one: Answers) -> Iterator[tuple[Key, list[np.ndarray]]]:
    """The answers of every head, that of attention over slices too."""
    yield from one.outputs.items()
    yield from attention.answered(one).outputs.items()


def _heads(scoring: Scoring) -> tuple[Head, ...]:
    return (*scoring.heads, attention.HEAD)


def _lines(task: str, found: comparison.Estimates, scoring: Scoring) -> list[Difference]:
    metric, out = scoring.primary.metric.name, []
    for head in _heads(scoring):
        keys = [(row, head.name, metric) for row in ("first", "second")]
        if all(key in found for key in keys):
            one, other = (intervals.mean(found[key]) for key in keys)
            gain = intervals.minus(one, other)
            p = intervals.sign_flips(gain)
            out.append(
                Difference(task, head.name, one.value, other.value, intervals.interval(gain), gain.patients, p, None)
            )
    return out


def table(lines: Sequence[Difference], scoring: Scoring) -> str:
    """The differences as text, with a word where there are enough patients for one."""
    rows = [["", "", "A", "B", "A - B, 95 % interval", "p", "p, Holm", ""]]
    shorts = {head.name: head.short for head in _heads(scoring)}
    for one in lines:
        value, low, high = one.gain
        interval = "undefined" if value is None else f"{value:+.3f}"
        interval += "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
        adjusted = "" if one.adjusted is None else f"{one.adjusted:.3g}"
        few = one.patients < intervals.FEWEST_PATIENTS
        judged = one.p if one.adjusted is None else one.adjusted
        better = "A" if one.first > one.second else "B"
        word = f"{one.patients} patients: no verdict" if few else f"{better} is better" if judged < 0.05 else ""
        numbers = [f"{one.first:.3f}", f"{one.second:.3f}", interval, f"{one.p:.3g}", adjusted, word]
        rows.append([one.task, shorts[one.head], *numbers])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    body = ("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows)
    return f"{scoring.primary.metric.title}, trained backbones of A and B on the same patients\n" + "\n".join(body)
