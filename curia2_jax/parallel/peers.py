"""Notices that another process of the run has died or hangs, before JAX does.

JAX's own clients end their process with SIGABRT as soon as their connection to process 0 breaks, and take no callback
for it (jaxlib 0.10: std::bad_cast). So that connection goes through a relay in each process: the relay sees the end of
it first, and says so in a line. It also sees silence, for JAX's heartbeats pass through it.

    JAX's client -> relay of its process -> relay of process 0 -> JAX's service
"""

import selectors
import socket
import threading
import time
from collections.abc import Callable

_NUMBER = 8  # digits that a relay says first: which process it belongs to


class Relay:
    """Listens at a local or public address and passes everything on. Watches once it is told that all have joined."""

    def __init__(
        self,
        listener: socket.socket,
        target: tuple[str, int],
        process: int,
        gone: Callable[[str], None],
        silence: float,
    ):
        """`process` is 0 for the relay in front of the service. `gone` is told who died, or was silent for so long."""
        self._listener, self._target, self._process, self._gone = listener, target, process, gone
        self._silence, self.watching = silence, False
        self._selector = selectors.DefaultSelector()
        self._other: dict[socket.socket, socket.socket] = {}
        self._heard: dict[socket.socket, tuple[str, float]] = {}  # remote ends: who, and when they last said something
        self._selector.register(listener, selectors.EVENT_READ)
        threading.Thread(target=self._run, daemon=True, name="peers").start()

    def leave(self) -> None:
        """The others may go now."""
        self.watching = False

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(timeout=self._silence / 20):
                end = key.fileobj
                assert isinstance(end, socket.socket)
                if end is self._listener:
                    self._accept()
                elif end in self._other:
                    self._pass_on(end)
            late = time.monotonic() - self._silence
            for who, heard in list(self._heard.values()):
                if self.watching and heard < late:
                    self._gone(f"{who} has been silent for {self._silence:.0f} s")

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            near.settimeout(10)
            who = "process 0"
            if self._process == 0:
                who = f"process {int(near.recv(_NUMBER, socket.MSG_WAITALL))}"
            far = socket.create_connection(self._target, timeout=10)
            if self._process:
                far.sendall(f"{self._process:0{_NUMBER}}".encode())
        except (OSError, ValueError):
            near.close()  # JAX tries again
            return
        for end, other in ((near, far), (far, near)):
            end.settimeout(60)
            self._other[end] = other
            self._selector.register(end, selectors.EVENT_READ)
        self._heard[far if self._process else near] = who, time.monotonic()

    def _pass_on(self, end: socket.socket) -> None:
        try:
            data = end.recv(1 << 16)
            if data:
                self._other[end].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._close(end)
        elif end in self._heard:
            self._heard[end] = self._heard[end][0], time.monotonic()

    def _close(self, end: socket.socket) -> None:
        """Both ends; first of all the word that a remote one has died."""
        other = self._other[end]
        for each in (end, other):
            if each in self._heard and each is end and self.watching:
                self._gone(f"{self._heard[each][0]} has died")
        for each in (end, other):
            self._selector.unregister(each)
            self._heard.pop(each, None)
            del self._other[each]
            each.close()
