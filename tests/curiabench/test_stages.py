"""Clocks of stages: what waits takes time and no CPU, what works takes both, and each is counted where it was."""

import time

import pytest

from curia2_jax.curiabench.stages import Stages


def test_waiting_is_told_from_working():
    stages = Stages()
    with stages("wait"):
        time.sleep(0.1)
    with stages("work"):
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
    assert stages.wall["wait"] >= 0.1 and stages.cpu["wait"] < 0.05
    assert 0.1 <= stages.cpu["work"] <= stages.wall["work"] + 0.01


def test_each_item_counts_and_not_what_is_done_with_it():
    def items():
        for number in range(2):
            time.sleep(0.02)
            yield number

    stages, found = Stages(), []
    for number in stages.each("get", items()):
        found.append(number)
        time.sleep(0.1)
    assert found == [0, 1] and 0.04 <= stages.wall["get"] < 0.2


def test_a_stage_that_fails_counts_and_sums_of_processes_are_added():
    one, other = Stages(), Stages()
    for stages in (one, other, other):
        with pytest.raises(ValueError, match="broken"), stages("fails"):
            time.sleep(0.01)
            raise ValueError("broken")
    with other("rest"):
        pass
    expected = one.wall["fails"] + other.wall["fails"]
    one.add(other)
    assert one.wall["fails"] == pytest.approx(expected) and one.cpu.keys() == one.wall.keys() == {"fails", "rest"}
    assert one.wall["fails"] >= 0.03
