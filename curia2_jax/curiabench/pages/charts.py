"""Where the points of a chart lie in its SVG: charts are text, in the colors of the page, on screen and in print."""

from collections.abc import Iterable

import numpy as np

LEFT, TOP, SIDE = 46.0, 8.0, 180.0  # the square that charts are drawn in, of 236 x 226
MOST_DOTS = 1500


def place(x: float, y: float) -> tuple[float, float]:
    """Of a point in the unit square; y grows upwards."""
    return LEFT + SIDE * x, TOP + SIDE * (1 - y)


def line(x: np.ndarray, y: np.ndarray) -> str:
    """`d` of a path that goes straight from point to point of the unit square."""
    return "M" + " L".join("{:.1f},{:.1f}".format(*place(*point)) for point in zip(x, y, strict=True))


def steps(x: np.ndarray, y: np.ndarray, first: bool) -> str:
    """`d` of a path in steps. `first`: up or down first, then across, as precision holds back to the recall before;
    else across first, as survival holds on until somebody dies."""
    twice = np.repeat(x, 2), np.repeat(y, 2)
    return line(twice[0][:-1], twice[1][1:]) if first else line(twice[0][1:], twice[1][:-1])


def dots(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    """Places of at most `MOST_DOTS` points of the unit square, evenly of all of them in their order."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_DOTS)).round().astype(int))
    return [place(*point) for point in zip(x[chosen].tolist(), y[chosen].tolist(), strict=True)]


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from `low` to `high`."""
    step = 10 ** np.floor(np.log10(max(high - low, 1e-12)))
    step = next(step * part for part in (0.2, 0.5, 1.0, 2.0) if (high - low) / (step * part) <= 5)
    return (np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step).round(12).tolist()


def reach(values: Iterable[np.ndarray]) -> tuple[float, float]:
    """From the least to the largest of several arrays, a twentieth wider on both sides."""
    every = np.concatenate(list(values))
    low, high = float(every.min()), float(every.max())
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin
