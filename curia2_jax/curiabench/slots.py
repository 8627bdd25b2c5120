"""Arrays pass from worker processes to the process of the device through memory that both keep.

PyTorch makes a new piece of shared memory for each tensor that a worker sends; its pages are cleared, mapped and
dropped again on both sides. That takes longer than to read and hash a slice, and on the receiving side one thread does
it for all workers.
"""

import mmap
import multiprocessing
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SLOTS = 2  # of a worker: as many parts as PyTorch lets it be ahead
SLOT_BYTES = 2**27  # 32 slices of 1024 x 1024 float32; memory is taken when it is first written to
ALIGNED = 64  # bytes


class Sent(NamedTuple):
    """Where arrays lie: a slot of a worker, and (first byte, shape, dtype) of each."""

    worker: int
    slot: int
    arrays: list[tuple[int, tuple[int, ...], str]]


class Slots:
    """To be made before the workers are forked, which then see the same memory."""

    def __init__(self, workers: int):
        memory = mmap.mmap(-1, workers * SLOTS * SLOT_BYTES)  # anonymous, so that no limit of /dev/shm applies
        self.memory = np.frombuffer(memory, np.uint8).reshape(workers, SLOTS, SLOT_BYTES)
        self.free = [multiprocessing.get_context("fork").Semaphore(SLOTS) for _ in range(workers)]
        self.turn = 0

    def put(self, worker: int, arrays: Sequence[np.ndarray]) -> Sent | None:
        """Copies arrays into the next slot of a worker; None where they do not fit, or no slot was given back yet."""
        starts = np.cumsum([0, *(-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays)]).tolist()
        if starts[-1] > SLOT_BYTES or not self.free[worker].acquire(block=False):
            return None
        # Slots are given back in the order in which they were sent, so the next one in turn is free.
        places = zip(starts, arrays, strict=False)
        sent = Sent(worker, self.turn % SLOTS, [(start, array.shape, array.dtype.str) for start, array in places])
        self.turn += 1
        for view, array in zip(self.views(sent), arrays, strict=True):
            np.copyto(view, array)
        return sent

    def views(self, sent: Sent) -> list[np.ndarray]:
        """The arrays, in the slot itself: theirs until it is given back."""
        slot = self.memory[sent.worker, sent.slot]
        return [np.ndarray(shape, dtype, slot.data, start) for start, shape, dtype in sent.arrays]

    def give_back(self, sent: Sent) -> None:
        """Lets the worker write there again."""
        self.free[sent.worker].release()
