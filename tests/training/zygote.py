"""Calls of launch/main.py as processes of their own, forked from one that has done the imports: seconds less for each.

Run as a script it is that process, and reads what to start from its standard input.
"""

import importlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAIN = str(ROOT / "launch" / "main.py")


class Call:
    """A process of launch/main.py. What it says goes into files; what it is about to do, as well (`phases`)."""

    def __init__(self, zygote: "Zygote", pid: int, folder: pathlib.Path):
        self._zygote, self.pid, self._folder, self.code = zygote, pid, folder, None

    def poll(self) -> int | None:
        """The exit code, if it has one."""
        if self.code is None:
            self.code = self._zygote.ask({"poll": self.pid})
        return self.code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def ended(self, timeout: float = 240) -> tuple[int, list[str]]:
        """(exit code, lines of stderr); a process that says nothing for `timeout` seconds hangs."""
        said, since = "", time.monotonic()
        while self.poll() is None:
            if (now := self.read("out")) != said:
                said, since = now, time.monotonic()
            elif time.monotonic() > since + timeout:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"nothing more for {timeout} s: {said[-2000:]}{self.read('err')}")
            time.sleep(0.02)
        return self.code, self.read("err").splitlines()

    def read(self, name: str) -> str:
        """`out`, `err` or `phases`: restore, compile, step and save, a line each, as they begin."""
        return (self._folder / name).read_text()

    def reached(self, name: str, beginning: str, times: int = 1) -> bool:
        """Waits until so many lines begin like this, in `out` or in `phases`; False if the process ends before."""
        for line in self._lines(name):
            times -= line.startswith(beginning)
            if times <= 0:
                return True
        return False

    def _lines(self, name: str) -> Iterator[str]:
        with open(self._folder / name) as file:
            rest = ""
            while True:
                over = self.poll() is not None
                rest += file.read()
                *lines, rest = rest.split("\n")
                yield from lines
                if over:
                    return
                time.sleep(0.005)


class Zygote:
    """A context. `env` is what the library reads when it is imported: the caches, the flags of XLA."""

    def __init__(self, folder: pathlib.Path, env: dict[str, str]):
        self._folder, self._count = folder, 0
        folder.mkdir()
        line = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(line, env=env | {"PYTHONPATH": str(ROOT)}, cwd=folder, **pipes)

    def ask(self, request: dict) -> int | None:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *arguments: str, devices: int = 1) -> Call:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        for name in ("out", "err", "phases"):
            (folder / name).touch()
        pid = self.ask({"start": arguments, "folder": str(folder), "devices": devices})
        return Call(self, pid, folder)

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def serve() -> None:
    """Starts what it is asked for; returns in each process that it has started."""
    import jax

    for name in ("parallel.preemption", "training.branch", "training.loop"):
        importlib.import_module(f"curia2_jax.{name}")
    importlib.import_module("launch.command")
    from curia2_jax.training.watchdog import Watchdog

    while line := os.read(0, 1 << 16).decode():
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            os.setsid()
            folder = pathlib.Path(request["folder"])
            for number, name in enumerate((os.devnull, folder / "out", folder / "err")):
                os.dup2(os.open(name, os.O_RDWR | os.O_APPEND), number)
            jax.config.update("jax_num_cpu_devices", request["devices"])
            sys.argv = sys.orig_argv = [MAIN, *request["start"]]
            enter = Watchdog.enter

            def say(self: Watchdog, phase: str) -> None:
                with open(folder / "phases", "a") as file:  # noqa: B023
                    file.write(f"{phase}\n")
                enter(self, phase)  # noqa: B023

            Watchdog.enter = say
            return
    os._exit(0)


if __name__ == "__main__":
    serve()
    runpy.run_path(MAIN, run_name="__main__")
