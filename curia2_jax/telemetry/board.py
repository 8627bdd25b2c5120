"""The figures of a run for TensorBoard: RUN/tensorboard/events.out.tfevents.*, of bounded size."""

import contextlib
import itertools
import math
import os
import pathlib
import platform
import time
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from curia2_jax.telemetry import events

LIMIT = 64 << 20  # bytes


class Board:
    """Writes one file a life. A disk that takes nothing stops no run: metrics.jsonl has it all."""

    def __init__(self, run: pathlib.Path, step: int):
        """What earlier files have beyond `step` is declared void."""
        self._folder = run / "tensorboard"
        self._folder.mkdir(exist_ok=True)
        self._file = self._opened(step + 1)

    def _opened(self, void_from: int) -> BinaryIO:
        stem = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}"
        path = next(p for n in itertools.count() if not (p := self._folder / f"{stem}.{n}").exists())
        file = path.open("wb")
        _put(file, [events.opening(), events.void(void_from)])
        return file

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        _put(self._file, [_figures(step, scalars)])

    def bound(self, rows: list[dict[str, float]]) -> None:
        """Puts a file with these rows alone in the place of all, where they take more than LIMIT."""
        with contextlib.suppress(OSError):
            files = list(self._folder.iterdir())
            if sum(path.stat().st_size for path in files) <= LIMIT:
                return
            file = self._opened(0)
            _put(file, (_figures(int(row["step"]), row) for row in rows))
            self._file.close()
            self._file = file
            for path in files:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _figures(step: int, scalars: Mapping[str, float | None]) -> bytes:
    """The record of a row; what is no number is left out."""
    found = {name: x for name, x in scalars.items() if name != "step" and x is not None and not math.isnan(x)}
    return events.scalars(step, found)


def _put(file: BinaryIO, records: Iterable[bytes]) -> None:
    with contextlib.suppress(OSError):
        file.writelines(records)
        file.flush()
