"""Where the time of a run went, over all its lives: RUN/goodput.jsonl, and one line at the end."""

import collections
import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from curia2_jax import files
from curia2_jax.telemetry.progress import duration
from curia2_jax.telemetry.thinning import is_time, thinned

NAME = "goodput.jsonl"
PHASES = ("start", "restore", "compile", "step", "data", "look", "save")


class Ledger:
    """The clock of one life of a run: every second since it was made belongs to one of PHASES.

    `data` is the time that the host waits for a batch, during which the devices may still be at the step before.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._phase, self._since = "start", time.monotonic()
        self._path: pathlib.Path | None = None
        self._every = 1
        self._life = f"{time.time():.3f}-{os.getpid()}"

    def enter(self, phase: str) -> str:
        """From now on it is `phase`; returns what it was."""
        now = time.monotonic()
        self._seconds[self._phase] += now - self._since
        before, self._phase, self._since = self._phase, phase, now
        return before

    @contextlib.contextmanager
    def spent(self, phase: str) -> Iterator[None]:
        """What happens inside is `phase`."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def begin(self, run: pathlib.Path, step: int, every_steps: int) -> None:
        """From now on `write` appends to the file of this run, which goes on from `step` and writes a row each
        `every_steps`. For one process of a run."""
        self._path, self._every = run / NAME, every_steps
        self.write(step)
        self._thin()

    def write(self, step: int) -> None:
        """Notes the seconds of this life so far, after step `step`, so that a kill loses what came after alone."""
        if self._path is None:
            return
        self.enter(self._phase)
        row: dict[str, Any] = {"life": self._life, "time": round(time.time(), 3), "step": step}
        seconds = {phase: round(self._seconds[phase], 3) for phase in PHASES}
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:  # no log stops a run
            file.write(json.dumps(row | {"seconds": seconds}) + "\n")
        if is_time(step, self._every):
            self._thin()

    def _thin(self) -> None:
        if self._path is not None and (rows := read(self._path)):
            with contextlib.suppress(OSError):  # a full disk: next time
                files.write_text(self._path, "".join(json.dumps(row) + "\n" for row in bounded(rows, self._every)))

    def line(self) -> str:
        """One line about all lives, or nothing where nothing was written."""
        rows = read(self._path) if self._path else []
        return told(totals(rows), len({row["life"] for row in rows})) if rows else ""


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a ledger; what a kill or a disk damaged is left out."""
    rows = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                row = json.loads(line)
                rows.append({"life": str(row["life"]), "time": float(row["time"]), "step": int(row["step"]),
                             "seconds": {phase: float(row["seconds"].get(phase, 0)) for phase in PHASES}})  # fmt: skip
    return rows


def totals(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of PHASES over all lives; `lost`, for steps that a later life did again; `apart`, between two lives.

    Of a life that was killed, what came after its last row is part of `apart`.
    """
    out: dict[str, float] = dict.fromkeys((*PHASES, "lost", "apart"), 0.0)
    lives = _lives(rows)
    for life, later, kept in zip(lives, [*lives, []][1:], _kept(lives), strict=True):
        last = life[-1]
        if later:
            began = later[0]["time"] - sum(later[0]["seconds"].values())
            out["apart"] += max(began - last["time"], 0.0)
        for phase in PHASES:
            out[phase] += kept["seconds"][phase]
            out["lost"] += last["seconds"][phase] - kept["seconds"][phase]
    return out


def bounded(rows: list[dict[str, Any]], every_steps: int) -> list[dict[str, Any]]:
    """The rows that `totals` needs: the first and the last of each life, that from which a later one went on, and of
    those before it what telemetry/thinning leaves. A life to come that goes back behind the newest 2,048 steps with a
    row counts as `lost` from the nearest that stayed."""
    lives = _lives(rows)
    stay: list[dict[str, Any]] = []
    for life, kept in zip(lives, _kept(lives), strict=True):
        before = thinned(life[1 : life.index(kept)], rows[-1]["step"], every_steps)
        stay += {id(row): row for row in (life[0], *before, kept, life[-1])}.values()
    return stay


def _lives(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    lives: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        lives.setdefault(row["life"], []).append(row)
    return list(lives.values())


def _kept(lives: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of each life the last row whose step no later one did again; its first, if there is none."""
    rows, back = [], math.inf
    for life in reversed(lives):
        rows.append(next((row for row in reversed(life) if row["step"] <= back), life[0]))
        back = min(back, life[0]["step"])
    return rows[::-1]


def told(seconds: dict[str, float], lives: int) -> str:
    """One line: the share of the time in which steps were taken that count, and all that took any."""
    whole = max(sum(seconds.values()), 1e-9)
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items() if value >= 0.5)
    where = f" in {lives} lives" if lives > 1 else ""
    return f"goodput {seconds['step'] / whole:.0%} of {duration(whole)}{where}: {parts}"
