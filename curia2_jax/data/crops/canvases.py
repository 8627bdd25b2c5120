"""Memory that batches are written into, used again when nobody holds what was handed out.

Fresh memory costs a page fault for every page that is written, and more time than the padding of a slice is worth. Here
a block goes back to the idle ones when the array that was handed out has gone, and everything made from it. Who
keeps a batch keeps its memory, so no batch ever changes.
"""

import collections
import mmap
import weakref

import numpy as np


class Block:
    """Canvases (rows, side, side) int16, zero outside of what `row` gave out."""

    def __init__(self, rows: int, side: int):
        # Pages of zeros, aligned, so that JAX on a CPU takes them without a copy.
        memory = mmap.mmap(-1, max(rows * side * side * 2, 1))
        self._canvases = np.frombuffer(memory, np.int16, rows * side * side).reshape(rows, side, side)
        self._written = np.zeros((rows, 2), np.int64)  # height and width of what may not be zero

    def row(self, number: int, height: int, width: int) -> np.ndarray:
        """Part (height, width) of a canvas to write a slice into, all of it; the rest of the canvas becomes zero."""
        canvas, (tall, broad) = self._canvases[number], self._written[number].tolist()
        canvas[height:tall, :broad] = 0
        canvas[:height, width:broad] = 0
        self._written[number] = height, width
        return canvas[:height, :width]

    def description(self) -> dict:
        """NumPy's array interface of the canvases, read-only."""
        interface = self._canvases.__array_interface__
        return interface | {"data": (interface["data"][0], True)}


class _Loan:
    """What an array handed out says that it is a view of. NumPy lets every view of that array refer to the array, never
    past it to this object's memory (as it would, were this an array), and JAX refers to the array too where it does not
    copy. So once this has gone, nobody can see the memory."""

    def __init__(self, block: Block):
        self.__array_interface__ = block.description()


class Canvases:
    """Blocks of one shape; `idle` of them at most wait to be used again. Thread-safe; pickles without its blocks."""

    def __init__(self, rows: int, side: int, idle: int):
        self._arguments = rows, side, idle
        # Appending and popping are atomic, and need no lock, which a garbage collection could meet a second time.
        self._idle: collections.deque[Block] = collections.deque(maxlen=idle)

    def __reduce__(self):
        return Canvases, self._arguments

    def take(self) -> Block:
        """A block that nobody else has."""
        try:
            return self._idle.pop()
        except IndexError:
            return Block(*self._arguments[:2])

    def lend(self, block: Block) -> np.ndarray:
        """The canvases of a block (rows, side, side) int16, read-only; the block, which nothing may write to any more,
        is idle again when the array and all its views have gone."""
        loan = _Loan(block)
        weakref.finalize(loan, self._idle.append, block).atexit = False
        return np.asarray(loan)
