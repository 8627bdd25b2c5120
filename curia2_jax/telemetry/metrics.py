"""Scalars of a run: one JSON line an interval in metrics.jsonl first, the same in TensorBoard files."""

import json
import math
import pathlib

import numpy as np
from tensorboardX import SummaryWriter

from curia2_jax import files


def read(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl; a last line cut short by a kill is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


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
    """Writes rows of scalars. Opened at `step`, it first drops what an earlier life of the run wrote beyond it."""

    def __init__(self, run: pathlib.Path, step: int):
        self._path = run / "metrics.jsonl"
        kept = [row for row in read(self._path) if row["step"] <= step]
        files.write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one row; flushed, so that a kill loses nothing. NaN is written as null."""
        row = {"step": step, **{name: None if math.isnan(value) else value for name, value in scalars.items()}}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            if not math.isnan(value):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
