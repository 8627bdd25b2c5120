"""What processes agree on, where there is one of them; several are in test_processes.py."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from curia2_jax.errors import UserError
from curia2_jax.parallel import processes
from curia2_jax.parallel.mesh import BATCH, ParallelConfig, make_mesh
from curia2_jax.parallel.processes import STOP, StopRequests, first_alone, first_where, whole

MESH = make_mesh(ParallelConfig(fsdp=2, accumulation=1))


def test_one_process_answers_at_once():
    asked = []
    stop = StopRequests(lambda: bool(asked))
    rows = {"masks": np.zeros(4)}
    assert not stop() and stop.send(rows) is rows
    asked.append(1)
    assert stop()


def test_several_act_on_what_a_step_says(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    asked = []
    stop = StopRequests(lambda: bool(asked))
    rows = {"masks": np.zeros((4, 2))}
    assert stop.send(rows)[STOP].tolist() == [False] * 4
    asked.append(1)
    assert stop.send(rows)[STOP].tolist() == [True] * 4
    # Being asked is not enough: all have to know.
    assert not stop()
    stop.read({STOP: np.asarray(False)})
    assert not stop()
    stop.read({STOP: np.asarray(True)})
    stop.read({STOP: np.asarray(False)})
    assert stop()


def test_first_alone():
    assert first_alone(lambda: 3) == 3

    def refuse():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        first_alone(refuse)


@pytest.mark.parametrize(("answers", "first"), [([False] * 3, None), ([False, True, True], 1), ([True] * 3, 0)])
def test_first_where(monkeypatch, answers, first):
    assert first_where(answers[0]) == (0 if answers[0] else None)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda _: np.array(answers))
    assert [first_where(mine) for mine in answers] == [first] * 3


def test_whole():
    x = jax.device_put(np.arange(16.0).reshape(8, 2), NamedSharding(MESH, BATCH))
    np.testing.assert_array_equal(whole(x), np.arange(16.0).reshape(8, 2))
