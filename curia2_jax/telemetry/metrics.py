"""Scalars of a run: one JSON line an interval in metrics.jsonl first, the same in TensorBoard files."""

import contextlib
import json
import math
import pathlib
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from curia2_jax import files

KEPT = 200  # rows in memory


def read(path: pathlib.Path) -> tuple[list[dict[str, float]], int]:
    """(rows of a metrics.jsonl, lines that are none); a last line cut short by a kill is not counted."""
    if not path.exists():
        return [], 0
    rows, bad = [], 0
    *lines, last = path.read_bytes().split(b"\n")
    for line in [*lines, last]:
        try:
            row = json.loads(line)
            rows.append(row | {"step": int(row["step"])})
        except (ValueError, TypeError, KeyError):  # ValueError: no UTF-8, no JSON, no number
            bad += line is not last
    return rows, bad


def rankme(tokens: np.ndarray) -> float:
    """Effective rank of (n, D) tokens: exp of the entropy of their normalized singular values (arXiv 2210.02885).

    In float64, rounded to float32, so that the last bits of a linear-algebra library do not tell two equal runs apart.
    NaN for tokens that are all zero or not all finite.
    """
    if not np.isfinite(tokens).all() or not tokens.any():
        return math.nan
    values = np.linalg.svd(tokens.astype(np.float64), compute_uv=False)
    p = values / values.sum()
    p = p[p > 0]
    return float(np.float32(np.exp(-np.sum(p * np.log(p)))))


class MetricsWriter:
    """Writes rows of scalars. Opened at `step`, it first drops what an earlier life of the run wrote beyond it.

    A disk that takes nothing stops no run: rows wait, in order and whole, until it does, and `trouble` says so.
    """

    def __init__(self, run: pathlib.Path, step: int):
        self._path = run / "metrics.jsonl"
        rows, bad = read(self._path)
        if bad:
            kept = self._path.with_name("metrics.jsonl.damaged")
            shutil.copyfile(self._path, kept)
            print(f"warning: {self._path}: {bad} damaged lines left out; the file is kept as {kept}", file=sys.stderr)
        rows = [row for row in rows if row["step"] <= step]
        files.write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        self.rows: list[dict[str, Any]] = rows  # the first and the newest KEPT, of all lives
        self._file = self._path.open("ab", buffering=0)
        self._waiting = b""
        self.trouble = ""
        # Not SummaryWriter: its thread ends at the first error, and then its queue blocks whoever writes.
        (run / "tensorboard").mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}"
        self._board = RecordWriter(str(run / "tensorboard" / name))
        void = SessionLog(status=SessionLog.START)  # what an earlier file has from this step on
        self._to_board(Event(file_version="brain.Event:2"), Event(step=step + 1, session_log=void))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one row, at once, so that a kill loses nothing. NaN is written as null."""
        row = {"step": step, **{name: None if math.isnan(value) else value for name, value in scalars.items()}}
        self.rows = [*self.rows[:1], *self.rows[1:][-KEPT:], row]
        self._waiting += json.dumps(row).encode() + b"\n"
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
            self.trouble = ""
        except OSError as e:
            rows = self._waiting.count(b"\n")
            self.trouble = f"{self._path}: {rows} rows wait ({e.strerror})"
        self._to_board(*(Event(step=step, summary=scalar(k, v)) for k, v in scalars.items() if not math.isnan(v)))

    def _to_board(self, *events: Event) -> None:
        with contextlib.suppress(OSError):  # metrics.jsonl has it
            for event in events:
                event.wall_time = time.time()
                self._board.write(event.SerializeToString())
            self._board.flush()

    def close(self) -> None:
        self._file.close()
        with contextlib.suppress(OSError):
            self._board.close()
