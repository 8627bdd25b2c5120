"""The figures of a run for TensorBoard: RUN/tensorboard/events.out.tfevents.*, of bounded size."""

import contextlib
import itertools
import math
import os
import pathlib
import platform
import time
from collections.abc import Iterable, Mapping

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

LIMIT = 64 << 20  # bytes


class Board:
    """Writes one file a life. A disk that takes nothing stops no run: metrics.jsonl has it all."""

    # Not SummaryWriter: its thread ends at the first error, and then its queue blocks whoever writes.

    def __init__(self, run: pathlib.Path, step: int):
        """What earlier files have beyond `step` is declared void."""
        self._folder = run / "tensorboard"
        self._folder.mkdir(exist_ok=True)
        self._writer = self._opened(step + 1)

    def _opened(self, void_from: int) -> RecordWriter:
        stem = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}"
        path = next(p for n in itertools.count() if not (p := self._folder / f"{stem}.{n}").exists())
        writer = RecordWriter(str(path))
        void = SessionLog(status=SessionLog.START)
        _put(writer, [Event(file_version="brain.Event:2"), Event(step=void_from, session_log=void)])
        return writer

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        _put(self._writer, [_event(step, scalars)])

    def bound(self, rows: list[dict[str, float]]) -> None:
        """Puts a file with these rows alone in the place of all, where they take more than LIMIT."""
        with contextlib.suppress(OSError):
            files = list(self._folder.iterdir())
            if sum(path.stat().st_size for path in files) <= LIMIT:
                return
            writer = self._opened(0)
            _put(writer, (_event(int(row["step"]), row) for row in rows))
            self._writer.close()
            self._writer = writer
            for path in files:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.close()


def _event(step: int, scalars: Mapping[str, float | None]) -> Event:
    """What is no number is left out."""
    found = {name: x for name, x in scalars.items() if name != "step" and x is not None and not math.isnan(x)}
    return Event(
        step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=x) for name, x in found.items()])
    )


def _put(writer: RecordWriter, events: Iterable[Event]) -> None:
    with contextlib.suppress(OSError):
        for event in events:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())
        writer.flush()
