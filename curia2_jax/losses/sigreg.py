"""SIGReg: sketched isotropic Gaussian regularization (LeJEPA, Balestriero and LeCun 2025), Epps-Pulley form.

Every one-dimensional projection of embeddings that follow N(0, I) is N(0, 1). The statistic of a projection p is the
weighted squared distance between its empirical characteristic function and that of N(0, 1),

    N * integral over [-t_max, t_max] of |mean_n exp(i t p_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt,

by the trapezoid rule; the integrand is even, so half of the knots are enough. Written from this formula.
Float32 at highest matmul precision (float64 for float64 input): near the optimum the differences are of order
N^-1/2, which bfloat16 phases would drown.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Key

CHUNK = 64  # directions at once; the last chunk is computed whole


def _quadrature(knots: int, t_max: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Knots t_k on [0, t_max], phi_k = exp(-t_k^2 / 2), and W_k: full-range trapezoid weight times phi_k."""
    t = np.linspace(0, t_max, knots)
    phi = np.exp(-(t**2) / 2)
    step = np.full(knots, 2 * t_max / (knots - 1))
    step[[0, -1]] /= 2
    return t, phi, step * phi


def expected_at_optimum(knots: int = 17, t_max: float = 3.0) -> float:
    """Expectation of the statistic when the embeddings are N(0, I): sum_k W_k (1 - phi_k^2), whatever N."""
    _, phi, weights = _quadrature(knots, t_max)
    return float(np.sum(weights * (1 - phi**2)))


def epps_pulley(
    z: Float[Array, "V N D"], directions: Float[Array, "D M"], knots: int = 17, t_max: float = 3.0
) -> Float[Array, "V M"]:
    """Statistic of each view and direction, the unit columns of `directions`."""
    dtype = jnp.promote_types(z.dtype, jnp.float32)
    t, phi, weights = (jnp.asarray(a, dtype) for a in _quadrature(knots, t_max))
    projections = jnp.einsum(
        "vnd,dm->vnm", z.astype(dtype), directions.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )
    phases = projections[..., None] * t.reshape(1, 1, 1, -1)
    real = jnp.cos(phases).mean(axis=1) - phi.reshape(1, 1, -1)
    imaginary = jnp.sin(phases).mean(axis=1)
    return z.shape[1] * jnp.sum(weights.reshape(1, 1, -1) * (real * real + imaginary * imaginary), axis=-1)


def random_directions(
    key: Key[Array, ""], indices: Int[Array, " M"], dim: int, dtype: DTypeLike
) -> Float[Array, "{dim} M"]:
    """Uniform unit vectors, the columns; each depends on the key and its own index only."""
    normal = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (dim,), dtype))(indices)
    squares = jnp.sum(normal * normal, axis=-1, keepdims=True)
    return (normal * jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(dtype).tiny))).T


def sigreg(
    z: Float[Array, "V N D"],
    key: Key[Array, ""],
    *,
    directions: int = 1024,
    chunk: int = CHUNK,
    knots: int = 17,
    t_max: float = 3.0,
) -> Float[Array, ""]:
    """Mean statistic over views and `directions` random ones, in float32 or better.

    z: N samples of each of V views; the means over N are global under `jit`. Directions come from the key
    and their index, so neither `chunk` (directions held at once; memory V * N * chunk * knots) nor the mesh changes
    the value. The gradient of a sample carries no 1/N: scale the loss by a reference N over N.
    """
    dtype = jnp.promote_types(z.dtype, jnp.float32)
    chunk = min(chunk, directions)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(total, start, z):
        indices = start + jnp.arange(chunk)
        statistic = epps_pulley(z, random_directions(key, indices, z.shape[-1], dtype), knots, t_max)
        # The last chunk may run past the end.
        return total + jnp.sum(statistic.mean(axis=0) * (indices < directions))

    def scan_step(total, start):
        return step(total, start, z), None

    total, _ = jax.lax.scan(scan_step, jnp.zeros((), dtype), jnp.arange(0, directions, chunk))
    return total / directions
