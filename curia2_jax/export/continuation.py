"""What others need to go on from an export beside its backbone: the heads of its teacher, and the state of its run.

    training/heads.safetensors            dino_head.mlp.0.weight and so on: the names and layout of facebookresearch's
                                          DINOHead; ibot_head.* where the run has a second head
    training/training_state.safetensors   params/..., opt_state/..., centers/...: paths and layout of the checkpoint

They lie in a folder of their own, where no loader takes them for weights of the model.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from curia2_jax.errors import UserError
from curia2_jax.export import tensors_file
from curia2_jax.export.tensors_file import Piece

FOLDER, HEADS, STATE = "training", "heads.safetensors", "training_state.safetensors"
STATE_ITEMS = ("params", "opt_state", "centers")
_HEAD = re.compile(r"(dino_head|ibot_head)\.(mlp(?:\.(\d+))?|last_layer)\.(weight|bias|weight_v|weight_g)")
_LAST = {"v": "weight_v", "g": "weight_g", "kernel": "weight"}


def write_heads(directory: pathlib.Path, teacher: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes training/heads.safetensors into an export.

    Args:
      teacher: {backbone, dino_head[, ibot_head]} of arrays, or of what NumPy reads when its turn comes.
    """
    flat = flatten_dict({name: tree for name, tree in teacher.items() if name != "backbone"}, sep="/")
    like, names = {}, {}
    for path, leaf in flat.items():
        names[path] = _in_torch(path, flat)
        shape = (leaf.shape[0], 1) if path.endswith("/g") else tuple(reversed(leaf.shape))
        like[names[path]] = tensors_file.Like(shape, np.dtype(np.float32))

    def pieces() -> Iterator[Piece]:
        for path, leaf in flat.items():
            yield Piece(names[path], 0, np.asarray(leaf).T.reshape(like[names[path]].shape))

    (directory / FOLDER).mkdir(exist_ok=True)
    tensors_file.write(directory / FOLDER / HEADS, like, pieces(), metadata)


def _in_torch(path: str, among: Mapping[str, Any]) -> str:
    """dino_head/mlp_1/kernel -> dino_head.mlp.2.weight: an activation stands between two layers."""
    head, layer, kind = path.split("/")
    if layer == "last_layer":
        return f"{head}.last_layer.{_LAST[kind]}"
    only = f"{head}/mlp_1/kernel" not in among
    number = "" if only else f".{2 * int(layer.removeprefix('mlp_'))}"
    return f"{head}.mlp{number}.{'weight' if kind == 'kernel' else kind}"


def read_heads(directory: pathlib.Path) -> dict[str, Any]:
    """{dino_head[, ibot_head]} of float32 arrays, to the bit what `write_heads` was given; {} if the export has none.

    Raises:
      UserError: the file is damaged, or holds something else.
    """
    path = directory / FOLDER / HEADS
    flat = {}
    for name, stored in tensors_file.read(path).items() if path.exists() else ():
        found = _HEAD.fullmatch(name)
        values = np.asarray(stored)
        if not found or values.dtype != np.float32:
            raise UserError(f"{path}: {name} ({values.dtype}) is no parameter of a head; fetch it again")
        head, layer, number, kind = found.groups()
        ours = "last_layer" if layer == "last_layer" else f"mlp_{int(number or 0) // 2}"
        last = {theirs: name for name, theirs in _LAST.items()}
        leaf = last[kind] if layer == "last_layer" else "kernel" if kind == "weight" else kind
        flat[f"{head}/{ours}/{leaf}"] = np.ascontiguousarray(values[:, 0] if kind == "weight_g" else values.T)
    return unflatten_dict(flat, sep="/")


def write_state(directory: pathlib.Path, items: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes training/training_state.safetensors into an export.

    Args:
      items: {params, opt_state, centers} of the checkpoint, as `write_heads` takes them.
    """
    flat = flatten_dict(dict(items), sep="/")
    pieces = (Piece(name, 0, np.asarray(leaf)) for name, leaf in flat.items())
    (directory / FOLDER).mkdir(exist_ok=True)
    tensors_file.write(directory / FOLDER / STATE, flat, pieces, metadata)


@dataclasses.dataclass(frozen=True)
class State:
    """What `write_state` was given: {params, opt_state, centers} of what NumPy reads in its turn, and its metadata."""

    items: dict[str, Any]
    metadata: dict[str, str]


def read_state(directory: pathlib.Path) -> State | None:
    """The training state of an export, or None if it has none.

    Raises:
      UserError: the file is damaged, or holds something else.
    """
    path = directory / FOLDER / STATE
    if not path.exists():
        return None
    flat, metadata = tensors_file.read(path), tensors_file.metadata(path)
    shapes = {name: leaf.shape for name, leaf in flat.items()}
    under = {part: {name.removeprefix(part): shape for name, shape in shapes.items() if name.startswith(part)}
             for part in ("params/", "opt_state/mu/", "opt_state/nu/")}  # fmt: skip
    known = all(name.partition("/")[0] in STATE_ITEMS for name in flat)
    if not known or not under["params/"] or any(part != under["params/"] for part in under.values()):
        raise UserError(f"{path}: no student with Adam's moments of its parameters; fetch it again")
    if not metadata.get("step", "").isdigit():
        raise UserError(f"{path}: its header says no step; fetch it again")
    return State(unflatten_dict(flat, sep="/"), metadata)
