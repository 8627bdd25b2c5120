"""Scalars of a run: one JSON line an interval in metrics.jsonl first, the same in TensorBoard files."""

import contextlib
import json
import math
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from curia2_jax import files
from curia2_jax.telemetry.thinning import is_time, thinned

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

    A disk that takes nothing stops no run: rows wait, in order and whole, until it does, and `trouble` says so. Of a
    long run, ever fewer of the older rows stay (telemetry/thinning.py).
    """

    def __init__(self, run: pathlib.Path, step: int, every_steps: int):
        self._path, self._every = run / "metrics.jsonl", every_steps
        rows, bad = read(self._path)
        if bad:
            kept = self._path.with_name("metrics.jsonl.damaged")
            shutil.copyfile(self._path, kept)
            print(f"warning: {self._path}: {bad} damaged lines left out; the file is kept as {kept}", file=sys.stderr)
        rows = thinned([row for row in rows if row["step"] <= step], step, every_steps)
        files.write_text(self._path, as_text(rows))
        self.rows: list[dict[str, Any]] = rows  # the first and the newest KEPT, of all lives
        self._file = self._path.open("ab", buffering=0)
        self._waiting = b""
        self.trouble = ""
        from curia2_jax.telemetry.board import Board  # tensorboardX imports PyTorch where there is one: not to read

        self._board = Board(run, step)
        self._board.bound(rows)

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
        self._board.write(step, scalars)
        if is_time(step, self._every) and not self._waiting:
            self._thin(step)

    def _thin(self, step: int) -> None:
        with contextlib.suppress(OSError):  # a full disk: next time
            rows = thinned(read(self._path)[0], step, self._every)
            files.write_text(self._path, as_text(rows))
            self._file.close()
            self._file = self._path.open("ab", buffering=0)
            self._board.bound(rows)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def as_text(rows: list[dict[str, float]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
