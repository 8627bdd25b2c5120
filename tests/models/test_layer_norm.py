"""LayerNorm and its written-out gradient against PyTorch in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from curia2_jax.models.layer_norm import LayerNorm, layer_norm


def test_where_the_mean_is_large():
    """Rows of mean 30 and standard deviation 1, where E[x^2] - E[x]^2 has an error of 7e-5 in float32."""
    x = np.random.default_rng(0).normal(30, 1, (64, 1024)).astype(np.float32)
    norm = LayerNorm("float32")
    ours = norm.apply({"params": {"scale": jnp.ones(1024), "bias": jnp.zeros(1024)}}, jnp.asarray(x))
    expected = functional.layer_norm(torch.from_numpy(x).double(), (1024,), eps=1e-6).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "rule"), [("float64", {"rtol": 1e-10}), ("float32", {"rtol": 1e-4, "atol": 1e-4})])
def test_value_and_gradients_equal_torch(dtype, rule):
    random = np.random.default_rng(1)
    x, scale, bias = random.normal(3, 2, (3, 5, 24)), random.normal(size=24), random.normal(size=24)
    with jax.enable_x64(True):
        ours = [jnp.asarray(a, dtype) for a in (x, scale, bias)]
        value, gradients = jax.value_and_grad(lambda *a: jnp.sin(layer_norm(*a)).sum(), (0, 1, 2))(*ours)
    theirs = [torch.from_numpy(a).requires_grad_() for a in (x, scale, bias)]
    expected = functional.layer_norm(theirs[0], (24,), theirs[1], theirs[2], eps=1e-6).sin().sum()
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), **rule)
    for found, wanted in zip(gradients, theirs, strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, wanted.grad.numpy(), **rule)


def test_bfloat16_tokens_are_normalised_in_float32():
    x = jnp.asarray(np.random.default_rng(2).normal(8, 1, (16, 256)), jnp.bfloat16)
    ours = layer_norm(x, jnp.ones(256), jnp.zeros(256))
    expected = functional.layer_norm(torch.from_numpy(np.asarray(x, np.float64)), (256,), eps=1e-6).numpy()
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    gradient = jax.grad(lambda x: jnp.sin(layer_norm(x, jnp.ones(256), jnp.zeros(256))).sum())(x)
    assert gradient.dtype == jnp.bfloat16
