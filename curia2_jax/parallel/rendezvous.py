"""Processes meet before JAX connects them, because JAX ends a process that waits in vain with SIGABRT and pages of C++.

Process 0 listens at the coordinator's port until every other one has said its number, then tells all to go on, or why
not; JAX takes the port over afterwards.
"""

import contextlib
import json
import os
import socket
import time
from typing import Any

from curia2_jax.errors import UserError

_REPORT = 60.0  # seconds between lines about who is awaited
_HANGS_UP = "it hangs up: a run has begun there, or another program listens"


def meet(coordinator: str, processes: int, process: int, patience: float) -> None:
    """Returns when all are there; `patience` is in seconds.

    Raises:
      UserError: the port is in use, two have one number, they disagree about how many they are, or somebody is missing.
    """
    host, _, port = coordinator.rpartition(":")
    if process == 0:
        _receive(coordinator, int(port), processes, patience)
    else:
        _report_to(host.strip("[]"), int(port), processes, process, patience)


def listen(port: int, processes: int) -> socket.socket:
    """A server at all addresses of this host. Raises OSError."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=processes)
    return socket.create_server(("", port), backlog=processes)


def _receive(coordinator: str, port: int, processes: int, patience: float) -> None:
    try:
        listener = listen(port, processes)
    except OSError as e:
        raise UserError(
            f"coordinator {coordinator}: process 0 cannot listen at port {port} ({e.strerror}); another process 0 or "
            "program is there; write --coordinator with a free one"
        ) from e
    came: dict[int, tuple[str, socket.socket]] = {}
    with contextlib.ExitStack() as closing:
        closing.enter_context(listener)
        problem = _gather(listener, came, closing, processes, patience)
        for _, connection in came.values():
            with contextlib.suppress(OSError):
                connection.sendall((problem or "go").encode() + b"\n")
    if problem:
        raise UserError(f"coordinator {coordinator}: {problem}")


def _gather(
    listener: socket.socket,
    came: dict[int, tuple[str, socket.socket]],
    closing: contextlib.ExitStack,
    processes: int,
    patience: float,
) -> str:
    """Fills `came` with {number: (who, connection)}; a problem in one line, or ""."""
    began = reported = time.monotonic()
    while len(came) < processes - 1:
        now = time.monotonic()
        missing = ", ".join(str(n) for n in range(1, processes) if n not in came)
        if now - began > patience:
            return f"of {processes} processes {missing} did not come within {patience:.0f} s; start all of them"
        if now - reported > _REPORT:
            reported = now
            print(f"waiting for process {missing} of {processes}", flush=True)
        listener.settimeout(min(1.0, patience))
        try:
            connection = closing.enter_context(listener.accept()[0])
            connection.settimeout(5)
            said = json.loads(connection.makefile().readline())
            number, count, who = said["process"], said["processes"], said["who"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # nobody yet, or nobody of ours
        problem = ""
        if count != processes:
            problem = f"process {number} was told of {count} processes, process 0 of {processes}; write the same number"
        elif number in came:
            problem = f"{who} and {came[number][0]} are both process {number}; number them from 0 to {processes - 1}"
        came[-1 if number in came else number] = (who, connection)
        if problem:
            return problem
    return ""


def _report_to(host: str, port: int, processes: int, process: int, patience: float) -> None:
    hello: dict[str, Any] = {"process": process, "processes": processes}
    hello["who"] = f"pid {os.getpid()} on {socket.gethostname()}"
    began = reported = time.monotonic()
    why = "nobody answers"
    while (left := began + patience - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(10.0, left)) as connection:
                connection.sendall(json.dumps(hello).encode() + b"\n")
                connection.settimeout(left + 30)  # process 0 has the same patience and says who is missing
                answer = connection.makefile(errors="replace").readline().strip()
                why = _HANGS_UP
        except ConnectionResetError:
            answer, why = "", _HANGS_UP
        except OSError as e:
            answer, why = "", e.strerror or type(e).__name__
        if answer == "go":
            return
        if answer:
            known = answer.isprintable() and " " in answer
            raise UserError(f"coordinator {host}:{port}: {answer if known else 'another program or run is there'}")
        if time.monotonic() - reported > _REPORT:
            reported = time.monotonic()
            print(f"waiting for process 0 at {host}:{port} ({why})", flush=True)
        time.sleep(min(0.5, patience / 10))
    raise UserError(
        f"coordinator {host}:{port}: process 0 cannot be reached within {patience:.0f} s ({why}); start it, or write "
        "its address"
    )
