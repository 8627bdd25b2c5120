"""Learning rate, weight decay, teacher momentum and temperature as functions of the step, as DINOv2 schedules them."""

import jax.numpy as jnp
from jax import Array

from curia2_jax.training.recipe import ScheduleConfig


def cosine(step: Array, base: float, final: float, total: int, warmup: int = 0, start: float = 0.0) -> Array:
    """Linear warm-up from `start` to `base`, end point included, then half a cosine to `final`.

    Entry `warmup - 1` and entry `warmup` both equal `base`; the last entry, `total - 1`, is not yet `final`;
    every entry from `total` on is. These are the edges of DINOv2's own schedule.

    Args:
      step: () integer.
    Returns:
      () float, float64 under x64.
    """
    i = jnp.asarray(step, float)
    rising = start + (base - start) * i / max(warmup - 1, 1)
    falling = final + 0.5 * (base - final) * (1.0 + jnp.cos(jnp.pi * (i - warmup) / max(total - warmup, 1)))
    return jnp.where(i < warmup, rising, jnp.where(i < total, falling, final))


def learning_rate(step: Array, c: ScheduleConfig, peak: float, final: float) -> tuple[Array, Array]:
    """(learning rate, learning rate of the last layer), both () float."""
    lr = cosine(step, peak, final, c.total_steps, c.warmup_steps)
    return lr, jnp.where(step < c.freeze_last_layer_steps, 0.0, lr)


def backbone_frozen(step: Array, c: ScheduleConfig) -> Array:
    """() bool: whether an update at this step leaves the backbone, student's and teacher's, as it is."""
    return step < c.freeze_backbone_steps


def weight_decay(step: Array, c: ScheduleConfig) -> Array:
    return cosine(step, c.weight_decay, c.weight_decay_end, c.total_steps)


def teacher_momentum(step: Array, c: ScheduleConfig) -> Array:
    return cosine(step, c.teacher_momentum, c.teacher_momentum_end, c.total_steps)


def teacher_temp(step: Array, c: ScheduleConfig) -> Array:
    """Linear over its warm-up, then constant."""
    warmup = c.teacher_temp_warmup_steps
    return cosine(step, c.teacher_temp, c.teacher_temp, warmup, warmup, c.teacher_temp_start)
