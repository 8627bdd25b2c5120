"""The projection head against the DINOv2 reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax.errors import UserError
from curia2_jax.models.dino_head import DINOHead, HeadConfig, largest_logit, last_layer_kernel
from tests import reference

EXPECTED = reference.VALUES["vit_and_head_forward"]["dino_head"]


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [("f64", 1e-9, 0), ("f32", 2e-5, 1e-6)])
def test_reference_output(dtype, rtol, atol):
    full = {"f64": "float64", "f32": "float32"}[dtype]
    with jax.enable_x64(dtype == "f64"):
        params = jax.tree.map(jnp.asarray, reference.head_params(full))
        x = jnp.asarray(np.sin(0.21 * reference.grid(5, 32) + 0.1), full)
        features = DINOHead(reference.head_config(full)).apply({"params": params}, x)
        assert features.dtype == full and features.shape == (5, 16)
        np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, rtol=1e-6)
        logits = np.asarray(features @ last_layer_kernel(params))
    np.testing.assert_allclose(logits[0, :6], EXPECTED[dtype]["out[0][:6]"], rtol, atol)
    np.testing.assert_allclose(logits[4, -1], EXPECTED[dtype]["out[4,-1]"], rtol, atol)
    np.testing.assert_allclose(np.linalg.norm(logits.astype(np.float64)), EXPECTED[dtype]["out_l2"], rtol)


@pytest.mark.parametrize("name", [name for name in reference.VALUES["param_counts"] if name.startswith("head")])
def test_reference_parameter_counts(name):
    width, prototypes, bottleneck, hidden = (
        int(part.lstrip("abcdefghijklmnopqrstuvwxyzK")) for part in name.split("|")[1:]
    )
    head = DINOHead(HeadConfig(prototypes, bottleneck, hidden))
    shapes = jax.eval_shape(head.init, jax.random.key(0), jax.ShapeDtypeStruct((1, width), jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == reference.VALUES["param_counts"][name]


def test_initialisation_and_names():
    config = HeadConfig(512, bottleneck=64, hidden=128)
    params = DINOHead(config).init(jax.random.key(0), jnp.zeros((1, 96)))["params"]
    assert jax.tree.map(jnp.shape, params) == {
        "mlp_0": {"kernel": (96, 128), "bias": (128,)},
        "mlp_1": {"kernel": (128, 128), "bias": (128,)},
        "mlp_2": {"kernel": (128, 64), "bias": (64,)},
        "last_layer": {"v": (64, 512), "g": (512,)},
    }
    np.testing.assert_allclose(params["mlp_1"]["kernel"].std(), 0.02, rtol=0.03)
    v = np.asarray(params["last_layer"]["v"])
    assert np.abs(v).max() <= 1 / 8
    np.testing.assert_allclose(v.std(), 1 / 8 / 3**0.5, rtol=0.02)
    assert (np.asarray(params["last_layer"]["g"]) == 1).all()
    np.testing.assert_allclose(np.linalg.norm(last_layer_kernel(params), axis=0), 1, rtol=1e-6)


def test_plain_last_layer():
    config = HeadConfig(512, bottleneck=64, hidden=128, weight_norm=False)
    params = DINOHead(config).init(jax.random.key(0), jnp.zeros((1, 96)))["params"]
    assert list(params["last_layer"]) == ["kernel"]
    kernel = last_layer_kernel(params)
    assert kernel.shape == (64, 512)
    np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.03)


@pytest.mark.parametrize("weight_norm", [True, False])
def test_no_logit_of_a_head_is_beyond_its_largest(weight_norm):
    """The bound is reached by features along the longest column, in float64 by hand."""
    config = HeadConfig(32, bottleneck=8, hidden=16, weight_norm=weight_norm, dtype="float32")
    params = DINOHead(config).init(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    random = np.random.default_rng(0)
    params["last_layer"] = {
        k: jnp.asarray(random.normal(size=v.shape), v.dtype) for k, v in params["last_layer"].items()
    }
    kernel = np.asarray(last_layer_kernel(params), np.float64)
    lengths = np.linalg.norm(kernel, axis=0)
    features = np.concatenate([random.normal(size=(64, 8)), kernel[:, [lengths.argmax()]].T])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(largest_logit(params), np.abs(features @ kernel).max(), rtol=1e-6)


def test_bfloat16_matmuls_and_float32_norm():
    params = jax.tree.map(jnp.asarray, reference.head_params("float32"))
    x = jnp.asarray(np.sin(0.21 * reference.grid(5, 32) + 0.1), jnp.float32)
    exact = DINOHead(reference.head_config("float32")).apply({"params": params}, x)
    half = DINOHead(reference.head_config("bfloat16")).apply({"params": params}, x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), exact, rtol=0, atol=0.01)
    # Each of the 16 entries is rounded once, by at most 2^-9 of itself; a norm taken in bfloat16 is off by more.
    lengths = np.linalg.norm(np.asarray(half, np.float64), axis=-1)
    np.testing.assert_allclose(lengths, 1, rtol=0, atol=2**-9)


def test_zero_features_have_a_finite_gradient():
    config = HeadConfig(8, bottleneck=4, hidden=8, dtype="float32")
    params = jax.tree.map(jnp.zeros_like, DINOHead(config).init(jax.random.key(0), jnp.zeros((1, 4)))["params"])
    gradient = jax.grad(lambda x: DINOHead(config).apply({"params": params}, x).sum())(jnp.ones((2, 4)))
    assert np.isfinite(gradient).all()


def test_mistake_in_the_config():
    with pytest.raises(UserError, match="layers=0"):
        HeadConfig(8, layers=0)
