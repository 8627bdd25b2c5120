"""Ends a run that does not move any more: stacks of all threads into its folder, one line, and a code.

What a phase may take is learnt from the run: many times the longest so far, and never less than its floor.
"""

import contextlib
import faulthandler
import json
import pathlib
import threading
import time
from typing import Self

from curia2_jax import files
from curia2_jax.ending import NOT_AGAIN, STOPPED, end_now, on_fault
from curia2_jax.telemetry.progress import duration

FLOORS = {"restore": 7200.0, "compile": 10_800.0, "step": 900.0, "save": 3600.0}  # seconds
TIMES = 20  # the longest of a phase so far
TRIES = 3  # lives that may end by a fault without a newer checkpoint


class Watchdog:
    """Watches one process from a thread. A context; `enter` says what the main thread is about to do."""

    def __init__(self, folder: pathlib.Path, process: int):
        self._folder, self._process = folder, process
        self._longest = dict.fromkeys(FLOORS, 0.0)
        self._phase, self._since, self._over = "", time.monotonic(), threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def enter(self, phase: str) -> None:
        """Ends the phase before, and learns from it how long it takes. "" is not watched."""
        now = time.monotonic()
        if self._phase:
            self._longest[self._phase] = max(self._longest[self._phase], now - self._since)
        self._phase, self._since = phase, now

    def _watch(self) -> None:
        while not self._over.wait(min(5.0, min(FLOORS.values()) / 10)):
            phase, since = self._phase, self._since
            if not phase:
                continue
            took, budget = time.monotonic() - since, max(FLOORS[phase], TIMES * self._longest[phase])
            if took > budget:
                path = self._folder / f"stacks-{self._process}.txt"
                with contextlib.suppress(OSError), open(path, "w") as file:
                    faulthandler.dump_traceback(file)
                longest = duration(self._longest[phase]) if self._longest[phase] else "not known"
                end_now(
                    STOPPED,
                    f"process {self._process} stops: a {phase} has not ended for {duration(took)} (the longest so far: "
                    f"{longest}); where every thread is stands in {path}",
                    fault=True,
                )


def count_faults(folder: pathlib.Path, newest: int | None, life: str) -> contextlib.AbstractContextManager[None]:
    """Inside, an end by a fault is written into WORKDIR/faults.json; the third in a row from the same checkpoint has
    the code that no scheduler starts again. `life` is the same in all processes of one call, which count once."""
    path = folder / "faults.json"

    def count() -> int:
        try:
            before = json.loads(path.read_text())
            lives = before["lives"] if before["step"] == newest else []
        except (OSError, ValueError, KeyError, TypeError):
            lives = []
        lives = [*lives, *([] if life in lives else [life])]
        files.write_text(path, json.dumps({"step": newest, "lives": lives}) + "\n")
        return NOT_AGAIN if len(lives) >= TRIES else STOPPED

    return on_fault(count)
