"""What the processes of one run have to agree on."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from curia2_jax.errors import UserError
from curia2_jax.parallel.mesh import BATCH

T = TypeVar("T")


class StopRequests:
    """Turns a stop request to any process into the same answer, at the same step, in all of them.

    Each call starts a sum over all devices of "have I been asked?", which runs behind the step that was dispatched just
    before, and returns the sum that the call before it started: the host never waits for the device to go idle, and
    every process acts on the same number. A request is acted upon one step late. One process answers at once.
    """

    def __init__(self, mesh: Mesh, requested: Callable[[], bool]):
        self._requested = requested
        self._alone = jax.process_count() == 1
        self._sharding = NamedSharding(mesh, BATCH)
        self._any = jax.jit(lambda asked: asked.any(), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._devices = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
        self._before: Array | None = None

    def __call__(self) -> bool:
        if self._alone:
            return self._requested()
        asked = np.full(self._devices, self._requested())
        before, self._before = self._before, self._any(jax.make_array_from_process_local_data(self._sharding, asked))
        return before is not None and bool(before)


def first_alone(work: Callable[[], T]) -> T | None:
    """Runs `work` in process 0 while the others wait for it; its result, or None in the others.

    Raises:
      UserError: in every process, if `work` raised one.
    """
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = work()
        except UserError as e:
            error = e
    if jax.process_count() > 1:
        failed = bool(multihost_utils.broadcast_one_to_all(np.asarray(error is not None)))
        if failed and error is None:
            error = UserError("process 0 refused to start; its own message says why")
    if error is not None:
        raise error
    return result


def whole(x: Array) -> np.ndarray:
    """All of an array that may lie on several hosts; every process has to ask for it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)
