"""Stop requests, from the first instant of a process to its last. Imports nothing that is slow."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from curia2_jax.ending import STOPPED, end_now

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN = 2.0  # seconds: launchers repeat a signal at once; who asks later than that means it


class StopRequest:
    """Whether this process has been asked to stop.

    Inside `answered` the one who asks `made` acts on it, and a second request ends the process at once. Outside, which
    is while modules are imported, peers awaited, programs compiled and files read, the first one does: nothing is lost.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._answered = False

    def listen(self) -> None:
        """Takes SIGTERM, SIGINT and SIGUSR1. Python's own handlers wait for a call into C to return, which may be a
        compilation; C's handler writes into a pipe at once, and a thread reads that."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_as_usual)
        threading.Thread(target=self._read, args=[reading], daemon=True, name="signals").start()

    def _read(self, pipe: int) -> None:
        while True:
            self.make(signal.Signals(os.read(pipe, 1)[0]).name)

    def make(self, who: str) -> None:
        """Asks this process to stop, from any thread."""
        now = time.monotonic()
        if not self._answered:
            end_now(STOPPED, f"{who}: stopped where there was nothing to save; call again with the same --workdir")
        if self._first is None:
            self._first = now
        elif now - self._first > AGAIN:
            end_now(STOPPED, f"{who}: asked again, stopped at once; call again to go on from the newest checkpoint")

    def made(self) -> bool:
        return self._first is not None

    @contextlib.contextmanager
    def answered(self) -> Iterator[None]:
        """Whoever opens this asks `made` again and again, and saves."""
        self._answered = True
        try:
            yield
        finally:
            self._answered = False


def _as_usual() -> None:
    """A forked child has signals of its own."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
