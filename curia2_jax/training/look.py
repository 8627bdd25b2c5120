"""A look at a network as it is: what it makes of some whole slices and of views of them, as one pure function."""

import dataclasses
import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from curia2_jax.models.dense import Dense, wide
from curia2_jax.models.dino_head import DINOHead, last_layer_kernel
from curia2_jax.models.layer_norm import LayerNorm
from curia2_jax.models.vit import Block, Execution, ViT, ViTConfig, placed
from curia2_jax.parallel import sharding
from curia2_jax.parallel.mesh import BATCH, batch_shards, platform_of
from curia2_jax.training.class_tokens import pixels
from curia2_jax.training.moments import moments
from curia2_jax.training.recipe import Recipe

PyTree = Any
# y0, x0, y1, x1 in shares of the slice: the whole of it, and three views that share the middle.
VIEWS = ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.8, 0.8), (0.2, 0.2, 1.0, 1.0), (0.0, 0.2, 0.8, 1.0))
ENTROPY_IMAGES, ENTROPY_QUERIES = 2, 64  # a shard, and tokens of each, whose attention is looked at


def look(
    params: PyTree,
    slices: Array,
    extent: Array,
    is_ct: Array,
    *,
    recipe: Recipe,
    mesh: Mesh | None,
    dense: tuple[Array, Array] | None = None,
    platform: str | None = None,
) -> dict[str, Array]:
    """What {backbone[, dino_head]} make of slices, without augmentation; every result whole on every device.

    Args:
      slices: (B, S, S) int16, padded below and right. extent: (B, 2) int32, the true size. is_ct: (B,) bool.
      dense: shares of patches that structures cover, and the halves of the slices, as `moments` takes them.
      platform: what the program is for, where that is not what the mesh is made of.
    Returns:
      `class` (B, V, D) of the VIEWS; of the whole slices `patch` (B, D), the mean patch token, `patch_cosine` (B,), the
      mean cosine of two of their patch tokens, and `choice` (B,) int32, the nearest prototype of DINO's head, if there
      is one; `attention_entropy` (depth,), of that of uniform attention, of a few slices; with `dense`, the `moments`
      of the patch tokens of the whole slices.
    """
    vit = ViT(recipe.model, None if mesh is None else BATCH, platform or platform_of(mesh))
    whole = pixels(slices, extent, is_ct, recipe.crops.global_size, recipe.augment.window)
    out = cast(dict, vit.apply({"params": params["backbone"]}, views(whole)))
    tokens = out["cls"].reshape(len(slices), len(VIEWS), -1)
    patches = out["patches"].reshape(len(slices), len(VIEWS), *out["patches"].shape[1:])[:, 0]
    found = {"class": tokens, "patch": patches.mean(1), "patch_cosine": mean_cosine(patches)}
    found |= moments(patches, *dense) if dense else {}
    if "dino_head" in params:
        features = cast(Array, DINOHead(recipe.dino_head).apply({"params": params["dino_head"]}, tokens[:, 0]))
        kernel = sharding.gathered(last_layer_kernel(params["dino_head"]), mesh)
        found["choice"] = (features @ kernel.astype(features.dtype)).argmax(-1)
    shards = batch_shards(mesh)
    some = whole.reshape(shards, -1, *whole.shape[1:])[:, :ENTROPY_IMAGES].reshape(-1, *whole.shape[1:])
    found["attention_entropy"] = attention_entropy(params["backbone"], some, vit)
    return {name: sharding.whole(x, mesh) for name, x in found.items()}


def views(images: Array) -> Array:
    """(B, R, R, C) -> (B * V, R, R, C), image-major: the VIEWS, each resized to R."""
    size, channels = images.shape[1], images.shape[3]

    def cut(box: tuple[float, float, float, float]) -> Array:
        top, left, bottom, right = (round(edge * size) for edge in box)
        return jax.image.resize(images[:, top:bottom, left:right], images.shape, "cubic")

    return jnp.stack([cut(box) for box in VIEWS], 1).reshape(-1, size, size, channels)


def mean_cosine(tokens: Array) -> Array:
    """Mean cosine over the pairs of two different tokens: (B, N, D) -> (B,). Towards 1 dense features are lost."""
    squares = jnp.sum(tokens * tokens, axis=-1, keepdims=True)
    unit = tokens * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
    count = tokens.shape[1]
    return (jnp.square(unit.sum(1)).sum(-1) - jnp.square(unit).sum((1, 2))) / (count * (count - 1))


def embedded(backbone: PyTree, images: Array, model: ViTConfig) -> Array:
    """What the first block is given, (B, T, D): what the final norm would be without blocks."""
    bare = ViT(dataclasses.replace(model, depth=0, scan=True))
    entered: list[Array] = []

    def note(call, args, kwargs, context):
        if context.module.name == "norm":
            entered.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        bare.apply({"params": backbone | {"blocks": jax.tree.map(lambda a: a[:0], backbone["blocks"])}}, images)
    return entered[0]


def attention_entropy(backbone: PyTree, images: Array, vit: ViT) -> Array:
    """Mean entropy of the attention weights of every block, of that of uniform ones: (B, R, R, C) -> (depth,).

    A pass of its own, block by block: kernels of attention keep their weights to themselves.
    """
    model = dataclasses.replace(vit.config, attention="xla", remat="none")
    x = embedded(backbone, images, model)
    count = x.shape[1]
    every = max(count // ENTROPY_QUERIES, 1)
    grid = (images.shape[1] // model.patch_size, images.shape[2] // model.patch_size)
    execution = Execution(cast(PartitionSpec, vit.batch_spec), vit.platform, "xla", count, grid)

    def block(x: Array, one: tuple[PyTree, Array]) -> tuple[Array, Array]:
        params, layer = one
        normed = LayerNorm(model.dtype, model.norm_eps).apply({"params": params["norm1"]}, x)

        def heads(name: str) -> Array:
            dense = Dense(model.width, model.dtype, biased="bias" in params["attn"][name])
            made = cast(Array, dense.apply({"params": params["attn"][name]}, normed))
            return placed(made, model, grid).reshape(*x.shape[:2], model.heads, -1)

        query, keys = heads("query")[:, ::every], heads("key")
        scores = jnp.einsum("bthd,bshd->bhts", query, keys, preferred_element_type=wide(model.dtype))
        log_weights = jax.nn.log_softmax(scores / math.sqrt(query.shape[-1]))
        entropy = -(jnp.exp(log_weights) * log_weights).sum(-1).mean() / math.log(count)
        x, _ = cast(tuple, Block(model, execution).apply({"params": params}, x, layer, None))
        return x, entropy

    return jax.lax.scan(block, x, (backbone["blocks"], jnp.arange(model.depth)))[1]
