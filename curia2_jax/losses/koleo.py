"""KoLeo regulariser: Kozachenko-Leonenko entropy estimate (Sablayrolles et al., arXiv 1806.03198; DINOv2 section 4)."""

import jax
import jax.numpy as jnp

_EPS = 1e-8


def koleo(x: jax.Array) -> jax.Array:
    """- mean log distance of each unit-length sample to its nearest neighbour in its group: () float32 or better.

    x: (groups, samples, D), class tokens of one view before the head. The gradient goes through both ends of a pair,
    not through the choice. Equal samples give a large but finite value and gradient.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The square of the bound keeps the gradient of a zero vector finite.
    unit = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), _EPS**2))
    fixed = jax.lax.stop_gradient(unit)
    cosines = jnp.einsum("gid,gjd->gij", fixed, fixed, precision=jax.lax.Precision.HIGHEST)
    itself = jnp.eye(x.shape[1], dtype=bool)[None]
    nearest = jnp.argmax(jnp.where(itself, -1, cosines), axis=-1)
    neighbour = jnp.take_along_axis(unit, nearest[:, :, None], axis=1)
    difference = unit - neighbour + _EPS
    distance = jnp.sqrt(jnp.sum(difference * difference, axis=-1))
    return -jnp.mean(jnp.log(distance + _EPS))
