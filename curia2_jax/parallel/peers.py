"""Notices that another process of the run has died or hangs, before JAX does.

JAX's own clients end their process with SIGABRT as soon as their connection to process 0 breaks, and take no callback
for it (jaxlib 0.10: std::bad_cast). So that connection goes through a relay in each process: the relay sees the end of
it first, and says so in a line. Beside it runs one of our own, on which both sides beat, and on which process 0 tells
all others who is gone.

    JAX's client -> relay of its process -> relay of process 0 -> JAX's service
                    relay of its process <- beats ->  relay of process 0
"""

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable

_NUMBER = 8  # digits that a relay says first, which process it belongs to; then a letter, what for
_JAX, _BEATS = "j", "b"


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
        """`process` is 0 for the relay in front of the service. `gone` is told who died, or said nothing for `silence`
        seconds."""
        self._listener, self._target, self._process, self._gone = listener, target, process, gone
        self._silence, self.watching = silence, False
        self._selector = selectors.DefaultSelector()
        self._other: dict[socket.socket, socket.socket] = {}  # the two ends of JAX's connections
        self._beats: list[socket.socket] = []
        self._who: dict[socket.socket, str] = {}  # at remote ends
        self._heard: dict[str, float] = {}  # when they last said something
        self._selector.register(listener, selectors.EVENT_READ)
        threading.Thread(target=self._run, daemon=True, name="peers").start()

    def leave(self) -> None:
        """The others may go now."""
        self.watching = False

    def _run(self) -> None:
        beaten = 0.0
        while True:
            for key, _ in self._selector.select(timeout=self._silence / 20):
                end = key.fileobj
                assert isinstance(end, socket.socket)
                if end is self._listener:
                    self._accept()
                elif end in self._other or end in self._beats:
                    self._receive(end)
            now = time.monotonic()
            if now - beaten > self._silence / 10:
                beaten = now
                self._say("")
            silent = [who for who, heard in self._heard.items() if now - heard > self._silence]
            if self.watching and silent:
                self._end(f"{silent[0]} has been silent for {self._silence:.0f} s")

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            near.settimeout(10)
            if self._process:
                self._pair(near, self._reach(_JAX))
                if not self._beats:
                    self._beat_with(self._reach(_BEATS), "process 0")
                return
            said = near.recv(_NUMBER + 1, socket.MSG_WAITALL).decode()
            who, purpose = f"process {int(said[:_NUMBER])}", said[_NUMBER:]
            if purpose == _BEATS:
                self._beat_with(near, who)
            else:
                self._pair(socket.create_connection(self._target, timeout=10), near, who)
        except (OSError, ValueError):
            near.close()  # JAX tries again

    def _reach(self, purpose: str) -> socket.socket:
        far = socket.create_connection(self._target, timeout=10)
        far.sendall(f"{self._process:0{_NUMBER}}{purpose}".encode())
        return far

    def _pair(self, local: socket.socket, remote: socket.socket, who: str = "process 0") -> None:
        """From now on what one of them says is passed on to the other."""
        for end, other in ((local, remote), (remote, local)):
            end.settimeout(60)
            self._other[end] = other
            self._selector.register(end, selectors.EVENT_READ)
        self._who[remote], self._heard[who] = who, time.monotonic()

    def _beat_with(self, remote: socket.socket, who: str) -> None:
        remote.settimeout(1)
        self._beats.append(remote)
        self._selector.register(remote, selectors.EVENT_READ)
        self._who[remote], self._heard[who] = who, time.monotonic()

    def _say(self, what: str) -> None:
        """A line to all whom we beat with; an empty one is a beat."""
        for end in self._beats:
            with contextlib.suppress(OSError):  # its end is seen where it is read
                end.sendall(f"{what}\n".encode())

    def _end(self, what: str) -> None:
        self._say(what)
        self._gone(what)

    def _receive(self, end: socket.socket) -> None:
        try:
            data = end.recv(1 << 16)
            if data and end in self._other:
                self._other[end].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._close(end)
            return
        if end in self._who:
            self._heard[self._who[end]] = time.monotonic()
        if end in self._beats and data.strip() and self.watching:
            self._gone(data.decode().strip())

    def _told(self) -> str:
        """What process 0 said last of somebody who is gone, if its own end was seen first."""
        for end in self._beats if self._process else ():
            with contextlib.suppress(OSError):
                return end.recv(1 << 16, socket.MSG_DONTWAIT).decode().strip()
        return ""

    def _close(self, end: socket.socket) -> None:
        """It and its other end; first of all the word that a remote one has died."""
        who = self._who.get(end)
        if who and self.watching:
            self._end(self._told() or f"{who} has died")
        for each in filter(None, (end, self._other.get(end))):
            self._selector.unregister(each)
            self._other.pop(each, None)
            self._heard.pop(self._who.pop(each, ""), None)
            if each in self._beats:
                self._beats.remove(each)
            each.close()
