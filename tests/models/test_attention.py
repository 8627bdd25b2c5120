"""Attention against torch, the choice of implementation, and the TPU kernel in interpret mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, PartitionSpec
from torch.nn import functional

from curia2_jax.errors import UserError
from curia2_jax.models import attention


def inputs(tokens, batch=2, heads=3, head_dim=64):
    random = np.random.default_rng(0)
    return [random.normal(size=(batch, tokens, heads, head_dim)) for _ in range(3)]


def in_torch(query, key, value):
    """Output and gradients of sum(sin(output)), float64."""
    tensors = [torch.from_numpy(x).transpose(1, 2).requires_grad_() for x in (query, key, value)]
    out = functional.scaled_dot_product_attention(*tensors)
    out.sin().sum().backward()
    return [x.transpose(1, 2).detach().numpy() for x in (out, *(t.grad for t in tensors))]


def with_gradients(attend, arrays):
    def value(*arrays):
        out = attend(*arrays)
        return jnp.sum(jnp.sin(out)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return [out, *gradients]


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-12), ("float32", 5e-6), ("bfloat16", 5e-2)])
def test_equals_torch(dtype, atol):
    arrays = inputs(37)
    with jax.enable_x64(dtype == "float64"):
        ours = with_gradients(attention.attention, [jnp.asarray(x, dtype) for x in arrays])
        assert all(x.dtype == dtype for x in ours)
        for actual, expected in zip(ours, in_torch(*arrays), strict=True):
            np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (("cpu", "float32", 64, 197), "xla"),
        (("cpu", "bfloat16", 64, 1025), "xla"),
        (("gpu", "bfloat16", 64, 257), "cudnn"),
        (("gpu", "float16", 128, 37), "cudnn"),
        (("gpu", "float32", 64, 257), "xla"),
        (("gpu", "bfloat16", 60, 257), "xla"),
        (("gpu", "bfloat16", 256, 257), "xla"),
        (("tpu", "bfloat16", 64, 1025), "splash"),
        (("tpu", "bfloat16", 64, 257), "xla"),
        (("tpu", "float64", 64, 1025), "xla"),
    ],
)
def test_choice(case, expected):
    assert attention.choose(*case) == expected
    # What auto chooses can run.
    attention.check(expected, *case[:3])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (("cudnn", "gpu", "float32", 64), "found float32"),
        (("cudnn", "gpu", "bfloat16", 60), "found 60"),
        (("cudnn", "gpu", "bfloat16", 256), "found 256"),
        (("cudnn", "cpu", "bfloat16", 64), "found cpu"),
        (("splash", "gpu", "bfloat16", 64), "found gpu"),
        (("flash", "gpu", "bfloat16", 64), "'flash'"),
    ],
)
def test_impossible_combinations_are_one_line(case, message):
    with pytest.raises(UserError, match=message) as error:
        attention.check(*case)
    assert "\n" not in str(error.value)


def test_impossible_combination_through_the_function():
    with pytest.raises(UserError, match="cudnn"):
        attention.attention(*(jnp.asarray(x, jnp.float32) for x in inputs(5)), "cudnn")


def test_splash_equals_torch():
    """Two tiles of 128, the second mostly padding, which no real token may see."""
    arrays = inputs(150, batch=1, heads=2)
    ours = with_gradients(
        lambda *x: attention.splash_attention(*x, interpret=True), [jnp.asarray(x, jnp.float32) for x in arrays]
    )
    for actual, expected in zip(ours, in_torch(*arrays), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_splash_lowers_for_tpu_on_a_mesh(monkeypatch):
    """Exported for TPU from here: the kernel is in the program, and each device runs it on its own images."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    shape = jax.ShapeDtypeStruct((8, 1025, 2, 64), jnp.bfloat16)
    with jax.set_mesh(mesh):
        attend = jax.jit(lambda q, k, v: attention.attention(q, k, v, "auto", PartitionSpec("data")))
        text = jax.export.export(attend, platforms=["tpu"])(shape, shape, shape).mlir_module()
    assert "tpu_custom_call" in text
    # 8 images over 4 devices, padded from 1,025 to 1,152 tokens.
    assert "tensor<2x2x1152x64xbf16>" in text
