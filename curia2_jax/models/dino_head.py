"""Projection head of DINO and iBOT (DINOv2, arXiv 2304.07193, section 4; DINO, arXiv 2104.14294, appendix C)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from curia2_jax.errors import UserError
from curia2_jax.models.dense import INITS, Dense, wide
from curia2_jax.models.vit import gelu

PyTree = Any


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """`prototypes` K outputs; `layers` linear layers before the last one; `weight_norm` as DINOv2, else plain."""

    prototypes: int
    bottleneck: int = 256
    hidden: int = 2048
    layers: int = 3
    weight_norm: bool = True
    dtype: str = "bfloat16"
    init: str = INITS[0]  # of the linear layers; see models/dense.py

    def __post_init__(self):
        for name in ("prototypes", "bottleneck", "hidden", "layers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")


class LastLayer(nn.Module):
    """Parameters of the linear map from the bottleneck to the prototypes; the losses apply it, chunk by chunk."""

    config: HeadConfig

    @nn.compact
    def __call__(self) -> None:
        bottleneck, prototypes = self.config.bottleneck, self.config.prototypes
        if self.config.weight_norm:
            bound = bottleneck**-0.5
            self.param(
                "v",
                lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound),
                (bottleneck, prototypes),
            )
            self.param("g", nn.initializers.ones, (prototypes,))
        else:
            self.param("kernel", nn.initializers.normal(0.02), (bottleneck, prototypes))


class DINOHead(nn.Module):
    """MLP to an L2-normalized bottleneck, and the parameters of the last layer."""

    config: HeadConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows {self.config.bottleneck}"]:
        """Vectors of unit length, in `config.dtype`; the norm is taken in float32 or better."""
        config = self.config
        for index in range(config.layers):
            last = index == config.layers - 1
            x = Dense(config.bottleneck if last else config.hidden, config.dtype, law=config.init, name=f"mlp_{index}")(
                x
            )
            if not last:
                x = gelu(x)
        LastLayer(config, name="last_layer")()
        x = x.astype(wide(config.dtype))
        # max(norm, 1e-12), written so that the gradient at a zero vector is 0 and not NaN.
        return (x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))).astype(config.dtype)


def last_layer_kernel(params: PyTree) -> Float[Array, "bottleneck K"]:
    """Effective kernel of a head's parameters, in their dtype: column k is g_k v_k / ||v_k||."""
    last = params["last_layer"]
    if "kernel" in last:
        return last["kernel"]
    norm = jnp.sqrt(jnp.sum(last["v"] * last["v"], axis=0, keepdims=True))
    return last["v"] * (last["g"].reshape(1, -1) / norm)


def largest_logit(params: PyTree) -> Float[Array, ""]:
    """No feature of a head, being of unit length, has a logit beyond the length of the longest column."""
    last = params["last_layer"]
    return jnp.sqrt(jnp.sum(last["kernel"] ** 2, axis=0).max()) if "kernel" in last else jnp.abs(last["g"]).max()
