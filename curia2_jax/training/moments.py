"""Sums over patches, of which a linear head on patch tokens and its score follow without the tokens themselves."""

import jax
import jax.numpy as jnp
from jax import Array

from curia2_jax.models.dense import wide

NAMES = ("dense_patches", "dense_mean", "dense_second")  # the fields of telemetry/linear_dice.py's Moments, in order


def moments(tokens: Array, shares: Array, halves: Array) -> dict[str, Array]:
    """Second moments of the tokens of patches and of what lies in them, of two halves of the slices.

    About the mean of these very patches: tokens that are nearly one lose no digits. Products in full precision.

    Args:
      tokens: (B, N, D), any dtype. shares: (B, N, K), of each patch that each structure covers.
      halves: (B, 2) bool: of which half a slice is, if of any.
    Returns:
      `dense_patches` (2,) patches, `dense_mean` (2, D + K), and `dense_second` (2, D + K, D + K), the sum of products
      about it; in float32 or better.
    """
    dtype = wide(tokens.dtype)
    both = jnp.concatenate([tokens.astype(dtype), shares.astype(dtype)], axis=-1)

    def of_half(own: Array) -> tuple[Array, Array, Array]:
        own = own[:, None, None]
        count = own.sum().astype(dtype) * tokens.shape[1]
        mean = jnp.where(own, both, 0).sum((0, 1), keepdims=True) / jnp.maximum(count, 1)
        apart = jnp.where(own, both - mean, 0)
        return count, mean[0, 0], jnp.einsum("bnd,bne->de", apart, apart, precision=jax.lax.Precision.HIGHEST)

    parts = zip(of_half(halves[:, 0]), of_half(halves[:, 1]), strict=True)
    return {name: jnp.stack(part) for name, part in zip(NAMES, parts, strict=True)}
