"""KoLeo against the DINOv2 and DINOv3 references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax.losses.koleo import koleo
from tests import reference

BLOCK = reference.VALUES["dino_ibot_koleo"]["koleo"]
i, j = np.indices((8, 16))
X = np.sin(0.7 * (i + 1) * (j + 1) + 0.1 * j)


@pytest.mark.parametrize(("dtype", "rule"), [("f64", {"rtol": 1e-9}), ("f32", {"rtol": 2e-5, "atol": 1e-6})])
def test_reference(dtype, rule):
    expected = BLOCK[dtype]
    with jax.enable_x64(dtype == "f64"):
        x = jnp.asarray(X, {"f64": "float64", "f32": "float32"}[dtype])[None]
        loss, gradient = jax.jit(jax.value_and_grad(koleo))(x)
        np.testing.assert_allclose(loss, expected["loss"], **rule)
        np.testing.assert_allclose(np.linalg.norm(gradient), expected["grad_l2"], rtol=1e-4)
        np.testing.assert_allclose(gradient[0, 0, 0], expected["grad[0,0]"], rtol=1e-4)
        np.testing.assert_allclose(koleo(x.at[0, 1].set(x[0, 0])), expected["with_row1_copy_of_row0"], **rule)
        np.testing.assert_allclose(koleo(x[:, :1]), expected["batch_of_1"], **rule)


def test_dinov3_with_one_neighbor():
    expected = reference.VALUES["dinov3"]["koleo_distributed_topk1_world1_f32"]
    np.testing.assert_allclose(koleo(jnp.asarray(X, jnp.float32)[None]), expected, rtol=2e-5)


def test_half_precision_input_is_computed_in_float32():
    x = jnp.asarray(X, jnp.bfloat16)[None]
    loss = koleo(x)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, koleo(x.astype(jnp.float32)), rtol=1e-6)


def test_groups_are_apart_and_averaged():
    x = np.random.default_rng(0).normal(size=(3, 4, 16)).astype(np.float32)
    x[1] = x[0]  # Neighbors across groups would be at distance 0.
    alone = [float(koleo(jnp.asarray(group)[None])) for group in x]
    np.testing.assert_allclose(koleo(jnp.asarray(x)), np.mean(alone), rtol=1e-5)


def test_duplicates_and_zeros_have_finite_gradients():
    x = jnp.asarray(X, jnp.float32)[None]
    x = x.at[0, 1].set(x[0, 0]).at[0, 2].set(0.0)
    loss, gradient = jax.jit(jax.value_and_grad(koleo))(x)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    loss, gradient = jax.value_and_grad(koleo)(jnp.zeros((1, 4, 16)))
    assert np.isfinite(loss) and np.isfinite(gradient).all()
