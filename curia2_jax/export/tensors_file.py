"""A .safetensors file, one tensor at a time: what does not fit into memory twice is written and read by pieces.

Source of the format: https://github.com/huggingface/safetensors#format. Files are read by its own library, which checks
every length and place before it hands out a byte; that one writes a file from memory only.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - makes bfloat16 known to NumPy
import numpy as np
import safetensors

from curia2_jax.errors import UserError

_DTYPES = {"float32": "F32", "int32": "I32"}


class Piece(NamedTuple):
    """Rows `row`, `row + 1`, ... (axis 0) of the tensor `name`; a tensor without axes is one piece at row 0."""

    name: str
    row: int
    values: np.ndarray


class Like(NamedTuple):
    """Shape and dtype of a tensor that is to be written."""

    shape: tuple[int, ...]
    dtype: np.dtype


def write(path: pathlib.Path, like: Mapping[str, Any], pieces: Iterable[Piece], metadata: Mapping[str, str]) -> None:
    """Writes a file, with the permissions that umask leaves; no more than one piece is in memory.

    Args:
      like: name -> anything with `shape` and `dtype` (float32 or int32), of every tensor.
      pieces: all rows of all tensors, in any order.
    Raises:
      ValueError: the pieces are not these tensors.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(like):
        size = int(np.prod(like[name].shape, dtype=np.int64)) * 4
        dtype = _DTYPES[np.dtype(like[name].dtype).name]
        header[name] = {"dtype": dtype, "shape": list(like[name].shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start, missing = file.tell(), end
        file.truncate(start + end)
        for name, row, values in pieces:
            dtype, shape, (first, last) = header[name].values()
            inside = first + row * 4 * int(np.prod(shape[1:], dtype=np.int64))
            if _DTYPES.get(values.dtype.name) != dtype or list(values.shape[1:]) != shape[1:]:
                raise ValueError(f"{name} is {values.dtype} {values.shape}, not {dtype} {shape}")
            if inside + values.nbytes > last:
                raise ValueError(f"{name}: rows {row} to {row + len(values)} of {shape[0]}")
            file.seek(start + inside)
            file.write(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
            missing -= values.nbytes
        if missing:
            raise ValueError(f"{path.name}: {missing} bytes of {end} were not given")


@dataclasses.dataclass(frozen=True)
class Later:
    """An array that NumPy reads when it asks for it, each time anew."""

    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.values(), dtype)


def _tensor(path: pathlib.Path, name: str) -> np.ndarray:
    # Opened for this tensor alone: the pages of a file that stays mapped stay in memory.
    with safetensors.safe_open(path, "np") as file:
        try:
            return file.get_tensor(name)
        except (TypeError, KeyError, AttributeError) as e:
            raise UserError(f"{path}: {name} has a dtype that NumPy lacks ({e}); write float32 or bfloat16") from None


def read(path: pathlib.Path) -> dict[str, Later]:
    """The tensors of a file by name, none of them read.

    Raises:
      UserError: the file is not there, or not a whole .safetensors file.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: not there; write a folder with safetensors weights") from None
    except (safetensors.SafetensorError, OSError) as e:
        raise UserError(f"{path}: not a whole safetensors file ({e}); fetch it again") from None
    return {name: Later(shape, functools.partial(_tensor, path, name)) for name, shape in shapes.items()}
