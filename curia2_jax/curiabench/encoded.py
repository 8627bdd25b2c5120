"""Features of a split by an adapter, encoded once: a cache that a killed run goes on from.

Rows lie in a folder of model, preprocessing, pooling and precision, under the hash of image, mask and modality. What is
not there is encoded, so a cache can be wrong in no way but one: what it holds was computed on another machine.
"""

import hashlib
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from curia2_jax import files
from curia2_jax.curiabench import forward, stream
from curia2_jax.curiabench.adapters.adapter import Adapter
from curia2_jax.curiabench.aggregate import Choice
from curia2_jax.curiabench.splits import Split
from curia2_jax.curiabench.stages import Stages

ROWS, SECONDS = 1024, 20.0  # of a file; what a killed run loses at most


def encode(
    split: Split, adapter: Adapter, choices: Sequence[Choice], device: str, cache: Path | None
) -> tuple[list[np.ndarray], int]:
    """Features (n, D) float32 of the samples of a split, one array a choice, and how many were encoded now.

    The choices differ in what is taken of a slice and not in the slices, nor in the norm.
    """
    stores = [_Store(cache, adapter, choice, device) for choice in choices]
    known = frozenset.intersection(*(frozenset(store.rows) for store in stores))
    keys, made = [""] * len(split.images), 0
    stages = Stages()
    parts = stream.parts(split, adapter, choices[0], known, device, stages)
    for sample, key, rows in forward.features(adapter, parts, choices, device, stages):
        keys[sample] = key
        for store, row in zip(stores, rows, strict=False):  # no row where it was known
            store.add(key, row)
        made += bool(rows)
    for store in stores:
        store.save()
    return [np.stack([store.rows[key] for key in keys]) for store in stores], made


class _Store:
    """Rows by their keys, in memory and, where there is a cache, in files."""

    def __init__(self, cache: Path | None, adapter: Adapter, choice: Choice, device: str):
        told = repr((adapter.fingerprint, tuple(choice), forward.precision(device)))
        self.folder = cache / hashlib.sha256(told.encode()).hexdigest()[:32] if cache else None
        self.rows: dict[str, np.ndarray] = _read(self.folder) if self.folder else {}
        self.new: list[str] = []
        self.saved = time.monotonic()

    def add(self, key: str, row: np.ndarray) -> None:
        """Keeps a row, and from time to time those that no file has."""
        self.rows[key] = row
        self.new.append(key)
        if len(self.new) >= ROWS or time.monotonic() - self.saved >= SECONDS:
            self.save()

    def save(self) -> None:
        """Writes what no file has yet."""
        if self.folder and self.new:
            _write(self.folder, self.new, np.stack([self.rows[key] for key in self.new]))
        self.new, self.saved = [], time.monotonic()


def _read(folder: Path) -> dict[str, np.ndarray]:
    """All rows of a model; a file that cannot be read is as if it were not there."""
    known: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                known |= zip(file["keys"].tolist(), file["rows"], strict=True)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            continue
    return known


def _write(folder: Path, keys: list[str], rows: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Named by its content: two runs that encode the same write the same file.
    name = hashlib.sha256("".join(sorted(keys)).encode()).hexdigest()[:32]
    with files.whole_file(folder / f"{name}.npz", sync=False) as partial, partial.open("wb") as file:
        np.savez(file, keys=np.array(keys), rows=rows)
