"""The last linear layer of a head and the cross-entropy to a teacher, fused and scanned over rows.

Neither student logits nor teacher probabilities are ever stored: one step holds one (chunk, K) float32 array per shard.
Under differentiation the gradients of that chunk are taken in the same step (the loss is a scalar, so they are final up
to one factor), hence nothing is recomputed in the backward pass. The idea is that of fused linear cross-entropies
for language models, here with soft targets that are given by potentials (`targets`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from curia2_jax.losses.targets import SAFE, Targets, chunk_probabilities, peaks_unless, scan_chunks, take_rows


def linear_cross_entropy(
    features: Float[Array, "shards units R bottleneck"],
    kernel: Float[Array, "bottleneck K"],
    targets: Targets,
    weights: Float[Array, "shards units R"],
    *,
    mixing: Float[np.ndarray, "R V"],
    temp: float,
    chunk: int,
    bound: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Float[Array, " R"]]:
    """Weighted sum of cross-entropies of `features @ kernel / temp` against mixed teacher rows.

    A unit (an image, a masked patch) has R student rows and V teacher rows; the target of student row r is
    sum_v mixing[r, v] q_v.

    features: their dtype is that of the matmuls, which accumulate in float32. targets: rows of logits are units * V,
    unit-major. mixing: constants. temp: student temperature. chunk: student rows per shard and step.
    bound: |features @ kernel| <= bound to within a few percent, if one is known: where bound / temp is at most
    SAFE, every exponential and the sum of a row stay inside float32 as they are, and the maximum of a row is not taken.

    Returns the sum of weights times cross-entropies, differentiable in features and kernel only; and the same sum by
    student row, for logging: no gradient flows through it.
    """
    rows = tuple(tuple(float(m) for m in row) for row in mixing)  # hashable
    bounded = None if bound is None else jax.lax.stop_gradient(bound) <= SAFE * temp
    loss, parts = _fused(features, kernel, targets, weights, bounded, rows, temp, chunk)
    return loss, jax.lax.stop_gradient(parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _fused(features, kernel, targets, weights, bounded, mixing, temp, chunk):
    (parts, _), _ = _scan(features, kernel, targets, weights, bounded, mixing, temp, chunk, differentiate=False)
    return parts.sum(), parts.sum(axis=0)


def _forward(features, kernel, targets, weights, bounded, mixing, temp, chunk):
    (parts, d_kernel), d_features = _scan(
        features, kernel, targets, weights, bounded, mixing, temp, chunk, differentiate=True
    )
    # The one sum over shards.
    return (parts.sum(), parts.sum(axis=0)), (d_features, d_kernel.sum(axis=0).astype(kernel.dtype))


def _backward(mixing, temp, chunk, gradients, cotangents):
    d_features, d_kernel = gradients
    factor = cotangents[0]
    return d_features * factor.astype(d_features.dtype), d_kernel * factor.astype(d_kernel.dtype), None, None, None


_fused.defvjp(_forward, _backward)


def _scan(features, kernel, targets, weights, bounded, mixing, temp, chunk, differentiate):
    shards, units, rows, _ = features.shape
    teachers = len(mixing[0])
    accumulator = jnp.promote_types(features.dtype, jnp.float32)
    matrix = kernel.astype(features.dtype)
    weights = weights.astype(accumulator)
    mass = jnp.asarray([sum(row) for row in mixing], accumulator)
    matmul = functools.partial(jnp.einsum, preferred_element_type=accumulator)

    def step(carry, start, size):
        parts, d_kernel = carry
        x = take_rows(features, start, size).reshape(shards, size * rows, -1)
        w = take_rows(weights, start, size)
        logits = matmul("snd,dk->snk", x, matrix)
        peak = peaks_unless(bounded, 0.0, lambda: logits.max(axis=-1, keepdims=True))
        normalizer = peak + temp * jnp.log(jnp.sum(jnp.exp((logits - peak) / temp), axis=-1, keepdims=True))
        target = _mix(mixing, chunk_probabilities(targets, start * teachers, size * teachers))
        entropy = jnp.sum(target * (normalizer - logits), axis=-1) / temp
        parts = parts + (w * entropy.reshape(w.shape)).sum(axis=1)
        if not differentiate:
            return (parts, d_kernel), None
        total = jnp.tile(mass, size).reshape(1, -1, 1)
        slope = total * jnp.exp((logits - normalizer) / temp) - target
        slope = (slope * (w.reshape(shards, -1, 1) / temp)).astype(features.dtype)
        d_kernel = d_kernel + matmul("snd,snk->sdk", x, slope)
        d_x = matmul("snk,dk->snd", slope, matrix).astype(features.dtype)
        return (parts, d_kernel), d_x.reshape(shards, size, rows, -1)

    empty = jnp.zeros((shards, *kernel.shape), accumulator) if differentiate else None
    return scan_chunks(step, (jnp.zeros((shards, rows), accumulator), empty), units, max(chunk // rows, 1))


def _mix(mixing, q):
    """(shards, n * V, K) -> (shards, n * R, K). Elementwise, so that it can fuse with the exponential."""
    if mixing == ((1.0,),):
        return q
    shards, _, prototypes = q.shape
    q = q.reshape(shards, -1, len(mixing[0]), 1, prototypes)
    columns = jnp.asarray(mixing, q.dtype).T.reshape(1, 1, len(mixing[0]), len(mixing), 1)
    return sum(columns[:, :, v] * q[:, :, v] for v in range(len(mixing[0]))).reshape(shards, -1, prototypes)
