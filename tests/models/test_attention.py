"""Attention against torch, padded and not, the choice of implementation, and the TPU kernel in interpret mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, PartitionSpec
from torch.nn import functional

from curia2_jax.errors import UserError
from curia2_jax.models import attention, attention_tpu


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


def flat(arrays, dtype, padded=0, filling=0.0):
    """(b, T, heads, d) arrays as attention takes them: (b, padded tokens, heads * d)."""
    return [
        jnp.pad(
            jnp.asarray(x, dtype).reshape(*x.shape[:2], -1),
            ((0, 0), (0, max(padded - x.shape[1], 0)), (0, 0)),
            constant_values=filling,
        )
        for x in arrays
    ]


def unflat(arrays, shape):
    return [np.asarray(x, np.float64)[:, : shape[1]].reshape(shape) for x in arrays]


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-12), ("float32", 5e-6), ("bfloat16", 5e-2)])
def test_equals_torch(dtype, atol):
    arrays = inputs(37)
    with jax.enable_x64(dtype == "float64"):
        ours = with_gradients(lambda *x: attention.attention(*x, heads=3, tokens=37), flat(arrays, dtype))
        assert all(x.dtype == dtype for x in ours)
        for actual, expected in zip(unflat(ours, arrays[0].shape), in_torch(*arrays), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("tokens", [37, 145, 257, 1025])
def test_padding_an_odd_number_of_tokens_changes_nothing(tokens):
    """What cuDNN is given on a GPU, run by XLA: value and gradients of the padded arrays are those of the plain ones,
    and the padding, NaN here, reaches neither."""
    arrays = inputs(tokens, batch=1, heads=2)
    padded = attention.padded_tokens("cudnn", tokens)
    assert padded == tokens + 1

    def attend(*x):
        x = [jnp.pad(a, ((0, 0), (0, 1), (0, 0), (0, 0)), constant_values=jnp.nan) for a in x]
        return attention.with_lengths(*x, tokens, "xla")[:, :tokens]

    arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
    ours, plain = with_gradients(attend, arrays), with_gradients(jax.nn.dot_product_attention, arrays)
    for actual, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (("cpu", "float32", 16, 64, 197), "xla"),
        (("cpu", "bfloat16", 16, 64, 1025), "xla"),
        (("gpu", "bfloat16", 16, 64, 257), "cudnn"),
        (("gpu", "float16", 16, 128, 37), "cudnn"),
        (("gpu", "float32", 16, 64, 257), "xla"),
        (("gpu", "bfloat16", 16, 60, 257), "xla"),
        (("gpu", "bfloat16", 16, 256, 257), "xla"),
        (("tpu", "bfloat16", 16, 64, 1025), "pallas"),
        (("tpu", "bfloat16", 6, 64, 37), "pallas"),
        (("tpu", "float32", 4, 32, 65), "pallas"),
        (("tpu", "bfloat16", 3, 64, 257), "xla"),
        (("tpu", "bfloat16", 16, 60, 257), "xla"),
        (("tpu", "bfloat16", 16, 64, 2305), "xla"),
        (("tpu", "float64", 16, 64, 257), "xla"),
    ],
)
def test_choice(case, expected):
    assert attention.choose(*case) == expected
    # What auto chooses can run.
    assert attention.resolve(expected, *case) == expected


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (("cudnn", "gpu", "float32", 16, 64, 257), "found float32"),
        (("cudnn", "gpu", "bfloat16", 16, 60, 257), "found 60"),
        (("cudnn", "gpu", "bfloat16", 16, 256, 257), "found 256"),
        (("cudnn", "cpu", "bfloat16", 16, 64, 257), "found cpu"),
        (("pallas", "gpu", "bfloat16", 16, 64, 257), "found gpu"),
        (("pallas", "tpu", "bfloat16", 3, 64, 257), "found 3 x 64"),
        (("flash", "gpu", "bfloat16", 16, 64, 257), "'flash'"),
    ],
)
def test_impossible_combinations_are_one_line(case, message):
    with pytest.raises(UserError, match=message) as error:
        attention.check(*case)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tokens", "batch", "heads", "head_dim", "padded"),
    [
        (37, 6, 2, 64, 40),  # three crops share a program
        (37, 4, 4, 32, 40),  # two crops, and four heads in 128 lanes
        (145, 2, 1, 128, 152),  # one head fills them
        (257, 1, 2, 64, 264),
        (1025, 1, 2, 64, 1032),  # queries in three blocks
    ],
)
def test_tpu_kernel_equals_torch(tokens, batch, heads, head_dim, padded):
    """Real tokens never see the padding, nor another crop of their program."""
    arrays = inputs(tokens, batch, heads, head_dim)
    assert attention.padded_tokens("pallas", tokens) == padded

    def attend(*x):
        return attention_tpu.short_attention(*x, heads, tokens, interpret=True)[:, :tokens]

    ours = with_gradients(attend, flat(arrays, "float32", padded, filling=3.0))
    for actual, expected in zip(unflat(ours, arrays[0].shape), in_torch(*arrays), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)
    for gradient in ours[1:]:
        np.testing.assert_array_equal(np.asarray(gradient)[:, tokens:], 0)


@pytest.mark.parametrize("tokens", range(1, attention_tpu.MAX_TOKENS + 1, 73))
def test_padding_for_the_tpu_kernel(tokens):
    """Whole sublanes, at most an eighth more than the tokens beyond the first few, blocks of at least 128 queries."""
    padded = attention_tpu.padded_tokens(tokens)
    block = attention_tpu.query_block(padded)
    assert padded % 8 == 0
    assert tokens <= padded <= max(tokens * 1.1, tokens + 7)
    assert padded % block == 0
    assert block == padded or block >= 128


def test_tpu_kernel_lowers_on_a_mesh():
    """Exported for TPU from here: the kernel is in the program, and each device runs it on its own images."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    shape = jax.ShapeDtypeStruct((8, 1032, 128), jnp.bfloat16)
    with jax.set_mesh(mesh):
        attend = jax.jit(lambda *x: attention.attention(*x, 2, 1025, "pallas", PartitionSpec("data")))
        text = jax.export.export(attend, platforms=["tpu"])(shape, shape, shape).mlir_module()
    assert "tpu_custom_call" in text
    assert "tensor<2x1032x128xbf16>" in text
