"""State dicts of facebookresearch's DINOv2 -> the names that transformers has on disk.

Source: the module names of facebookresearch/dinov2 (vision_transformer.py, layers/), and of its training checkpoints,
which hold a student or a teacher with the heads beside the backbone, and blocks in chunks (`blocks.CHUNK.BLOCK.`).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from curia2_jax.errors import UserError

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
_HEADS = ("dino_head.", "ibot_head.", "head.", "dino_loss.", "ibot_patch_loss.")


def backbone_of(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The backbone's tensors without prefixes: the teacher's where there are both, and no heads."""
    state = {name.removeprefix("model.").removeprefix("module."): value for name, value in state.items()}
    if any(name.startswith("teacher.") for name in state):
        state = {name: value for name, value in state.items() if name.startswith("teacher.")}
    plain = {}
    for name, value in state.items():
        while prefix := next((p for p in _PREFIXES if name.startswith(p)), ""):
            name = name.removeprefix(prefix)
        if not name.startswith(_HEADS):
            plain[name] = value
    return plain


def to_huggingface(state: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """What `backbone_of` gives, under the names on disk, query, key and value apart.

    Raises:
      UserError: DINOv3, a name that DINOv2 does not have, or no class token.
    """
    if any("rope_embed" in name or name.startswith("storage_tokens") for name in state):
        raise UserError(f"{where}: a DINOv3 model, which has rotary positions (RoPE); write a DINOv2 model")
    if "cls_token" not in state or "pos_embed" not in state:
        raise UserError(f"{where}: no cls_token and pos_embed; write a state dict of facebookresearch's DINOv2")
    out: dict[str, np.ndarray] = {}
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        if name in _ONCE:
            out[_ONCE[name]] = value
        elif block and block[2].startswith("attn.qkv."):
            kind = block[2].removeprefix("attn.qkv.")
            for part, third in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                out[f"encoder.layer.{block[1]}.attention.attention.{part}.{kind}"] = third
        elif block and (theirs := _in_block(block[2])):
            out[f"encoder.layer.{block[1]}.{theirs}"] = value
        else:
            raise UserError(f"{where}: {name} is no parameter of DINOv2; write a state dict of its backbone")
    return out


def _in_block(name: str) -> str | None:
    if name in _OF_A_BLOCK:
        return _OF_A_BLOCK[name]
    module, _, kind = name.rpartition(".")
    return f"{_OF_A_BLOCK[module]}.{kind}" if module in _OF_A_BLOCK and kind in ("weight", "bias") else None


def model_section(tensors: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    """The arguments of `ViTConfig` that the shapes say. The heads are of 64 channels, as in every DINOv2.

    Args:
      tensors: names on disk, as `to_huggingface` gives them.
    Raises:
      UserError: the width is no multiple of 64, or the position table is no square.
    """
    kernel = tensors.get("embeddings.patch_embeddings.projection.weight")
    if kernel is None or kernel.ndim != 4:
        raise UserError(f"{where}: no patch_embed.proj.weight; write a whole state dict of DINOv2")
    width, channels, patch = kernel.shape[:3]
    entries = tensors["embeddings.position_embeddings"].shape[1] - 1
    side = int(entries**0.5)
    if width % 64 or side * side != entries:
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
        "registers": 0 if registers is None else registers.shape[1],
        "layerscale": 1.0,
    }
