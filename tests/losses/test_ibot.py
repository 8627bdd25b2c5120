"""The iBOT loss against the DINOv2 reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax.losses import targets
from curia2_jax.losses.ibot import ibot_loss, masked_patches
from tests import reference

BLOCK = reference.VALUES["dino_ibot_koleo"]["ibot"]
b, n = np.indices((4, 16))
MASKS = ((7 * b + 3 * n) % 5 == 0) & (b != 3)


def test_masked_patches_of_the_reference():
    index, weight = masked_patches(jnp.asarray(MASKS)[None], 10)
    np.testing.assert_array_equal(index[0], BLOCK["mask_indices"])
    np.testing.assert_allclose(weight[0], BLOCK["masks_weight"], rtol=1e-6)
    assert index.dtype == jnp.int32 and weight.dtype == jnp.float32


def test_masked_patches_in_groups():
    """Three groups of two crops, five masked patches each, one crop with none."""
    random = np.random.default_rng(0)
    masks = np.zeros((3, 2, 8), bool)
    masks[0, 0, random.permutation(8)[:5]] = True
    for group in (1, 2):
        masks[group].reshape(-1)[random.permutation(16)[:5]] = True
    index, weight = jax.jit(masked_patches, static_argnums=1)(masks, 5)
    for group in range(3):
        np.testing.assert_array_equal(index[group], np.flatnonzero(masks[group]))
        counts = masks[group].sum(axis=1)
        np.testing.assert_allclose(weight[group], 1 / counts[np.asarray(index[group]) // 8], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("shards", [1, 2])
def test_reference_loss_and_gradient(dtype, shards):
    full = {"f64": "float64", "f32": "float32"}[dtype]
    with jax.enable_x64(dtype == "f64"):
        z = jnp.asarray(np.sin(0.19 * reference.grid(10, 32) + 0.3), full).reshape(shards, -1, 32)
        student = jnp.asarray(np.sin(0.29 * reference.grid(10, 32) + 0.8), full).reshape(shards, -1, 32)
        weights = jnp.asarray(BLOCK["masks_weight"], full).reshape(shards, -1)
        zeros = jnp.zeros(32, z.dtype)

        @jax.jit
        def run(made, student):
            def loss(x):
                return ibot_loss(x, jnp.eye(32, dtype=x.dtype), made, weights, crops=4, chunk=3)

            return jax.value_and_grad(loss)(student)

        for name, made in {
            "center_step0": targets.softmax_centering(z, zeros, 0.07, 3),
            "center_step1": targets.softmax_centering(z, targets.update_center(zeros, z), 0.07, 3),
            "sinkhorn": targets.sinkhorn_knopp(z, 0.07, 3),
        }.items():
            expected = BLOCK[dtype][name]
            loss, gradient = run(made, student)
            exact = {"rtol": 1e-6} if name == "sinkhorn" else {"rtol": 1e-9}
            np.testing.assert_allclose(loss, expected["loss"], **(exact if dtype == "f64" else {"rtol": 2e-5}))
            gradient = np.asarray(gradient, np.float64).reshape(10, 32)
            np.testing.assert_allclose(np.linalg.norm(gradient), expected["grad_l2"], rtol=1e-4)
            np.testing.assert_allclose(gradient[0, 0], expected["grad[0,0]"], rtol=1e-4)
