"""Rotary positions of patches (RoFormer, arXiv 2104.09864), in two axes and without a table, as DINOv3 has them.

Source: arXiv 2508.10104 and `DINOv3ViTModel` of transformers. The center of a patch lies in (-1, 1) along each side of
the crop, whatever its size; a quarter of the channels of a head turns with the row, a quarter with the column, and the
other half with the first: channel c is paired with c + d / 2. Class token and registers do not turn.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float64

from curia2_jax.models.dense import wide

THETA = 100.0


@functools.lru_cache(maxsize=256)
def angles(grid: tuple[int, int], head_dim: int) -> Float64[np.ndarray, "{grid[0]}*{grid[1]} {head_dim}//2"]:
    """Angles of the patches, row by row, and of the first half of the channels of a head; read-only."""
    frequencies = 2 * np.pi / THETA ** (np.arange(head_dim // 4) / (head_dim // 4))
    rows, columns = (2 * (np.arange(side) + 0.5) / side - 1 for side in grid)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    found = (places[:, :, None] * frequencies).reshape(len(places), -1)
    found.setflags(write=False)
    return found


def rotate(x: Float[Array, "b T D"], heads: int, grid: tuple[int, int], first_patch: int) -> Float[Array, "b T D"]:
    """Queries or keys with the patches turned; what stands before and behind them, as padding does, stays.

    D is heads * d, d a multiple of 4. In float32 or better, rounded to the dtype of `x`.
    """
    batch, tokens, width = x.shape
    turn = angles(grid, width // heads)
    behind = tokens - first_patch - len(turn)
    turn = np.pad(turn, ((first_patch, behind), (0, 0)))[None, :, None]
    cos, sin = (jnp.asarray(f(turn), wide(x.dtype)) for f in (np.cos, np.sin))
    first, second = jnp.split(x.reshape(batch, tokens, heads, -1).astype(wide(x.dtype)), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
