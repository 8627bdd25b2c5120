"""Inputs of reference_values.json: parameters by the fill rule, images and masks by formula, in our tree and layout.

Import it as ``import reference`` (pytest puts this folder on the path). Parameters come as NumPy arrays of the wanted
dtype, in the tree of ``ViT`` and ``DINOHead``; images as (b, H, W, C).
"""

import json
import pathlib

import numpy as np

from curia2_jax.models.dino_head import HeadConfig
from curia2_jax.models.vit import ViTConfig

VALUES = json.loads((pathlib.Path(__file__).parent / "reference_values.json").read_text())
# Width, depth and heads of every network in the file; the table has 4 x 4 positions.
BACKBONE = {"width": 32, "depth": 2, "heads": 2, "patch_size": 4, "in_channels": 3, "image_size": 16}
HEAD = {"prototypes": 24, "bottleneck": 16, "hidden": 48, "layers": 3}


def backbone_config(dtype: str, **changes) -> ViTConfig:
    """Config of block A ("offset" form, MLP, no registers), which is also that of end_to_end_two_steps."""
    return ViTConfig(**(BACKBONE | {"ffn": "mlp", "interpolation": "offset", "dtype": dtype} | changes))


def head_config(dtype: str) -> HeadConfig:
    return HeadConfig(**HEAD, dtype=dtype)


def fill(shapes: dict[str, tuple[int, ...]], phase: float = 0.0) -> dict[str, np.ndarray]:
    """The fill rule: float64 values of tensors given by torch name and torch shape; ``phase`` is added in the sine."""
    filled = {}
    for k, name in enumerate(sorted(shapes)):
        base = np.sin(1.3 * (k + 1) + 0.017 * np.arange(1, np.prod(shapes[name]) + 1) + phase).reshape(shapes[name])
        if ("norm" in name and name.endswith("weight")) or name.endswith("weight_g"):
            filled[name] = 1 + 0.1 * base
        elif name.endswith("gamma"):
            filled[name] = 0.5 + 0.1 * base
        else:
            filled[name] = 0.1 * base
    return filled


