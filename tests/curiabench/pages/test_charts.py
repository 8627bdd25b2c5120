"""Places of points in a chart."""

import re

import numpy as np
import pytest

from curia2_jax.curiabench.pages import charts


def points(path):
    found = [tuple(map(float, one)) for one in re.findall(r"([\d.-]+),([\d.-]+)", path)]
    return [((x - charts.LEFT) / charts.SIDE, 1 - (y - charts.TOP) / charts.SIDE) for x, y in found]


def test_a_line_goes_through_its_points():
    """The origin lies below left, one above right."""
    assert points(charts.line(np.array([0.0, 0.25, 1.0]), np.array([0.0, 0.5, 1.0]))) == [(0, 0), (0.25, 0.5), (1, 1)]


@pytest.mark.parametrize(
    "first, corners",
    [(True, [(0, 0.5), (0.5, 0.5), (0.5, 0), (1, 0)]), (False, [(0.5, 1), (0.5, 0.5), (1, 0.5), (1, 0)])],
)
def test_steps_turn_at_right_angles(first, corners):
    """Down first, then across, or the other way around."""
    x, y = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.0])
    assert points(charts.steps(x, y, first)) == [(0, 1), *corners]


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (18.4, 91.2, [20, 40, 60, 80]),
        (-0.013, 0.021, [-0.01, 0, 0.01, 0.02]),
        (0, 3650, [0, 1000, 2000, 3000]),
        (99.5, 100.5, [99.6, 99.8, 100, 100.2, 100.4]),
    ],
)
def test_ticks_are_few_and_round(low, high, expected):
    """Multiples of 1, 2 or 5 inside of the axis."""
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_dots_are_at_most_as_many_as_are_seen():
    """All of few, and every so many of many, first and last among them."""
    x = np.linspace(0, 1, 10_000)
    assert len(charts.dots(x[:7], x[:7])) == 7
    many = charts.dots(x, x)
    assert len(many) == charts.MOST_DOTS
    assert many[0] == charts.place(0, 0) and many[-1] == charts.place(1, 1)


def test_axes_reach_further_than_their_values():
    """Also where all are the same."""
    assert charts.reach([np.array([1.0, 3.0]), np.array([11.0])]) == pytest.approx((0.5, 11.5))
    assert charts.reach([np.array([2.0, 2.0])]) == (1.5, 2.5)
