"""The arrays of one item of a checkpoint, read one at a time and compared with what was saved, or written so."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from curia2_jax.errors import UserError
from curia2_jax.training.fingerprints import fingerprints

CHUNK = 64 * 2**20  # bytes of an array that are written at a time


class Damaged(UserError):
    """A checkpoint is not what was saved."""


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array of a checkpoint. NumPy reads it when it asks for it, each time anew; Damaged is raised then, if it is
    not what was saved. `fingerprint` is None in release 0.1.0."""

    where: str
    fingerprint: str | None
    array: ts.TensorStore

    shape = property(lambda self: tuple(self.array.shape))
    dtype = property(lambda self: self.array.dtype.numpy_dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with _readable(self.where):
            values = np.asarray(self.array.read().result(), dtype)
        if self.fingerprint not in (None, *fingerprints({"": values}).values()):
            raise Damaged(f"{self.where} is not what was saved")
        return values


def opened(folder: pathlib.Path, where: str, saved: Mapping[str, str] | None) -> dict[str, Any]:
    """The arrays of a folder of Orbax as nested dicts of StoredArray: nothing is read but names and shapes.

    Args:
      where: what to call the item in errors.
      saved: name with slashes -> fingerprint, or None where there are none.
    Raises:
      Damaged: the folder cannot be read, or has other arrays than were saved.
    """
    with _readable(where):
        # Not Orbax's own reader: when one array fails it leaves the others behind, which then print a traceback each.
        keys = ts.KvStore.open(_store(folder)).result().list().result()
        names = [key.decode().removesuffix("/.zarray") for key in keys if key.endswith(b"/.zarray")]
        arrays = [array.result() for array in [ts.open(_array(folder, name), read=True) for name in names]]
        described = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree  # a run's restore goes by it
        if set(names) != {array.name for array in jax.tree.leaves(described)} or not (folder / "_METADATA").exists():
            raise ValueError("_METADATA names other arrays")
    found = {name.replace(".", "/"): array for name, array in zip(names, arrays, strict=True)}
    proofs = dict.fromkeys(found) if saved is None else saved
    if other := sorted(proofs.keys() ^ found.keys()):
        raise Damaged(f"{where}/{other[0]} is not what was saved")
    leaves = {name: StoredArray(f"{where}/{name}", proofs[name], array) for name, array in found.items()}
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def replace(folder: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays over those that Orbax has written under the same names, no more than one in memory.

    Args:
      arrays: name with slashes -> an array, or what NumPy reads when its turn comes.
    """
    for name, leaf in arrays.items():
        values = np.asarray(leaf)
        shape = values.shape
        rows = min(max(1, CHUNK * shape[0] // max(values.nbytes, 1)), shape[0]) if shape else 0
        chunks = ts.ChunkLayout(chunk_shape=(rows, *shape[1:]) if shape else ())
        spec = _array(folder, name.replace("/", "."))
        made: dict[str, Any] = {
            "create": True,
            "delete_existing": True,
            "shape": shape,
            "dtype": values.dtype,
            "chunk_layout": chunks,
        }
        array = ts.open(spec, **made).result()
        # TensorStore copies and compresses all that it is given before it writes any of it.
        places = [slice(first, min(first + rows, shape[0])) for first in range(0, shape[0], rows)] if shape else [...]
        for place in places:
            array[place].write(values[place]).result()


def _store(folder: pathlib.Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": f"file://{folder}"}


def _array(folder: pathlib.Path, name: str) -> dict[str, Any]:
    return {"driver": "zarr", "kvstore": {**_store(folder), "path": f"{name}/"}}


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """TensorStore raises ValueError, json and Python's own what they please: all of it is Damaged."""
    try:
        yield
    except Exception as e:
        raise Damaged(f"{where} cannot be read ({type(e).__name__}: {' '.join(str(e).split())[:120]})") from e
