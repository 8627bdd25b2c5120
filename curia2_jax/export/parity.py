"""What proves that an exported model computes what the trained one does: the questions, our answers, the differences.

At a LayerScale of 1e-5 the blocks hardly touch the tokens, and no comparison of tokens says anything of their weights.
So there are four probes, asked in this order, each of the model that the one before left:

* `trained`: as it is;
* `masked`: the same, with masked patches;
* `unit`: every LayerScale 1, so that each weight counts;
* `quiet`: besides, the embeddings times QUIET, so that the eps of the LayerNorm counts.

Each block of ours is given PyTorch's own tokens, so that a difference names its block and does not add up with depth.
What no forward pass can show (a key's bias, which the softmax cancels; a millionth of a LayerScale) the stored tensors
do, which have to be ours to the bit.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from curia2_jax.export import huggingface
from curia2_jax.models.layer_norm import LayerNorm
from curia2_jax.models.vit import Block, Execution, ViT, ViTConfig
from curia2_jax.training import augment, resample

TOLERANCE = 1e-4  # of a token, absolute where tokens are of size 1 or smaller, else relative to their RMS
QUIET = 2.0**-10
PROBES = ("trained", "masked", "unit", "quiet")
FILE = "parity.json"


def questions(model: ViTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """What `launch/torch_features.py` is asked: images at the native and two other sizes, masks, two slices."""
    draw = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {}
    for side in (model.grid, max(round(1.5 * model.grid), model.grid + 1), max(model.grid // 2, 1)):
        size = side * model.patch_size
        inputs[f"images/{size}"] = draw.standard_normal((2, model.in_channels, size, size), np.float32)
        inputs[f"mask/{size}"] = np.arange(2 * side**2).reshape(2, -1) % 3 == 0
    for kind, low in (("CT", -3024), ("MR", 0)):
        inputs[f"slice/{kind}"] = draw.integers(low, 2000, (61, 83)).astype(np.int16)
    return inputs


def changed(backbone: Mapping[str, Any], probe: str) -> dict[str, Any]:
    """The parameters that a probe is asked of."""

    def leaf(path: str, value: np.ndarray) -> np.ndarray:
        if path.endswith("/gamma") and probe in ("unit", "quiet"):
            return np.ones_like(value)
        embeds = path.startswith("patch_embed/") or path in ("cls_token", "mask_token", "pos_embed", "register_tokens")
        return value * np.float32(QUIET) if embeds and probe == "quiet" else value

    return unflatten_dict({p: leaf(p, v) for p, v in flatten_dict(backbone, sep="/").items()}, sep="/")


def differences(
    backbone: Mapping[str, Any], model: ViTConfig, inputs: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """One entry for each probe and size: the largest difference in the embeddings, in each block, in the final tokens.

    Raises:
      KeyError: PyTorch gave another number of stages than the model has.
    """
    plain = dataclasses.replace(model, dtype="float32", attention="xla", remat="none", drop_path=0.0)
    entries = []
    for probe in PROBES:
        params = changed(backbone, probe)
        for name in inputs:
            kind, _, size = name.partition("/")
            if kind != "images":
                continue
            stages = [theirs[f"{probe}/{size}/{i}"] for i in range(model.depth + 2)]
            mask = inputs[f"mask/{size}"] if probe == "masked" else None
            with jax.default_matmul_precision("highest"):
                entries.append({"probe": probe, "size": int(size), **_entry(plain, params, inputs[name], mask, stages)})
    return entries


def _entry(
    model: ViTConfig, params: Mapping[str, Any], images: np.ndarray, mask: np.ndarray | None, stages: list[np.ndarray]
) -> dict[str, Any]:
    """`stages`: PyTorch's tokens before the first block, behind each, and behind the final norm."""
    pixels = images.transpose(0, 2, 3, 1)
    # One block whose branches are switched off leaves the embeddings to the final norm.
    first = jax.tree.map(lambda leaf: leaf[:1], params["blocks"])
    off = first | {name: jax.tree.map(np.zeros_like, first[name]) for name in ("ls1", "ls2")}
    embedded = _tokens(dataclasses.replace(model, depth=1), dict(params) | {"blocks": off}, pixels, mask)
    grid = (pixels.shape[1] // model.patch_size, pixels.shape[2] // model.patch_size)
    run = _block(model, stages[0].shape[1], grid)
    blocks = []
    for i in range(model.depth):
        ours = run(jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]), stages[i])
        blocks.append(_difference(ours, stages[i + 1]))
    normed = [_norm(params["norm"], stages[i], model.norm_eps) for i in (0, -2)]
    return {
        "embeddings": _difference(embedded, np.asarray(normed[0])),
        "blocks": blocks,
        "norm": _difference(normed[1], stages[-1]),
        "tokens": _difference(_tokens(model, params, pixels, mask), stages[-1]),
    }


