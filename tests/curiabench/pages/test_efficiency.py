"""Where the points of a label-efficiency curve lie."""

import re

import pytest

from curia2_jax.curiabench.pages import charts
from curia2_jax.curiabench.pages.efficiency import labels_needed
from curia2_jax.curiabench.protocol import RANDOM, TRAINED


def shots(*scores):
    sizes = ((1, 2), (10, 20), (100, 200))
    return [{"percent": p, "patients": n, "score": one} for (p, n), one in zip(sizes, scores, strict=True)]


def test_every_decade_of_patients_is_as_wide_and_what_is_undefined_is_left_out():
    """Intervals reach from their lower to their upper end; the first row is drawn last."""
    few = {
        "trained": shots([0.5, 0.4, 0.6], [0.7, 0.6, 0.8], [0.9, 0.8, 1.0]),
        "random": shots([None] * 3, [0.2, None, None], [0.3, 0.2, 0.4]),
    }
    found = labels_needed(few, [TRAINED, RANDOM])
    assert [one.row for one in found.curves] == [RANDOM, TRAINED]
    assert [value for _, value in found.across] == [2, 20, 200]
    assert [x for x, _ in found.across] == pytest.approx([charts.LEFT + charts.SIDE * part for part in (0, 0.5, 1)])
    random, trained = found.curves
    assert (len(trained.bars), len(random.bars)) == (3, 1)
    low, high = 0.2 - 0.05 * 0.8, 1.0 + 0.05 * 0.8
    points = [tuple(map(float, one)) for one in re.findall(r"([\d.]+),([\d.]+)", trained.path)]
    for (x, y), (at, bottom, top), score in zip(
        points, trained.bars, [s["score"] for s in few["trained"]], strict=True
    ):
        assert at == pytest.approx(x, abs=0.06)
        for place, value in zip((y, bottom, top), score, strict=True):
            assert low + (charts.TOP + charts.SIDE - place) / charts.SIDE * (high - low) == pytest.approx(
                value, abs=1e-3
            )
    assert found.table[1] == (10, 20, [[0.7, 0.6, 0.8], [0.2, None, None]])


def test_one_number_of_patients_is_a_point():
    """Where train has a single patient."""
    few = {"trained": [{"percent": 100, "patients": 1, "score": [0.5, None, None]}]}
    assert labels_needed(few, [TRAINED]).across == [(charts.LEFT, 1)]
