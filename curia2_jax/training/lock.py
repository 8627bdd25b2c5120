"""One process writes to a run: WORKDIR/lock names it, and it says every few seconds that it lives.

A lock is made by a hard link, which is atomic on NFS as well; flock is not everywhere. On the machine of the owner its
process says whether it lives. From elsewhere that is seen by the time of the file, which the owner renews; both times
that are compared are given by the file system, so clocks may differ. A machine is a name, a boot and a set of process
numbers: pods that follow each other under one name are not one machine.
"""

import contextlib
import errno
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Self

from curia2_jax.errors import UserError

NAME = "lock"
BEAT, STALE = 5.0, 60.0  # seconds: a renewal of the time; without one for so long an owner is dead


def this_process() -> dict[str, Any]:
    """Who takes a lock."""
    parts = [socket.gethostname()]
    for name in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):  # Linux
        with contextlib.suppress(OSError):
            path = pathlib.Path(name)
            parts.append(os.readlink(path) if path.is_symlink() else path.read_text().strip())
    return {"host": parts[0], "machine": " ".join(parts), "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in a form to compare; None where the system does not say."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _lives(owner: dict[str, Any]) -> bool:
    """Whether a process of this machine is still the one that took the lock."""
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(owner["pid"]) == owner["started"]


class Lock:
    """The lock of a working directory, from `take` on until it is closed. A context."""

    def __init__(self, folder: pathlib.Path, lost: Callable[[str], None]):
        """`lost` is told, from a thread, when somebody else has taken the run over: then nothing may be written."""
        self._path, self._lost, self._over = folder / NAME, lost, threading.Event()
        self._mine = {**this_process(), "id": uuid.uuid4().hex, "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}

    def take(self) -> Self:
        """Waits, for a minute at most, until it is certain whether an owner on another machine lives.

        Raises:
          UserError: it does.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        own = self._path.with_name(f"{NAME}.{self._mine['id']}")
        try:
            own.write_text(json.dumps(self._mine))
            while not self._made(own, self._path):
                self._break(own)
        finally:
            own.unlink(missing_ok=True)
        threading.Thread(target=self._beat, daemon=True, name="lock").start()
        return self

    def _made(self, own: pathlib.Path, path: pathlib.Path) -> bool:
        """Gives this process's file a second name, unless that is taken."""
        os.utime(own)  # it may have waited
        try:
            os.link(own, path)
        except FileExistsError:
            try:
                return path.samefile(own)  # an NFS server may have linked and lost its answer
            except FileNotFoundError:  # its owner gave it back meanwhile
                return False
        except OSError as e:
            if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            with contextlib.suppress(FileExistsError), open(path, "x") as file:  # a mounted bucket has no links
                file.write(own.read_text())
                return True
            return False
        return True

    def _break(self, own: pathlib.Path) -> None:
        """Removes the lock of a dead owner, with a line. Raises UserError if the owner lives."""
        found = self._read()
        if found is None:
            return
        owner, seen = found
        if owner.get("machine") == self._mine["machine"]:
            if _lives(owner):
                raise self._refusal(owner)
        else:
            while (age := self._age(self._path)) is not None and age < STALE:
                time.sleep(min(1.0, STALE / 10))
                if (now := self._read()) != (owner, seen):
                    if now is not None:
                        raise self._refusal(now[0])
                    return
        # Of all who have found it dead one may remove it, and only as long as it is that one's.
        permit = self._path.with_name(f"{NAME}.{owner.get('id', 'unknown')}.dead")
        if not self._made(own, permit):
            if (self._age(permit) or 0) > STALE:
                permit.unlink(missing_ok=True)
            time.sleep(0.01)
            return
        if (now := self._read()) is not None and now[0] == owner:
            self._path.unlink(missing_ok=True)
            print(f"taking over from process {_named(owner)}, which is gone", flush=True)
        permit.unlink(missing_ok=True)

    def _read(self) -> tuple[dict[str, Any], int] | None:
        """(owner, time of the file) or None; opened anew, for then NFS asks its server."""
        try:
            with open(self._path) as file:
                text, status = file.read(), os.fstat(file.fileno())
        except FileNotFoundError:
            return None
        try:
            return json.loads(text or "{}"), status.st_mtime_ns
        except ValueError:
            return {}, status.st_mtime_ns

    def _age(self, path: pathlib.Path) -> float | None:
        """Seconds since a file was written or renewed, by the clock of the file system; None if it is gone."""
        probe = self._path.with_name(f"{NAME}.{self._mine['id']}.now")
        try:
            probe.write_text("")
            return probe.stat().st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            probe.unlink(missing_ok=True)

    def _refusal(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"--workdir {self._path.parent}: process {_named(owner)} writes there; wait for it or stop it, or write "
            "another folder"
        )

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            try:
                found = self._read()
                if found is None or found[0] != self._mine:
                    if not self._over.is_set():
                        self._lost("lock is gone" if found is None else f"process {_named(found[0])} has taken it over")
                    return
                os.utime(self._path)
            except OSError:
                continue  # a disk that is away for a while

    def close(self) -> None:
        """Gives the lock back, if it is still ours."""
        self._over.set()
        with contextlib.suppress(OSError):
            found = self._read()
            if found is not None and found[0] == self._mine:
                self._path.unlink()


def clear_leftovers(folder: pathlib.Path) -> None:
    """Removes what processes that were killed while they asked for the lock have left. For its owner, whose lock is
    renewed all the time and so gives the hour; others that ask renew what they have, too."""
    with contextlib.suppress(OSError):
        now = (folder / NAME).stat().st_mtime
        for path in folder.glob(f"{NAME}.*"):
            if now - path.stat().st_mtime > 10 * STALE:
                path.unlink(missing_ok=True)


def owner_id(folder: pathlib.Path) -> str:
    """What tells this life of a run from others, in all its processes; "" where the lock is not seen."""
    try:
        return str(json.loads((folder / NAME).read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _named(owner: dict[str, Any]) -> str:
    return f"{owner.get('pid', 'unknown')} on {owner.get('host', 'unknown')} (since {owner.get('since', 'unknown')})"
