"""Where the time of encoding goes: seconds of the clock and of the CPU that a thread spends in each stage."""

import collections
import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_END = object()


class Stages:
    """Sums by the name of a stage. Threads may share one if no stage is in two of them."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = collections.defaultdict(float)
        self.cpu: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A stage, which holds no other."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.wall[name] += time.perf_counter() - wall
            self.cpu[name] += time.thread_time() - cpu

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items; what it takes to get one is the stage."""
        left = iter(items)
        while True:
            with self(name):
                item = next(left, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]

    def add(self, other: "Stages") -> None:
        """Those of another process."""
        for name in other.wall:
            self.wall[name] += other.wall[name]
            self.cpu[name] += other.cpu[name]
