"""An array of a checkpoint that is read when it is asked for, and proves itself then."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore as ts

from curia2_jax.errors import UserError
from curia2_jax.training.fingerprints import fingerprints


class Damaged(UserError):
    """A checkpoint is not what was saved."""


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """TensorStore raises ValueError, json and Python's own what they please: all of it is Damaged."""
    try:
        yield
    except Exception as e:
        raise Damaged(f"{where} cannot be read ({type(e).__name__}: {' '.join(str(e).split())[:120]})") from e


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
        with readable(self.where):
            values = np.asarray(self.array.read().result(), dtype)
        if self.fingerprint not in (None, *fingerprints({"": values}).values()):
            raise Damaged(f"{self.where} is not what was saved")
        return values
