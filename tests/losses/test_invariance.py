"""LeJEPA's distance between views against its public code, the formula in float64, and differences of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax.losses.invariance import invariance
from tests import reference


def distance(p, global_views):
    """Of every view (N, V, D) to the center of the global ones, in float64, one image and view at a time."""
    found = [np.sum((view - image[:global_views].mean(0)) ** 2) for image in p for view in image]
    return np.sum(found) / p.size


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("views", "block"), [(2, "inv_center_of_first_2_views"), (3, "inv_all_views_center")])
def test_reference_value(dtype, views, block):
    i, j = np.indices((32, 16))
    p = np.stack([np.sin(0.1 * (i + 1) * (j + 1) + 0.5 * v) for v in range(3)], axis=1)
    with jax.enable_x64(dtype == "float64"):
        found = invariance(jnp.asarray(p, dtype), views)
    expected = reference.VALUES["sigreg"]["lejepa_total_pure_f64"][block]
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=1e-12 if dtype == "float64" else 1e-6)


def test_value_and_gradient_are_the_formula_s():
    """No gradient is stopped: a global view moves the center of the others."""
    p = np.random.default_rng(0).normal(size=(3, 5, 4))
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(invariance)(jnp.asarray(p))
    np.testing.assert_allclose(value, distance(p, 2), rtol=1e-12)
    for index in ((0, 0, 0), (2, 1, 3), (1, 4, 2)):
        step = np.zeros_like(p)
        step[index] = 1e-6
        slope = (distance(p + step, 2) - distance(p - step, 2)) / 2e-6
        np.testing.assert_allclose(gradient[index], slope, rtol=1e-6)


def test_bfloat16_projections_are_compared_in_float32():
    p = jax.random.normal(jax.random.key(0), (4, 3, 8), jnp.bfloat16)
    found = invariance(p)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, distance(np.asarray(p, np.float64), 2), rtol=1e-6)
