"""State dicts of facebookresearch's DINOv2 -> the names that transformers has on disk.

Source: the module names of facebookresearch/dinov2 (vision_transformer.py, layers/), and of its training checkpoints,
which hold a student or a teacher with the heads beside the backbone, and blocks in chunks (`blocks.CHUNK.BLOCK.`).
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from curia2_jax.errors import UserError
from curia2_jax.export.tensors_file import Later

_ONCE = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_OF_A_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
_BLOCK = re.compile(r"blocks\.(?:\d+\.)?(\d+)\.(.+)")
_PREFIXES = ("module.", "_orig_mod.", "teacher.", "student.", "backbone.")
HEADS = ("dino_head", "ibot_head")
_NO_BACKBONE = ("head", "linear_head", "dino_loss", "ibot_patch_loss", "koleo_loss")


@dataclasses.dataclass(frozen=True)
class Parts:
    """A state dict without prefixes, taken apart."""

    backbone: dict[str, Any]
    heads: dict[str, dict[str, Any]]  # by names of HEADS, which are no part of the tensors' names any more
    left_out: tuple[str, ...]  # modules


def take_apart(state: Mapping[str, Any]) -> Parts:
    """Backbone and projection heads, the teacher's where student and teacher are both there."""
    state = {name.removeprefix("model.").removeprefix("module."): value for name, value in state.items()}
    left_out = set()
    if any(name.startswith("teacher.") for name in state):
        left_out = {name.partition(".")[0] for name in state if not name.startswith("teacher.")}
        state = {name: value for name, value in state.items() if name.startswith("teacher.")}
    backbone: dict[str, Any] = {}
    heads: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        while prefix := next((p for p in _PREFIXES if name.startswith(p)), ""):
            name = name.removeprefix(prefix)
        module, _, rest = name.partition(".")
        if module in HEADS:
            heads.setdefault(module, {})[rest] = value
        elif module in _NO_BACKBONE:
            left_out.add(module)
        else:
            backbone[name] = value
    return Parts(backbone, heads, tuple(sorted(left_out)))


def projection_head(tensors: Mapping[str, Later]) -> dict[str, Any] | None:
    """A DINOHead of theirs as the parameters of ours, float32, read in their turn, or None if it is another
    kind (such as with BatchNorm).

    Source: dinov2/layers/dino_head.py. Its linear layers lie at even places of `mlp`, with a GELU between them; the
    last layer has a weight norm, in PyTorch's old names or in those of its parametrizations.
    """
    layers = [int(found[1]) for name in tensors if (found := re.fullmatch(r"mlp\.(\d+)\.weight", name))]
    at = [f"mlp.{place}" for place in sorted(layers)] or ["mlp"]
    norm = "last_layer.parametrizations.weight.original" if any("original0" in name for name in tensors) else ""
    g, v = (f"{norm}0", f"{norm}1") if norm else ("last_layer.weight_g", "last_layer.weight_v")
    wanted = {f"{name}.{kind}": dims for name in at for kind, dims in (("weight", 2), ("bias", 1))} | {g: 2, v: 2}
    places_are_even = sorted(layers) == list(range(0, 2 * len(layers), 2))
    if not places_are_even or {name: len(tensor.shape) for name, tensor in tensors.items()} != wanted:
        return None
    as_ours = {name: _transposed(tensor) for name, tensor in tensors.items()}
    mlps = {
        f"mlp_{i}": {"kernel": as_ours[f"{name}.weight"], "bias": as_ours[f"{name}.bias"]} for i, name in enumerate(at)
    }
    flat = Later(tensors[g].shape[:1], lambda: np.asarray(as_ours[g]).reshape(-1))
    return mlps | {"last_layer": {"v": as_ours[v], "g": flat}}


def _transposed(tensor: Later) -> Later:
    return Later(tensor.shape[::-1], lambda: np.ascontiguousarray(np.asarray(tensor, np.float32).T))