def backbone_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Torch names and shapes of a DINOv2 backbone."""
    width, hidden, patch = config.width, config.hidden, config.patch_size
    shapes = {
        "cls_token": (1, 1, width),
        "mask_token": (1, width),
        "pos_embed": (1, 1 + config.grid**2, width),
        "patch_embed.proj.weight": (width, config.in_channels, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if config.registers:
        shapes["register_tokens"] = (1, config.registers, width)
    block = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    if config.ffn == "mlp":
        block |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    else:
        block |= {"mlp.w12": (2 * hidden, width), "mlp.w3": (width, hidden)}
    for i in range(config.depth):
        for name, shape in block.items():
            shapes[f"blocks.{i}.{name}.weight"], shapes[f"blocks.{i}.{name}.bias"] = shape, shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = (width,)
    return shapes


def head_shapes(width: int, config: HeadConfig) -> dict[str, tuple[int, ...]]:
    """Torch names and shapes of a DINO head: linear layers at even places of ``mlp``, GELU between."""
    widths = [width] + [config.hidden] * (config.layers - 1) + [config.bottleneck]
    shapes = {
        "last_layer.weight_g": (config.prototypes, 1),
        "last_layer.weight_v": (config.prototypes, config.bottleneck),
    }
    for i in range(config.layers):
        shapes[f"mlp.{2 * i}.weight"], shapes[f"mlp.{2 * i}.bias"] = (widths[i + 1], widths[i]), (widths[i + 1],)
    return shapes


def backbone_tree(tensors: dict[str, np.ndarray], config: ViTConfig, dtype: str) -> dict:
    """Torch tensors of a backbone in our tree."""

    def linear(weight, bias):
        return {"kernel": weight.swapaxes(-1, -2), "bias": bias}

    def stacked(name):
        return np.stack([tensors[f"blocks.{i}.{name}"] for i in range(config.depth)])

    def layer(name):
        return linear(stacked(f"{name}.weight"), stacked(f"{name}.bias"))

    def split(name, parts):
        pairs = zip(*(np.split(stacked(f"{name}.{leaf}"), len(parts), 1) for leaf in ("weight", "bias")), strict=True)
        return {part: linear(*pair) for part, pair in zip(parts, pairs, strict=True)}

    if config.ffn == "mlp":
        ffn = {"fc1": layer("mlp.fc1"), "fc2": layer("mlp.fc2")}
    else:
        ffn = {**split("mlp.w12", ("gate", "up")), "down": layer("mlp.w3")}
    tree = {
        "patch_embed": {
            "kernel": tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
            "bias": tensors["patch_embed.proj.bias"],
        },
        "cls_token": tensors["cls_token"],
        "mask_token": tensors["mask_token"],
        "pos_embed": tensors["pos_embed"],
        "blocks": {
            "norm1": {"scale": stacked("norm1.weight"), "bias": stacked("norm1.bias")},
            "attn": {**split("attn.qkv", ("query", "key", "value")), "out": layer("attn.proj")},
            "ls1": {"gamma": stacked("ls1.gamma")},
            "norm2": {"scale": stacked("norm2.weight"), "bias": stacked("norm2.bias")},
            "ffn": ffn,
            "ls2": {"gamma": stacked("ls2.gamma")},
        },
        "norm": {"scale": tensors["norm.weight"], "bias": tensors["norm.bias"]},
    }
    if config.registers:
        tree["register_tokens"] = tensors["register_tokens"]
    return _cast(tree, dtype)


def head_tree(tensors: dict[str, np.ndarray], config: HeadConfig, dtype: str) -> dict:
    """Torch tensors of a DINO head in our tree."""
    tree = {
        f"mlp_{i}": {"kernel": tensors[f"mlp.{2 * i}.weight"].T, "bias": tensors[f"mlp.{2 * i}.bias"]}
        for i in range(config.layers)
    }
    tree["last_layer"] = {"v": tensors["last_layer.weight_v"].T, "g": tensors["last_layer.weight_g"][:, 0]}
    return _cast(tree, dtype)


def _cast(tree, dtype):
    return {
        key: _cast(leaf, dtype) if isinstance(leaf, dict) else np.ascontiguousarray(leaf, dtype)
        for key, leaf in tree.items()
    }


def backbone_params(config: ViTConfig, dtype: str, phase: float = 0.0) -> dict:
    """Filled backbone in our tree."""
    return backbone_tree(fill(backbone_shapes(config), phase), config, dtype)


def head_params(dtype: str, phase: float = 0.0) -> dict:
    """Filled head of HEAD on 32 features, in our tree."""
    config = head_config(dtype)
    return head_tree(fill(head_shapes(BACKBONE["width"], config), phase), config, dtype)


def student_params(dtype: str, separate_heads: bool = False, phase: float = 0.0) -> dict:
    """Student of end_to_end_two_steps: {"backbone", "dino_head"[, "ibot_head"]}; the iBOT head has phase + 0.25."""
    params = {"backbone": backbone_params(backbone_config(dtype), dtype, phase), "dino_head": head_params(dtype, phase)}
    if separate_heads:
        params["ibot_head"] = head_params(dtype, phase + 0.25)
    return params


def teacher_params(dtype: str, separate_heads: bool = False) -> dict:
    """Teacher of end_to_end_two_steps: the same rule with phase 0.5."""
    return student_params(dtype, separate_heads, phase=0.5)


def images(
    count: int, height: int, width: int, channels: int = 3, rates=(0.11, 0.07, 0.3), offset: float = 0.0
) -> np.ndarray:
    """sin(r0 h b + r1 w c + r2 c + offset), 1-based indices: (count, height, width, channels) float64."""
    b, h, w, c = np.meshgrid(*(np.arange(1, n + 1) for n in (count, height, width, channels)), indexing="ij")
    return np.sin(rates[0] * h * b + rates[1] * w * c + rates[2] * c + offset)


def end_to_end_batch() -> dict[str, np.ndarray]:
    """Crops and masks of end_to_end_two_steps, re-ordered from crop-major to our image-major order.

    "global_crops" (4, 16, 16, 3), "local_crops" (6, 8, 8, 3) float64, index = image * views + view; "masks" (2, 2, 16).
    """
    n = np.arange(16)
    masks = np.zeros((4, 16), bool)
    masks[0], masks[3] = n % 3 == 0, n % 4 == 1
    return {
        "global_crops": image_major(images(4, 16, 16), 2),
        "local_crops": image_major(images(6, 8, 8, 3, (0.13, 0.05, 0.2), 0.1), 3),
        "masks": masks.reshape(2, 2, 16).swapaxes(0, 1),
    }


def image_major(x: np.ndarray, views: int) -> np.ndarray:
    """(views * images, ...) with all of view 1 first -> (images * views, ...) with all of image 1 first."""
    return x.reshape(views, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


def grid(rows: int, columns: int) -> np.ndarray:
    """Products i * k of 1-based indices, (rows, columns): the argument of most formulas in the file."""
    return np.outer(np.arange(1, rows + 1), np.arange(1, columns + 1)).astype(np.float64)
