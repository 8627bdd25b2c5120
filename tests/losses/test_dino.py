"""The DINO loss against the DINOv2 and DINOv3 references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax.losses import targets
from curia2_jax.losses.dino import dino_loss
from tests import reference

BLOCK = reference.VALUES["dino_ibot_koleo"]
FULL = {"f64": "float64", "f32": "float32"}
# Crop-major in the reference; features are the logits themselves, so that the kernel is the identity.
TEACHER = reference.image_major(np.sin(0.31 * reference.grid(8, 32) + 0.2), 2)
GLOBAL = reference.image_major(np.sin(0.17 * reference.grid(8, 32) + 0.4), 2)
LOCAL = reference.image_major(np.sin(0.23 * reference.grid(12, 32) + 0.6), 3)


def tolerance(dtype, name):
    if dtype == "f32":
        return {"rtol": 2e-5, "atol": 1e-6}
    return {"rtol": 1e-6} if "sinkhorn" in name else {"rtol": 1e-9}


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize("shards", [1, 2])
def test_reference_losses_and_gradients(dtype, shards):
    with jax.enable_x64(dtype == "f64"):
        z = jnp.asarray(TEACHER, FULL[dtype]).reshape(shards, -1, 32)
        ours = jnp.asarray(GLOBAL, FULL[dtype]).reshape(shards, -1, 2, 32)
        locals_ = jnp.asarray(LOCAL, FULL[dtype]).reshape(shards, -1, 3, 32)
        zeros = jnp.zeros(32, z.dtype)

        @jax.jit
        def run(made, ours, locals_):
            def loss(ours, locals_):
                return dino_loss(ours, locals_, jnp.eye(32, dtype=z.dtype), made, chunk=7)

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(ours, locals_)

        for temp in (0.04, 0.07):
            for name, made in {
                "center_step0": targets.softmax_centering(z, zeros, temp, 3),
                "center_step1": targets.softmax_centering(z, targets.update_center(zeros, z), temp, 3),
                "sinkhorn": targets.sinkhorn_knopp(z, temp, 3),
            }.items():
                expected = BLOCK[dtype][f"T{temp}_{name}"]
                (loss, parts), (d_global, d_local) = run(made, ours, locals_)
                rule = tolerance(dtype, name)
                np.testing.assert_allclose(parts["dino_local"], expected["dino_local_crops_loss"], **rule)
                np.testing.assert_allclose(parts["dino_global"], expected["dino_global_crops_loss"], **rule)
                np.testing.assert_allclose(loss, parts["dino_local"] + parts["dino_global"], rtol=1e-6)
                d_local = np.asarray(d_local, np.float64).reshape(4, 3, 32)
                d_global = np.asarray(d_global, np.float64).reshape(4, 2, 32)
                np.testing.assert_allclose(np.linalg.norm(d_local), expected["grad_local_l2"], rtol=1e-4)
                np.testing.assert_allclose(d_local[0, 0, 0], expected["grad_local[0,0]"], rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(np.linalg.norm(d_global), expected["grad_global_l2"], rtol=1e-4)
                np.testing.assert_allclose(d_global[3, 0, 5], expected["grad_global[3,5]"], rtol=1e-4, atol=1e-6)


def test_dinov3_writes_the_same_loss_as_weighted_means():
    expected = reference.VALUES["dinov3"]["dinov3_dino_loss_sinkhorn_T0.07"]
    z = jnp.asarray(TEACHER, jnp.float32)[None]
    ours, locals_ = (jnp.asarray(x, jnp.float32).reshape(1, 4, -1, 32) for x in (GLOBAL, LOCAL))
    loss, parts = dino_loss(ours, locals_, jnp.eye(32), targets.sinkhorn_knopp(z, 0.07, 8), chunk=20)
    np.testing.assert_allclose(loss, expected["weighted_total (dg*gl+dl*lo)/(dg+dl)"], rtol=2e-5)
    np.testing.assert_allclose(parts["dino_global"] * 8 / 2, expected["global_ignore_diag"], rtol=2e-5)
    np.testing.assert_allclose(parts["dino_local"] * 8 / 6, expected["local_mean"], rtol=2e-5)


def test_without_local_crops_the_denominator_is_three():
    """DINOv2's max(n_local * 2, 1) in the normalization."""
    z = jnp.asarray(TEACHER, jnp.float32)[None]
    ours = jnp.asarray(GLOBAL, jnp.float32).reshape(1, 4, 2, 32)
    loss, parts = dino_loss(
        ours, ours[:, :, :0], jnp.eye(32), targets.softmax_centering(z, jnp.zeros(32), 0.04, 8), chunk=8
    )
    # With three local crops the denominator is 8.
    expected = BLOCK["f32"]["T0.04_center_step0"]["dino_global_crops_loss"] * 8 / 3
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    assert parts["dino_local"] == 0


def test_logging_parts_carry_no_gradient():
    z = jnp.asarray(TEACHER, jnp.float32)[None]
    made = targets.softmax_centering(z, jnp.zeros(32), 0.04, 8)
    ours, locals_ = (jnp.asarray(x, jnp.float32).reshape(1, 4, -1, 32) for x in (GLOBAL, LOCAL))
    gradient = jax.grad(lambda x: dino_loss(x, locals_, jnp.eye(32), made, chunk=20)[1]["dino_global"])(ours)
    assert not np.asarray(gradient).any()