def to_huggingface(state: Mapping[str, Later], where: str) -> dict[str, Later]:
    """A backbone that `take_apart` gives, under the names on disk, query, key and value apart.

    Raises:
      UserError: DINOv3, a name that DINOv2 does not have, the same block twice, or no class token.
    """
    if any("rope_embed" in name or name.startswith("storage_tokens") for name in state):
        raise UserError(f"{where}: a state dict of DINOv3; write a folder of its DINOv3ViTModel")
    if "cls_token" not in state or "pos_embed" not in state:
        raise UserError(f"{where}: no cls_token and pos_embed; write a state dict of facebookresearch's DINOv2")
    out: dict[str, Later] = {}
    blocks: dict[str, str] = {}  # chunks count their blocks through, so that no number comes twice
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        if block and blocks.setdefault(f"{block[1]}.{block[2]}", name) != name:
            raise UserError(
                f"{where}: {blocks[f'{block[1]}.{block[2]}']} and {name} are the same block; fetch it again"
            )
        if name in _ONCE:
            out[_ONCE[name]] = value
        elif block and block[2].startswith("attn.qkv."):
            kind = block[2].removeprefix("attn.qkv.")
            if not value.shape or value.shape[0] % 3:
                raise UserError(f"{where}: {name} is {value.shape}, no query, key and value; fetch it again")
            for third, part in enumerate(("query", "key", "value")):
                out[f"encoder.layer.{block[1]}.attention.attention.{part}.{kind}"] = _third(value, third)
        elif block and (theirs := _in_block(block[2])):
            out[f"encoder.layer.{block[1]}.{theirs}"] = value
        else:
            raise UserError(f"{where}: {name} is no parameter of DINOv2; write a state dict of its backbone")
    return out


def _third(value: Later, number: int) -> Later:
    shape = (value.shape[0] // 3, *value.shape[1:])
    return Later(shape, lambda: np.split(np.asarray(value), 3)[number])


def _in_block(name: str) -> str | None:
    if name in _OF_A_BLOCK:
        return _OF_A_BLOCK[name]
    module, _, kind = name.rpartition(".")
    return f"{_OF_A_BLOCK[module]}.{kind}" if module in _OF_A_BLOCK and kind in ("weight", "bias") else None


def model_section(tensors: Mapping[str, Later], where: str) -> dict[str, Any]:
    """The arguments of `ViTConfig` that the shapes say. The heads are of 64 channels, as in every DINOv2.

    Args:
      tensors: names on disk, as `to_huggingface` gives them.
    Raises:
      UserError: the width is no multiple of 64, or the position table is no square.
    """
    kernel = tensors.get("embeddings.patch_embeddings.projection.weight")
    if kernel is None or len(kernel.shape) != 4:
        raise UserError(f"{where}: no patch_embed.proj.weight; write a whole state dict of DINOv2")
    width, channels, patch = kernel.shape[:3]
    table = tensors["embeddings.position_embeddings"]
    if len(table.shape) != 3:
        raise UserError(f"{where}: pos_embed is {table.shape}; write a whole state dict of DINOv2")
    entries = table.shape[1] - 1
    side = math.isqrt(max(entries, 0))
    if width % 64 or not side or side * side != entries:
        raise UserError(f"{where}: width {width} and {entries} positions; only heads of 64 and square tables are read")
    layers = {int(found[1]) for name in tensors if (found := re.match(r"encoder\.layer\.(\d+)\.", name))}
    registers = tensors.get("embeddings.register_tokens")
    return {
        "width": width,
        "depth": max(layers, default=-1) + 1,
        "heads": width // 64,
        "patch_size": patch,
        "in_channels": channels,
        "image_size": side * patch,
        "ffn": "swiglu" if any(".mlp.weights_in." in name for name in tensors) else "mlp",
        "registers": 0 if registers is None or len(registers.shape) != 3 else registers.shape[1],
        "layerscale": 1.0,
    }
