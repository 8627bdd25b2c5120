"""Features of a split by an adapter, encoded once: a cache that a killed run goes on from.

A row's name is a hash of the model's weights and preprocessing, of how tokens are pooled, and of image, mask and
modality. Rows lie in files of `ROWS`; a name that is not there is encoded, so a cache can be wrong in no way but one:
what it holds is float32 of another machine.
"""

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from curia2_jax import files
from curia2_jax.curiabench.adapters.adapter import Adapter, Volume
from curia2_jax.curiabench.aggregate import Choice, feature
from curia2_jax.curiabench.splits import Split, read_sample

ROWS = 64  # a file; what a killed run loses at most


def encode(split: Split, adapter: Adapter, choice: Choice, cache: Path | None) -> tuple[np.ndarray, int]:
    """Features (n, D) float32 of the samples of a split, and how many of them were encoded now."""
    known = _read(cache, adapter.fingerprint) if cache else {}
    rows: dict[int, np.ndarray] = {}
    new: dict[str, np.ndarray] = {}
    made = 0
    for index in range(len(split.images)):
        image, mask = read_sample(split, index)
        key = _key(adapter, choice, image, mask, str(split.modalities[index]))
        if key not in known:
            known[key] = new[key] = feature(adapter, _volume(image, split, index), _slices_first(mask), choice)
            made += 1
        rows[index] = known[key]
        if cache and len(new) == ROWS:
            _write(cache, adapter.fingerprint, new)
            new = {}
    if cache and new:
        _write(cache, adapter.fingerprint, new)
    return np.stack([rows[index] for index in range(len(rows))]).astype(np.float32), made


def _volume(image: np.ndarray, split: Split, index: int) -> Volume:
    return Volume(_slices_first(image), str(split.modalities[index]))


def _slices_first(array: np.ndarray | None):
    """(H, W) or (H, W, S) -> (S, H, W)."""
    if array is None:
        return None
    return array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)


def _key(adapter: Adapter, choice: Choice, image: np.ndarray, mask: np.ndarray | None, modality: str) -> str:
    digest = hashlib.sha256(repr((adapter.fingerprint, tuple(choice), modality, image.shape)).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    digest.update(b"" if mask is None else np.packbits(mask).tobytes())
    return digest.hexdigest()


def _folder(cache: Path, fingerprint: str) -> Path:
    return cache / fingerprint[:32]


def _read(cache: Path, fingerprint: str) -> dict[str, np.ndarray]:
    """All rows of a model; a file that cannot be read is as if it were not there."""
    known: dict[str, np.ndarray] = {}
    for path in sorted(_folder(cache, fingerprint).glob("*.npz")):
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                known |= {str(name): file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            continue
    return known


def _write(cache: Path, fingerprint: str, rows: dict[str, np.ndarray]) -> None:
    folder = _folder(cache, fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    # Named by its content: two runs that encode the same write the same file.
    name = hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()[:32]
    with files.whole_file(folder / f"{name}.npz", sync=False) as partial, partial.open("wb") as file:
        np.savez(file, **rows)  # type: ignore[arg-type]
