"""silu(gate) * up (SwiGLU, Shazeer, arXiv 2002.05202), of which only gate and up are kept for the backward pass."""

import jax
from jax import Array
from jaxtyping import Float


@jax.custom_vjp
def swiglu(gate: Float[Array, "*shape"], up: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """gate * sigmoid(gate) * up, elementwise, in the dtype of both.

    Left to differentiation, sigmoid, silu and their product are all written and read again, each as large as `up`.
    """
    return jax.nn.silu(gate) * up


def _forward(gate, up):
    return swiglu(gate, up), (gate, up)


def _backward(kept, cotangent):
    gate, up = kept
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid
    return cotangent * up * (sigmoid + silu * (1 - sigmoid)), cotangent * silu


swiglu.defvjp(_forward, _backward)
