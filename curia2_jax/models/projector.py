"""LeJEPA's projector (arXiv 2511.08544 and its public code): linear layers with batch norm and ReLU between them.

It is there in training only. So batch norm keeps no running statistics: what is projected is always a batch.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from curia2_jax.errors import UserError
from curia2_jax.models.dense import INITS, Dense, wide

EPS = 1e-5  # of batch norm, PyTorch's default


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """`layers` linear layers of `hidden` columns, the last of `width`."""

    width: int
    hidden: int
    layers: int
    dtype: str = "bfloat16"
    init: str = INITS[0]  # of the linear layers; see models/dense.py

    def __post_init__(self):
        for name in ("width", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise UserError(f"projector_{name}={getattr(self, name)}: must be at least 1")


class BatchNorm(nn.Module):
    """Each column of the rows to mean 0 and variance 1, times a scale, plus a bias; in float32 or better.

    The mean over rows is that of all devices under `jit`.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "rows D"]) -> Float[Array, "rows D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        centered = x - x.mean(axis=0, keepdims=True)
        unit = centered * jax.lax.rsqrt(jnp.square(centered).mean(axis=0, keepdims=True) + EPS)
        return unit * scale.reshape(1, -1).astype(x.dtype) + bias.reshape(1, -1).astype(x.dtype)


class Projector(nn.Module):
    """Class tokens of all views of a batch to the space in which LeJEPA compares them."""

    config: ProjectorConfig

    @nn.compact
    def __call__(self, x: Float[Array, "rows D"]) -> Float[Array, "rows {self.config.width}"]:
        """In float32 or better: SigReg, which reads it, wants more digits than bfloat16 has."""
        config = self.config
        for index in range(config.layers):
            last = index == config.layers - 1
            columns = config.width if last else config.hidden
            x = Dense(columns, config.dtype, law=config.init, name=f"mlp_{index}")(x).astype(wide(config.dtype))
            if not last:
                x = nn.relu(BatchNorm(name=f"norm_{index}")(x))
        return x
