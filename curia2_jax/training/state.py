"""The training state: one pytree, made by one pure function."""

import dataclasses
import hashlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curia2_jax.models.dino_head import DINOHead
from curia2_jax.models.projector import Projector
from curia2_jax.models.vit import ViT
from curia2_jax.parallel.processes import whole
from curia2_jax.training.optimizer import tx
from curia2_jax.training.recipe import Recipe

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds. Parameters, teacher and moments are float32."""

    step: Array  # () int32: updates done
    params: PyTree  # {backbone[, dino_head][, ibot_head][, projector]}
    teacher: PyTree  # the same tree: the exponential moving average of params
    opt_state: PyTree  # Adam's count, mu, nu
    centers: dict[str, Array]  # {dino: (K,), ibot: (K,)}; moved by softmax centring only


def init_params(key: Array, recipe: Recipe) -> PyTree:
    """Random parameters {backbone[, dino_head][, ibot_head][, projector]}, float32, as the terms need them."""
    backbone, dino, ibot = jax.random.split(key, 3)
    side = recipe.model.image_size
    # Parameters are the same whatever kernel will use them.
    vit = ViT(dataclasses.replace(recipe.model, attention="xla"))
    params = {"backbone": vit.init(backbone, jnp.zeros((1, side, side, recipe.model.in_channels)))["params"]}
    tokens = jnp.zeros((1, recipe.model.width))
    if recipe.distills:
        params["dino_head"] = DINOHead(recipe.dino_head).init(dino, tokens)["params"]
    if recipe.distills and not recipe.heads.shared:
        params["ibot_head"] = DINOHead(recipe.ibot_head).init(ibot, tokens)["params"]
    if recipe.projects:
        params["projector"] = Projector(recipe.projector).init(jax.random.fold_in(key, 3), tokens)["params"]
    return params


def from_params(params: PyTree, teacher: PyTree, recipe: Recipe) -> TrainState:
    """A state at step 0 around given parameters; the teacher may not share buffers with the student."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        teacher=jax.tree.map(jnp.copy, teacher),
        opt_state=tx(recipe).init(params),
        centers={
            "dino": jnp.zeros(recipe.dino_head.prototypes),
            "ibot": jnp.zeros(recipe.ibot_head.prototypes),
        },
    )


def init_state(key: Array, recipe: Recipe) -> TrainState:
    """A random state: the teacher starts equal to the student."""
    params = init_params(key, recipe)
    return from_params(params, params, recipe)


def abstract_state(recipe: Recipe) -> TrainState:
    """Shapes and dtypes of the state, nothing allocated."""
    return jax.eval_shape(lambda: init_state(jax.random.key(0), recipe))


def count(tree: PyTree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def state_hash(state: TrainState) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of every array: equal states, bit for bit, have equal hashes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        value = whole(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
