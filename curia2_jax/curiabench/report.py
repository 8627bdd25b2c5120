"""What a report says: the sentence on what came out, tables as text, and the lines of the forest plot."""

from typing import NamedTuple

from curia2_jax.curiabench import leaks
from curia2_jax.curiabench.intervals import FEWEST_PATIENTS
from curia2_jax.curiabench.protocol import JUDGED_BY, MASK_ONLY, TRAINED, Row, rows_of, scoring_behind
from curia2_jax.curiabench.results import Comparison, Results, Score, defined


def verdict(results: Results) -> str:
    """One sentence on the primary score, averaged over tasks.

    A row is better or worse only when the 95 % interval of the difference, on the same patients, does not hold zero,
    and only where every task has enough patients to say so.
    """
    head, metric = scoring_behind(results).primary
    mean, tasks = results["mean"], results["tasks"].values()
    fewest = min_patients(results)
    parts = []
    for row in (row for row in JUDGED_BY if row.name in mean["trained_minus"]):
        other = mean["rows"][row.name][head.name][metric.name][0]
        gain = mean["trained_minus"][row.name][head.name][metric.name]
        words = f"{_side(gain)} " if fewest >= FEWEST_PATIENTS else ""
        parts.append(f"{words}{row.phrase} ({_number(other)}; {_signed(gain)})")
    of = "" if len(tasks) == 1 else f", mean of {len(tasks)} tasks"
    on = "on slices of one patient" if fewest == 1 else f"on {fewest} test patients"
    on += " in the smallest" if of else ""
    value = _number(mean["rows"][TRAINED.name][head.name][metric.name][0])
    said = f"({metric.phrase} {value}{of}, {on})"
    if fewest < FEWEST_PATIENTS:
        few = f"fewer than {FEWEST_PATIENTS} patients say nothing of others"
        sentence = f"No verdict, {few}: the trained backbone {said} beside {_listed(parts)}."
    else:
        sentence = f"The trained backbone {said} is {_listed(parts)}."
    seen = [leaks.sentence(results["leak"])] if "leak" in results else []
    return " ".join([sentence, *_silent(results), *seen])


def _silent(results: Results) -> list[str]:
    """A sentence on the tasks of which the mask alone, without any pixel, gives the answer away."""
    scoring = scoring_behind(results)
    found = []
    for name, task in results["tasks"].items():
        gains = task["trained_minus"].get(MASK_ONLY.name, {})
        for head in scoring.heads:
            low = gains.get(head.name, {}).get(scoring.primary.metric.name, [None] * 3)[1]
            if low is not None and low <= 0:
                value = task["rows"][MASK_ONLY.name][head.name][scoring.primary.metric.name][0]
                found.append(f"{name} ({head.short} {_number(value)})")
    if not found:
        return []
    return [f"Place and shape of the mask, without any pixel, do as well in {_listed(found)}: that says nothing of a "
            "backbone."]  # fmt: skip


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _side(gain: Score) -> str:
    _, low, high = defined(gain)
    return "better than" if low > 0 else "worse than" if high < 0 else "not distinguishable from"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _signed(gain: Score) -> str:
    """A difference with its interval, if it has one."""
    value, low, high = gain
    if value is None:
        return "difference undefined"
    interval = "" if low is None or high is None else f", 95 % interval {low:+.3f} to {high:+.3f}"
    return f"difference {value:+.3f}{interval}"


