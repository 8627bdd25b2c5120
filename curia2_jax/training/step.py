"""One training step as a pure function: views, then update, nothing else."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from curia2_jax.parallel.mesh import platform_of
from curia2_jax.parallel.processes import STOP
from curia2_jax.training import augment, objective, optimizer, schedules
from curia2_jax.training.recipe import Recipe
from curia2_jax.training.state import TrainState

# Every draw on the device is fold_in(key(seed), step), folded again by use.
AUGMENT, OBJECTIVE = 0, 1
# Keys of a batch, which the loop adds: the state that it is for, and the gradient norm from which a step is a spike.
STEP, LARGEST_NORM = "step", "largest_norm"


def step_key(recipe: Recipe, step: Array | int, use: int) -> Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), step), use)


def update(
    state: TrainState,
    crops: tuple[Array, Array],
    masks: Array,
    *,
    recipe: Recipe,
    mesh: Mesh | None = None,
    platform: str | None = None,
    allowed: Array | bool = True,
    largest_norm: Array | float = math.inf,
) -> tuple[TrainState, dict[str, Array]]:
    """Teacher forward, student forward and backward, clipping, AdamW, moving average (DINOv2's order).

    Args:
      crops: global (2B, R, R, C) and local (LB, r, r, C), image-major. masks: (B, 2, N) bool, the same number of true
        entries in every group of `recipe.data.group_size` images.
      mesh: None off a mesh, as in most tests.
      platform: what the program is for, where that is not what the mesh is made of.
      allowed, largest_norm: (), whether the state may change at all, and up to which norm of the whole gradient.
    Returns:
      the new state, or the old one, with its step, if the loss or the gradient is not finite or one of these says so;
      and scalar metrics, with `applied`: whether it is the new one.
    """
    c, s = recipe.schedule, recipe.optim
    lr, last_layer_lr = schedules.learning_rate(state.step, c, s.peak_lr(recipe.data.global_batch), s.min_lr)
    wd, momentum = schedules.weight_decay(state.step, c), schedules.teacher_momentum(state.step, c)
    temp = schedules.teacher_temp(state.step, c)

    grads, centers, metrics = objective.gradients(
        state, crops, masks, temp, step_key(recipe, state.step, OBJECTIVE), recipe, mesh, platform or platform_of(mesh)
    )
    grad_norms = optimizer.module_norms(grads)
    updates, opt_state = optimizer.tx(recipe).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    teacher = optax.incremental_update(params, state.teacher, 1.0 - momentum)
    if c.freeze_backbone_steps:  # chosen, not added to: x + 0 and an average of equals may change the last bit
        frozen = schedules.backbone_frozen(state.step, c)
        params, teacher = (
            {**tree, "backbone": jax.tree.map(functools.partial(jnp.where, frozen), old["backbone"], tree["backbone"])}
            for tree, old in ((params, state.params), (teacher, state.teacher))
        )
    new = TrainState(step=state.step + 1, params=params, teacher=teacher, opt_state=opt_state, centers=centers)

    norm = jnp.sqrt(sum(n * n for n in grad_norms.values()))
    finite = jnp.isfinite(metrics["loss"]) & jnp.stack([jnp.isfinite(n) for n in grad_norms.values()]).all()
    applied = finite & allowed & (norm <= largest_norm)
    new = jax.tree.map(lambda a, b: jnp.where(applied, a, b), new, state)
    for name in params:
        change = jax.tree.map(jnp.subtract, params[name], state.params[name])
        moved = optax.tree.norm(change)
        metrics |= {f"grad_norm/{name}": grad_norms[name], f"update_norm/{name}": moved}
        metrics[f"update_ratio/{name}"] = moved / optax.tree.norm(state.params[name])
    metrics |= {"applied": applied, "grad_norm": norm, "lr": lr, "last_layer_lr": last_layer_lr, "weight_decay": wd}
    return new, metrics | {"teacher_momentum": momentum, "teacher_temp": temp}


def train_step(
    state: TrainState, batch: dict[str, Array], *, recipe: Recipe, mesh: Mesh | None = None, platform: str | None = None
) -> tuple[TrainState, dict[str, Any]]:
    """`batch` is the pipeline's: int16 slices, boxes, flips, masks (curia2_jax/data/crops/batches.py). See `update`.

    One that says which state it is for changes no other: after a bad step the state stays as it was before that one,
    whatever was dispatched behind it, until the loop has looked.
    """
    key = step_key(recipe, state.step, AUGMENT)
    with jax.named_scope("augment"):
        crops = augment.crops_of(batch, key, recipe.augment, recipe.crops.global_size, recipe.crops.local_size)
    allowed = (batch[STEP] == state.step).all() if STEP in batch else True
    largest = batch[LARGEST_NORM].min() if LARGEST_NORM in batch else math.inf
    new, metrics = update(
        state, crops, batch["masks"], recipe=recipe, mesh=mesh, platform=platform, allowed=allowed, largest_norm=largest
    )
    if STOP in batch:  # several processes: has any of them been asked to stop?
        metrics[STOP] = batch[STOP].any()
    return new, metrics
