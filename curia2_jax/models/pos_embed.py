"""Learned position table at any grid size: three bicubic forms, each as two small matmuls.

PyTorch code bases resample the square table in three ways that do not agree with each other:

* `size`: the cubic kernel with a = -0.75, no antialias, sampling step M / h (`Dinov2Model` of transformers);
* `offset`: the same kernel, sampling step M / (h + 0.1) (DINOv2's training code and models without registers);
* `antialias`: a = -0.5, the kernel stretched when the grid shrinks (DINOv2's models with registers and
  `Dinov2WithRegistersModel`).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Float64

FORMS = ("size", "offset", "antialias")
INITS = ("normal", "sincos")


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Cubic convolution kernel (Keys 1981) with free parameter `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=256)
def weights(form: str, side: int, out: int) -> Float64[np.ndarray, "{out} {side}"]:
    """Interpolation matrix, read-only: row o holds the weights of output position o."""
    matrix = np.zeros((out, side))
    if form == "antialias":
        scale = side / out
        stretch = max(scale, 1.0)
        for o in range(out):
            center = scale * (o + 0.5)
            first = max(math.floor(center - 2 * stretch + 0.5), 0)
            last = min(math.floor(center + 2 * stretch + 0.5), side)
            taps = _cubic((np.arange(first, last) - center + 0.5) / stretch, -0.5)
            matrix[o, first:last] = taps / taps.sum()
    elif form in ("size", "offset"):
        step = side / (out + (0.1 if form == "offset" else 0.0))
        for o in range(out):
            position = (o + 0.5) * step - 0.5
            taps = math.floor(position) + np.arange(-1, 3)
            # Taps beyond the border fall on the border pixel, as in PyTorch.
            np.add.at(matrix[o], np.clip(taps, 0, side - 1), _cubic(position - taps, -0.75))
    else:
        raise ValueError(f"interpolation form {form!r}: must be one of {', '.join(FORMS)}")
    matrix.setflags(write=False)
    return matrix


def interpolate(
    pos_embed: Float[Array, "1 entries D"], grid: tuple[int, int], form: str
) -> Float[Array, "1 1+{grid[0]}*{grid[1]} D"]:
    """Position table for a grid of (height, width) patches, from 1 + M*M entries; entry 0 is the class token's.

    In `promote_types(pos_embed.dtype, float32)`. The native grid is used as it is, never resampled.
    """
    height, width = grid
    side = math.isqrt(pos_embed.shape[1] - 1)
    table = pos_embed.astype(jnp.promote_types(pos_embed.dtype, jnp.float32))
    if height == width == side:
        return table
    rows = jnp.asarray(weights(form, side, height), table.dtype)
    columns = jnp.asarray(weights(form, side, width), table.dtype)
    patches = table[0, 1:].reshape(side, side, -1)
    patches = jnp.einsum("pi,ijd->pjd", rows, patches, precision=jax.lax.Precision.HIGHEST)
    patches = jnp.einsum("qj,pjd->pqd", columns, patches, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:, :1], patches.reshape(1, height * width, -1)], axis=1)


def sincos(side: int, width: int) -> Float64[np.ndarray, "{side}*{side} {width}"]:
    """Sines and cosines of row and column at width / 4 frequencies from 1 to 1/10,000 (MoCo v3, arXiv 2104.02057)."""
    angles = np.arange(side)[:, None] / 10_000 ** (np.arange(width // 4) / (width // 4))
    one = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return np.concatenate([np.repeat(one, side, axis=0), np.tile(one, (side, 1))], axis=1)


def initializer(init: str) -> Callable[..., Array]:
    """How a table (1, 1 + M*M, D) starts: one of INITS. The class token's entry is drawn in both."""
    normal = jax.nn.initializers.normal(0.02)

    def with_sincos(key: Array, shape: tuple[int, int, int], dtype: DTypeLike = jnp.float32) -> Array:
        _, entries, width = shape
        patches = jnp.asarray(sincos(math.isqrt(entries - 1), width), dtype)[None]
        return jnp.concatenate([normal(key, (1, 1, width), dtype), patches], axis=1)

    return normal if init == "normal" else with_sincos


def resize_grid(
    pos_embed: Float[np.ndarray, "1 entries D"], side: int, form: str
) -> Float[np.ndarray, "1 1+{side}*{side} D"]:
    """The same on the host, computed in float64; the dtype is kept.

    For a new table to be stored (second training stage, conversion of checkpoints).
    """
    pos_embed = np.asarray(pos_embed)
    old = math.isqrt(pos_embed.shape[1] - 1)
    if side == old:
        return pos_embed
    matrix = weights(form, old, side)
    patches = pos_embed[0, 1:].astype(np.float64).reshape(old, old, -1)
    patches = np.einsum("pi,qj,ijd->pqd", matrix, matrix, patches, optimize=True).reshape(1, side * side, -1)
    return np.concatenate([pos_embed[:, :1], patches.astype(pos_embed.dtype)], axis=1)
