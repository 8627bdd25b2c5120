"""silu(gate) * up and its written-out gradient against PyTorch in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from curia2_jax.models.swiglu import swiglu


@pytest.mark.parametrize(("dtype", "rule"), [("float64", {"rtol": 1e-12}), ("float32", {"rtol": 1e-5, "atol": 1e-6})])
def test_value_and_gradients_equal_torch_from_saturation_to_saturation(dtype, rule):
    gate = np.concatenate([np.linspace(-8, 8, 199), [-200.0, -100.0, 0.0, 100.0, 200.0]])
    up, cotangent = np.random.default_rng(0).normal(size=(2, *gate.shape))
    with jax.enable_x64(True):
        ours = [jnp.asarray(a, dtype) for a in (gate, up)]
        value, pull = jax.vjp(swiglu, *ours)
        gradients = pull(jnp.asarray(cotangent, dtype))
    theirs = [torch.tensor(np.array(a, np.float64), requires_grad=True) for a in ours]
    expected = functional.silu(theirs[0]) * theirs[1]
    expected.backward(torch.from_numpy(cotangent))
    np.testing.assert_allclose(value, expected.detach().numpy(), **rule)
    for found, wanted in zip(gradients, theirs, strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, wanted.grad.numpy(), **rule)