def table(results: Results) -> str:
    """The rows of every task as text: each head's scores but those not `in_brief`, with their 95 % intervals."""

    def cell(score: Score) -> str:
        value, low, high = score
        return _number(value) if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"

    scoring = scoring_behind(results)
    parts = results["tasks"] | ({"mean of the tasks": results["mean"]} if len(results["tasks"]) > 1 else {})
    columns = [(head, metric) for head in scoring.heads for metric in scoring.metrics if metric.in_brief]
    lines = [["", "", *(f"{head.short}, {metric.phrase}" for head, metric in columns)]]
    for name, part in parts.items():
        for row in rows_of(part["rows"]):
            by_head = part["rows"][row.name]  # which may lack a head: some models take one size of input
            cells = (cell(by_head[head.name][metric.name]) if head.name in by_head else "-" for head, metric in columns)
            lines.append([name, row.title, *cells])
            name = ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def csv(results: Results) -> str:
    """scores.csv: a line a task, row, head and score with its 95 % interval, and each difference; empty = undefined."""
    lines = ["task,row,head,score,value,lower,upper"]
    parts = results["tasks"] | ({"mean of the tasks": results["mean"]} if len(results["tasks"]) > 1 else {})
    found: list[tuple[str, Comparison]] = list(parts.items())
    found += [(name, task["attention"]) for name, task in results["tasks"].items() if "attention" in task]
    for name, part in found:
        tables = part["rows"] | {f"trained minus {row}": heads for row, heads in part["trained_minus"].items()}
        for row, heads in tables.items():
            for head, metrics in heads.items():
                for metric, score in metrics.items():
                    lines.append(",".join([name, row, head, metric, *("" if x is None else repr(x) for x in score)]))
    return "\n".join(lines) + "\n"


def tex(results: Results) -> str:
    """table.tex: the primary score of every task and row, with its interval, for a table of booktabs."""
    head, metric = scoring_behind(results).primary
    parts = results["tasks"] | ({"mean": results["mean"]} if len(results["tasks"]) > 1 else {})
    rows = rows_of(dict.fromkeys(name for part in parts.values() for name in part["rows"]))

    def cell(part: Comparison, row: Row) -> str:
        if row.name not in part["rows"]:
            return "--"
        value, low, high = part["rows"][row.name][head.name][metric.name]
        return _number(value) + ("" if low is None else f" \\,{{\\scriptsize [{low:.3f}, {high:.3f}]}}")

    lines = [
        f"% {head.title}, {metric.phrase}, 95 % intervals over patients",
        f"\\begin{{tabular}}{{l{'c' * len(rows)}}}",
    ]
    lines += ["\\toprule", " & ".join(["task", *(row.short for row in rows)]) + " \\\\", "\\midrule"]
    for name, part in parts.items():
        lines.append(" & ".join([name.replace("_", "\\_"), *(cell(part, row) for row in rows)]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


class ForestLine(NamedTuple):
    """A difference as a line of the forest plot; places from 0 to 1 along its axis. `sure`: it may be called one."""

    row: Row
    score: Score
    low: float
    middle: float
    high: float
    sure: bool


def forest(results: Results) -> tuple[list[tuple[str, list[ForestLine]]], float, tuple[float, float]]:
    """Lines of every task and of their mean, where zero lies on their axis, and the values at its ends."""
    head, metric = scoring_behind(results).primary
    parts: dict[str, Comparison] = {**results["tasks"]}
    if len(parts) > 1:
        parts["mean of the tasks"] = results["mean"]
    patients = [task["test"]["patients"] for task in results["tasks"].values()] + [min_patients(results)]
    found = [
        (name, [(row, minus[row.name][head.name][metric.name]) for row in rows_of(minus)])
        for name, minus in ((name, part["trained_minus"]) for name, part in parts.items())
    ]
    ends = [x for _, lines in found for _, score in lines for x in score if x is not None] + [-0.05, 0.05]
    low, high = min(ends), max(ends)

    def place(value: float | None) -> float:
        return 0.0 if value is None else (value - low) / (high - low)

    def line(row: Row, score: Score, count: int) -> ForestLine:
        value, lower, upper = score
        apart = lower is not None and upper is not None and (lower > 0 or upper < 0)
        return ForestLine(row, score, place(lower), place(value), place(upper), apart and count >= FEWEST_PATIENTS)

    drawn = [
        (name, [line(*one, count) for one in lines]) for (name, lines), count in zip(found, patients, strict=False)
    ]
    return drawn, place(0.0), (low, high)


def min_patients(results: Results) -> int:
    """Test patients of the smallest task."""
    return min(task["test"]["patients"] for task in results["tasks"].values())
