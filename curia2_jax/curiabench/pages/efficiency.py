"""Label-efficiency curves: scores against the number of patients whose labels were learned from."""

from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench.pages import charts
from curia2_jax.curiabench.protocol import Row
from curia2_jax.curiabench.results import Score, Shot


class Curve(NamedTuple):
    """A row: its path, and the ends (x, low, high) of the interval at each of its points."""

    row: Row
    path: str
    bars: list[tuple[float, float, float]]


class Efficiency(NamedTuple):
    """`rows` in the order of the table, whose lines are percent, patients and the score of each row; `curves` with the
    first row on top; numbers at the axes as (place, value) pairs."""

    rows: list[Row]
    table: list[tuple[int, int, list[Score]]]
    curves: list[Curve]
    across: list[tuple[float, int]]
    upwards: list[tuple[float, float]]


def labels_needed(few_shot: dict[str, list[Shot]], rows: list[Row]) -> Efficiency:
    """Of `rows`; patients as their logarithm. Undefined scores are left out of the curves, not of the table."""
    first = few_shot[rows[0].name]
    every = [x for row in rows for shot in few_shot[row.name] for x in shot["score"] if x is not None]
    low, high = charts.reach([np.array(every or [0.0, 1.0])])
    least, wide = first[0]["patients"], np.log(first[-1]["patients"] / first[0]["patients"]) or 1.0

    def across(shot: Shot) -> float:
        return float(np.log(shot["patients"] / least) / wide)

    def upwards(value: float) -> float:
        return (value - low) / (high - low)

    def curve(row: Row) -> Curve:
        points, bars = [], []
        for shot in few_shot[row.name]:
            value, lower, upper = shot["score"]
            if value is not None:
                points.append((across(shot), upwards(value)))
            if lower is not None and upper is not None:
                x, bottom = charts.place(across(shot), upwards(lower))
                bars.append((x, bottom, charts.place(0, upwards(upper))[1]))
        return Curve(row, charts.line(*np.array(points).reshape(-1, 2).T), bars)

    return Efficiency(
        rows,
        [
            (shot["percent"], shot["patients"], [few_shot[row.name][place]["score"] for row in rows])
            for place, shot in enumerate(first)
        ],
        [curve(row) for row in rows[::-1]],
        [(charts.place(across(shot), 0)[0], shot["patients"]) for shot in first],
        [(charts.place(0, upwards(value))[1], value) for value in charts.ticks(low, high)],
    )
