"""Arrays through memory that processes share: as they were, and none is written over while it is still read."""

import subprocess
import sys

import numpy as np
import pytest

from curia2_jax.curiabench import slots as slots_file
from curia2_jax.curiabench.slots import SLOTS, Slots

ARRAYS = [
    np.arange(-30, 30, dtype=np.int16).reshape(3, 4, 5),
    np.array([[True, False, True]]),
    np.full((2, 2), 0.1, np.float32),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(slots_file, "SLOT_BYTES", 1024)


def check(slots, sent, expected):
    for view, array in zip(slots.views(sent), expected, strict=True):
        assert view.dtype == array.dtype
        np.testing.assert_array_equal(view, array)


# In a process of its own: one that has imported JAX must not fork.
WORKERS = """
import multiprocessing
import numpy as np
from curia2_jax.curiabench.slots import Slots

arrays = [np.arange(-30, 30, dtype=np.int16).reshape(3, 4, 5), np.full((2, 2), 0.1, np.float32)]
slots, context = Slots(2), multiprocessing.get_context("fork")
reading, writing = context.Pipe(duplex=False)

def work(worker):
    writing.send(slots.put(worker, [array * (worker + 1) for array in arrays]))

for worker in range(2):
    process = context.Process(target=work, args=(worker,))
    process.start()
    process.join()
for worker in range(2):
    sent = reading.recv()
    assert sent.worker == worker
    for view, array in zip(slots.views(sent), arrays, strict=True):
        assert view.dtype == array.dtype
        np.testing.assert_array_equal(view, array * (worker + 1))
print("the same")
"""


def test_arrays_come_as_they_went_from_each_worker():
    done = subprocess.run([sys.executable, "-c", WORKERS], capture_output=True, text=True, check=False)
    assert done.stdout == "the same\n", done.stderr


def test_a_slot_is_written_again_only_when_it_was_given_back():
    slots = Slots(1)
    sent = [slots.put(0, [array + np.array(number, array.dtype) for array in ARRAYS]) for number in range(SLOTS)]
    assert slots.put(0, ARRAYS) is None
    for number, one in enumerate(sent):
        check(slots, one, [array + np.array(number, array.dtype) for array in ARRAYS])
    slots.give_back(sent[0])
    again = slots.put(0, ARRAYS[:1])
    assert again.slot == sent[0].slot and slots.put(0, ARRAYS) is None
    check(slots, again, ARRAYS[:1])
    check(slots, sent[1], [array + np.array(1, array.dtype) for array in ARRAYS])


@pytest.mark.parametrize(("size", "fits"), [(1024, True), (1025, False)])
def test_what_is_larger_than_a_slot_takes_none(size, fits):
    slots = Slots(1)
    assert (slots.put(0, [np.zeros(size, np.uint8)]) is not None) is fits
    assert sum(slots.put(0, ARRAYS) is not None for _ in range(SLOTS)) == SLOTS - fits
