"""What the processes of one run have to agree on."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from curia2_jax.errors import UserError

T = TypeVar("T")
STOP = "stop"  # key of the batch and of the metrics
SLOWEST = 30 * 60  # seconds that processes wait for one whose disk is cold or whose compiler is slow


class StopRequests:
    """Turns a stop request to any process into the same answer, at the same step, in all of them.

    Each process sends "have I been asked?" along with its rows of a batch; the step itself returns whether any was, and
    the loop reads that with the other metrics of the step, one step late, so nobody waits and all act on the same
    number. A program of its own would run beside the step, and on CPUs the two can starve each other of threads. One
    process answers at once.
    """

    def __init__(self, requested: Callable[[], bool]):
        self._requested, self._alone, self._agreed = requested, jax.process_count() == 1, False

    def send(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The rows of this process, with its answer in each."""
        if self._alone:
            return rows
        return rows | {STOP: np.full(len(next(iter(rows.values()))), self._requested())}

    def read(self, metrics: dict[str, Array]) -> None:
        """Takes note of what a finished step says."""
        self._agreed = self._agreed or bool(metrics.get(STOP, False))

    def __call__(self) -> bool:
        return self._requested() if self._alone else self._agreed


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
            error = UserError("process 0 refuses; its own message says why")
    if error is not None:
        raise error
    return result


def first_says(work: Callable[[], int | None]) -> int | None:
    """The number that `work` gives in process 0, in every process. Raises as `first_alone` does."""
    number = first_alone(work)
    if jax.process_count() == 1:
        return number
    told = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if number is None else number)))
    return None if told < 0 else told


def first_numbers(work: Callable[[], list[int]]) -> list[int]:
    """The numbers, of 32 bits, that `work` gives in process 0, in every process. Raises as `first_alone` does."""
    numbers = first_alone(work)
    if jax.process_count() == 1:
        return numbers or []
    length = first_says(lambda: len(numbers or []))
    mine = np.zeros(length or 0, np.int32) if numbers is None else np.asarray(numbers, np.int32)
    return multihost_utils.broadcast_one_to_all(mine).tolist()


def first_where(mine: bool) -> int | None:
    """The first process that asks with True, None if none does: the same answer in every process, and all have to
    ask."""
    if jax.process_count() == 1:
        return 0 if mine else None
    asked = np.flatnonzero(multihost_utils.process_allgather(np.asarray(mine)))
    return int(asked[0]) if len(asked) else None


def wait_for_all(what: str) -> None:
    """Returns when every process has done `what`, a name used once; one process does not wait.

    The coordinator answers, and no device: the first collectives of a program connect the devices, and who is there
    first gives up on the others after 30 s on CPUs. Where the compilation cache serves one process and not another
    (a disk of its own, a new node) they come minutes apart. The barrier is Orbax's: JAX has one, in private.
    """
    multihost.get_barrier_sync_fn()(key=what, timeout_ms=SLOWEST * 1000)


def whole(x: Array) -> np.ndarray:
    """All of an array that may lie on several hosts; every process has to ask for it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)
