"""AdamW as DINOv2 groups it: layer-wise decay, a slower patch embedding, no decay on biases, norms and LayerScale.

The blocks are stacked on axis 0, so a multiplier of a block parameter is a column of `depth` numbers.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from curia2_jax.training.recipe import OptimConfig

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Group:
    """How one parameter is updated. `lr_mult` is a float, or one float a block along axis 0."""

    lr_mult: float | tuple[float, ...]
    wd_mult: float
    last_layer: bool


def group_of(path: tuple[str, ...], depth: int, c: OptimConfig) -> Group:
    """The group of the parameter at `path`, e.g. ("backbone", "blocks", "attn", "query", "kernel")."""
    undecayed = path[-1] in ("bias", "gamma") or any("norm" in name for name in path)
    lr_mult: float | tuple[float, ...] = 1.0
    if path[0] == "backbone":
        decay = [c.layerwise_decay ** (depth + 1 - layer) for layer in range(depth + 2)]
        if path[1] == "blocks":
            lr_mult = tuple(decay[1 : depth + 1])
        elif path[1] == "norm":
            lr_mult = decay[depth + 1]
        else:
            lr_mult = decay[0] * (c.patch_embed_lr_mult if path[1] == "patch_embed" else 1.0)
    return Group(lr_mult, 0.0 if undecayed else 1.0, "last_layer" in path)


def keys_of(path: tuple) -> tuple[str, ...]:
    """The plain names along a key path of jax.tree_util."""
    return tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def param_groups(params: PyTree, c: OptimConfig) -> PyTree:
    """A tree of `Group`, one for every parameter of `params` (arrays or ShapeDtypeStructs)."""
    depth = jax.tree.leaves(params["backbone"]["blocks"])[0].shape[0]
    return jax.tree_util.tree_map_with_path(lambda path, _: group_of(keys_of(path), depth, c), params)


def adam(c: OptimConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(c.beta1, c.beta2, eps=1e-8)


def clip_by_module(grads: PyTree, clip_norm: float) -> tuple[PyTree, dict[str, Array]]:
    """Scales the gradient of each sub-module to a norm of at most `clip_norm`; returns the norms before that."""
    norms = {name: optax.tree.norm(tree) for name, tree in grads.items()}
    factors = {name: jnp.minimum(1.0, clip_norm / (norm + 1e-6)) for name, norm in norms.items()}
    return {name: jax.tree.map(lambda g, f=factors[name]: g * f, tree) for name, tree in grads.items()}, norms


def apply_updates(
    params: PyTree, directions: PyTree, groups: PyTree, lr: Array, last_layer_lr: Array, weight_decay: Array
) -> PyTree:
    """p <- p - lr_p * (direction + wd_p * p): AdamW's decoupled decay, with a rate and a decay for every group."""

    def new(p: Array, direction: Array, g: Group) -> Array:
        mult = np.reshape(g.lr_mult, (-1,) + (1,) * (p.ndim - 1)) if isinstance(g.lr_mult, tuple) else g.lr_mult
        rate = ((last_layer_lr if g.last_layer else lr) * jnp.asarray(mult, lr.dtype)).astype(p.dtype)
        rate = jnp.broadcast_to(rate, p.shape)
        return p - rate * (direction + (weight_decay * g.wd_mult).astype(p.dtype) * p)

    return jax.tree.map(new, params, directions, groups)


def table(params: PyTree, c: OptimConfig) -> list[dict[str, Any]]:
    """One row a group: sub-module, where in it, number of parameters, learning-rate multiplier, decay multiplier."""
    rows: dict[tuple, int] = {}
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        names = keys_of(path)
        depth = jax.tree.leaves(params["backbone"]["blocks"])[0].shape[0]
        g = group_of(names, depth, c)
        part = "blocks" if names[1] == "blocks" else "last_layer" if g.last_layer else names[1]
        part = "mlp" if part.startswith("mlp_") else part
        mult = f"{g.lr_mult[0]:.4g}..{g.lr_mult[-1]:.4g}" if isinstance(g.lr_mult, tuple) else f"{g.lr_mult:.4g}"
        key = (names[0], part, mult, f"{g.wd_mult:g}")
        rows[key] = rows.get(key, 0) + math.prod(p.shape)
    return [
        {"module": m, "part": part, "parameters": n, "lr_mult": mult, "wd_mult": wd}
        for (m, part, mult, wd), n in rows.items()
    ]
