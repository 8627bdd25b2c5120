"""Ends a process from any thread, whatever its main thread is waiting for: one line, what is given back, a code."""

import contextlib
import os
from collections.abc import Callable, Iterator

STOPPED, NOT_AGAIN = 42, 43  # safe to call again; of no use to

_returns: list[Callable[[], object]] = []
_faults: list[Callable[[], int]] = []


@contextlib.contextmanager
def given_back(work: Callable[[], object]) -> Iterator[None]:
    """Calls `work` when the block ends, or when `end_now` does."""
    _returns.append(work)
    try:
        yield
    finally:
        _returns.remove(work)
        work()


@contextlib.contextmanager
def on_fault(code: Callable[[], int]) -> Iterator[None]:
    """Inside, `code` gives the exit code of an end by a fault."""
    _faults.append(code)
    try:
        yield
    finally:
        _faults.remove(code)


def end_now(code: int, line: str, *, fault: bool = False) -> None:
    """Does not return. No buffer is flushed and nothing cleaned up but `given_back`: a thread may hold any lock."""
    if fault:
        for judge in _faults:
            with contextlib.suppress(Exception):
                code = judge()
    again = "; not for the first time: look into it before it is called again" if code == NOT_AGAIN else ""
    os.write(2, f"{line}{again}\n".encode())
    for work in reversed(_returns):
        with contextlib.suppress(Exception):
            work()
    os._exit(code)
