"""AdamW as DINOv2 groups it: layer-wise decay, a slower patch embedding, no decay on biases, norms and LayerScale.

The blocks are stacked on axis 0, so a multiplier of a block parameter is a column of `depth` numbers.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from curia2_jax.training import schedules
from curia2_jax.training.recipe import OptimConfig, Recipe

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


def param_groups(params: PyTree, c: OptimConfig) -> PyTree:
    """A tree of `Group`, one for every parameter of `params` (arrays or ShapeDtypeStructs)."""
    depth = jax.tree.leaves(params["backbone"]["blocks"])[0].shape[0]
    return jax.tree_util.tree_map_with_path(lambda path, _: group_of(_names(path), depth, c), params)


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))


def module_norms(grads: PyTree) -> dict[str, Array]:
    """The norm of the gradient of each sub-module: {name: ()}."""
    return {name: optax.tree.norm(tree) for name, tree in grads.items()}


def clip_by_module(grads: PyTree, clip_norm: float) -> PyTree:
    """Scales the gradient of each sub-module to a norm of at most `clip_norm`, as torch's clip_grad_norm_ does."""
    factors = {name: jnp.minimum(1.0, clip_norm / (norm + 1e-6)) for name, norm in module_norms(grads).items()}
    return {name: jax.tree.map(lambda g, f=factors[name]: g * f, tree) for name, tree in grads.items()}


def tx(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW with DINOv2's groups, clipping and schedules, as one transformation; its state is that of Adam.

    p <- p - lr_p * (direction + wd_p * p): decoupled decay, with a rate and a decay for every group, at the step that
    Adam's own count says.
    """
    c, schedule = recipe.optim, recipe.schedule
    adam = optax.scale_by_adam(c.beta1, c.beta2, eps=1e-8)

    def update(grads: PyTree, state: optax.ScaleByAdamState, params: PyTree) -> tuple[PyTree, optax.ScaleByAdamState]:
        peak = c.peak_lr(recipe.data.global_batch)
        rates = schedules.learning_rate(state.count, schedule, peak, c.min_lr)
        weight_decay = schedules.weight_decay(state.count, schedule)
        directions, new = adam.update(clip_by_module(grads, c.clip_norm), state)
        change = functools.partial(_change, rates=rates, weight_decay=weight_decay)
        return jax.tree.map(change, params, directions, param_groups(params, c)), new

    return optax.GradientTransformation(adam.init, update)


def _change(p: Array, direction: Array, group: Group, rates: tuple[Array, Array], weight_decay: Array) -> Array:
    """What is added to a parameter; `rates` are those of the body and of the last layers."""
    mult = np.reshape(group.lr_mult, (-1,) + (1,) * (p.ndim - 1)) if isinstance(group.lr_mult, tuple) else group.lr_mult
    lr = rates[1] if group.last_layer else rates[0]
    rate = jnp.broadcast_to((lr * jnp.asarray(mult, lr.dtype)).astype(p.dtype), p.shape)
    return -rate * (direction + (weight_decay * group.wd_mult).astype(p.dtype) * p)


def table(params: PyTree, c: OptimConfig) -> list[dict[str, Any]]:
    """One row a group: sub-module, where in it, number of parameters, learning-rate multiplier, decay multiplier."""
    rows: dict[tuple, int] = {}
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        names = _names(path)
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
