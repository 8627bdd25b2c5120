"""LayerNorm (Ba et al., arXiv 1607.06450) whose backward pass is written out.

Left to differentiation, flax's form keeps the product of scale and inverse deviation, as large as the tokens, and
reads what it keeps several times over: on a CPU that is a tenth of a training step.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

EPS = 1e-6


class LayerNorm(nn.Module):
    """LayerNorm of the last axis, in `dtype`; statistics, scale and bias in float32 or better."""

    dtype: str | jnp.dtype
    eps: float = EPS

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.eps).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*rows D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float = EPS
) -> Float[Array, "*rows D"]:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis, in float32 or better."""
    return _forward(x, scale, bias, eps)[0]


def _forward(x, scale, bias, eps):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Two readings: the fast variance, E[x^2] - E[x]^2, loses digits where the mean is large.
    centered = wide - wide.mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + eps)
    scale, bias = (_row(p, wide) for p in (scale, bias))
    return centered * inverse * scale + bias, (x, scale, inverse)


def _backward(_, kept, cotangent):
    x, scale, inverse = kept
    wide = x.astype(cotangent.dtype)
    unit = (wide - wide.mean(axis=-1, keepdims=True)) * inverse
    slope = cotangent * scale
    d_x = inverse * (slope - slope.mean(axis=-1, keepdims=True) - unit * (slope * unit).mean(axis=-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return d_x.astype(x.dtype), (cotangent * unit).sum(rows), cotangent.sum(rows)


def _row(parameter, x):
    return parameter.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


layer_norm.defvjp(_forward, _backward)
