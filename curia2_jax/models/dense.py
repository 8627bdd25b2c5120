"""The linear layer: products in the compute dtype, everything added in float32 or better."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

INITS = ("normal_0.02", "fan_in")


def kernel_init(init: str) -> nn.initializers.Initializer:
    """How a matrix (rows in, columns out) starts: one of INITS.

    "normal_0.02" is DINOv2's, whose truncation at +-2 is a hundred standard deviations away; it is made for some
    thousand rows. "fan_in" has the standard deviation rows^-1/2: what goes in with unit variance comes out with it, at
    any width (LeCun et al., Efficient BackProp, 1998).
    """
    return (
        nn.initializers.normal(0.02)
        if init == "normal_0.02"
        else nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    )


def wide(dtype: str | jnp.dtype) -> jnp.dtype:
    """Where sums are accumulated: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


class Dense(nn.Module):
    """Linear layer: the matmul in `dtype`, the bias added in float32 or better, the result in `dtype`.

    Adding in float32 costs nothing once fused, and makes the bias's gradient, a sum over all tokens, a float32 sum.
    `as_rows` multiplies one matrix of rows. `law` of its start: see `kernel_init`. Not `biased`: nothing is added.
    """

    features: int
    dtype: str
    as_rows: bool = False
    law: str = INITS[0]
    biased: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows {self.features}"]:
        kernel = self.param("kernel", kernel_init(self.law), (x.shape[-1], self.features))
        rows = x.astype(self.dtype)
        rows = rows.reshape(-1, x.shape[-1]) if self.as_rows else rows
        y = jnp.matmul(rows, kernel.astype(self.dtype)).astype(wide(self.dtype))
        if self.biased:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        return y.astype(self.dtype).reshape(*x.shape[:-1], -1)