@functools.partial(jax.jit, static_argnums=2)
def _norm(params: Mapping[str, Any], x: jax.Array, eps: float) -> jax.Array:
    return cast(jax.Array, LayerNorm("float32", eps).apply({"params": params}, x))


@functools.cache
def _model(model: ViTConfig) -> Callable[..., Any]:
    return jax.jit(ViT(model).apply)


@functools.cache
def _block(model: ViTConfig, tokens: int, grid: tuple[int, int]) -> Callable[..., Any]:
    block = Block(model, Execution(None, "cpu", "xla", tokens, grid))
    return jax.jit(lambda params, x: block.apply({"params": params}, x, jnp.int32(0), None)[0])


def _tokens(model: ViTConfig, params: Mapping[str, Any], pixels: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    out = _model(model)({"params": params}, pixels, mask)
    return np.concatenate([out["cls"][:, None], out["registers"], out["patches"]], axis=1)


def _difference(ours: Any, theirs: np.ndarray) -> float:
    """Infinite where the shapes differ or a number is none."""
    ours = np.asarray(ours, np.float64)
    if ours.shape != theirs.shape:
        return float("inf")
    size = max(1.0, float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))))
    largest = float(np.abs(ours - theirs).max()) / size
    return largest if np.isfinite(largest) else float("inf")


def of_pixels(
    inputs: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], told: Mapping[str, Any]
) -> dict[str, float]:
    """Image processor against the view that training makes of a whole slice, in standard deviations of the slice.

    told: the content of preprocessing.json.
    """
    size, bounds = told["resize"]["size"], told["clip"]["CT"]
    window = () if bounds["max"] is None else (bounds["min"], bounds["max"])
    found = {}
    for kind in ("CT", "MR"):
        image = inputs[f"slice/{kind}"]
        canvas = np.zeros((1, max(image.shape), max(image.shape)), np.float32)
        canvas[0, : image.shape[0], : image.shape[1]] = image
        extent, is_ct = jnp.array([image.shape]), jnp.array([kind == "CT"])
        box = jnp.array([[[0, 0, *image.shape]]], jnp.float32)
        mean, std = augment.slice_statistics(augment.clip_ct(jnp.asarray(canvas), is_ct, window), extent)
        view = augment.clip_ct(resample.crop_and_resize(jnp.asarray(canvas), extent, box, size), is_ct, window)
        found[kind] = _difference(
            augment.z_score(view, *(x[:, None, None, None] for x in (mean, std))), theirs[f"pixels/{kind}"]
        )
    return found


def unequal(folder: pathlib.Path, backbone: Mapping[str, Any], model: ViTConfig) -> list[str]:
    """Our names of the parameters that the folder does not hold to the bit."""
    stored = flatten_dict(huggingface.open_weights(folder, model), sep="/")

    def bits(leaf: Any) -> np.ndarray:
        return np.asarray(leaf).view(np.int32)

    ours = flatten_dict(backbone, sep="/")
    return [path for path in ours if not np.array_equal(bits(ours[path]), bits(stored[path]))]


def worst(entries: list[dict[str, Any]], pixels: Mapping[str, float]) -> tuple[float, str]:
    """The largest difference of all, and where it is."""
    found = [(value, f"the image processor with {kind}") for kind, value in pixels.items()]
    for entry in entries:
        where = f"probe {entry['probe']} at {entry['size']} px"
        found += [(entry[part], f"{part}, {where}") for part in ("embeddings", "norm", "tokens")]
        found += [(value, f"block {i}, {where}") for i, value in enumerate(entry["blocks"])]
    return max(found)


def write(folder: pathlib.Path, entries: list[dict[str, Any]], pixels: Mapping[str, float]) -> None:
    """Writes parity.json into a folder that is being made."""
    said = {"tolerance": TOLERANCE, "stored_tensors": "equal to the bit", "image_processor": pixels, "probes": entries}
    (folder / FILE).write_text(json.dumps(said, indent=1) + "\n")
