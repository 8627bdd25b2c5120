"""Ends a process from any thread, whatever its main thread is waiting for: one line, what is given back, a code."""

import contextlib
import os
from collections.abc import Callable, Iterator

STOPPED = 42  # safe to call again

_returns: list[Callable[[], None]] = []


@contextlib.contextmanager
def given_back(work: Callable[[], None]) -> Iterator[None]:
    """Calls `work` when the block ends, or when `end_now` does."""
    _returns.append(work)
    try:
        yield
    finally:
        _returns.remove(work)
        work()


def end_now(code: int, line: str) -> None:
    """Does not return. No buffer is flushed and nothing cleaned up but `given_back`: a thread may hold any lock."""
    os.write(2, f"{line}\n".encode())
    for work in reversed(_returns):
        with contextlib.suppress(Exception):
            work()
    os._exit(code)
