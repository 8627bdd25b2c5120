"""KoLeo regularizer: Kozachenko-Leonenko entropy estimate (Sablayrolles et al., arXiv 1806.03198; DINOv2 section 4)."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

_EPS = 1e-8


def koleo(x: Float[Array, "groups samples D"]) -> Float[Array, ""]:
    """- mean log distance of each unit-length sample to its nearest neighbor in its group, in float32 or better.

    x: class tokens of one view before the head. The gradient goes through both ends of a pair,
    not through the choice. Equal samples give a large but finite value and gradient.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The square of the bound keeps the gradient of a zero vector finite.
    unit = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), _EPS**2))
    fixed = jax.lax.stop_gradient(unit)
    cosines = jnp.einsum("gid,gjd->gij", fixed, fixed, precision=jax.lax.Precision.HIGHEST)
    itself = jnp.eye(x.shape[1], dtype=bool)[None]
    nearest = jnp.argmax(jnp.where(itself, -1, cosines), axis=-1)
    neighbor = jnp.take_along_axis(unit, nearest[:, :, None], axis=1)
    difference = unit - neighbor + _EPS
    distance = jnp.sqrt(jnp.sum(difference * difference, axis=-1))
    return -jnp.mean(jnp.log(distance + _EPS))
