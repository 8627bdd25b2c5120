"""Sums over patches: NumPy's in float64, also where tokens are nearly one, and the same on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax.parallel.mesh import BATCH, ParallelConfig, make_mesh
from curia2_jax.training.moments import NAMES, moments


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_moments_are_numpys_on_every_mesh(devices):
    """Of slices of neither half nothing counts, not even what is no number."""
    rng = np.random.default_rng(0)
    tokens = (30 + rng.normal(size=(8, 5, 6))).astype(np.float32)  # of cosine 0.999
    shares = rng.random((8, 5, 3)).astype(np.float32)
    halves = np.array([[1, 0], [0, 1], [1, 0], [0, 0], [0, 1], [0, 1], [1, 0], [0, 1]], bool)
    tokens[3] = np.nan
    mesh = make_mesh(ParallelConfig(fsdp=1, accumulation=1), jax.devices()[:devices])
    arrays = [jax.device_put(x, jax.NamedSharding(mesh, BATCH)) for x in (tokens, shares, halves)]
    with jax.set_mesh(mesh):
        found = jax.jit(moments)(*arrays)
    for half in (0, 1):
        own = np.concatenate([tokens, shares], 2)[halves[:, half]].reshape(-1, 9).astype(np.float64)
        expected = len(own), own.mean(0), np.cov(own.T, bias=True) * len(own)
        for name, value in zip(NAMES, expected, strict=True):
            np.testing.assert_allclose(found[name][half], value, rtol=1e-5, atol=2e-5, err_msg=name)


def test_products_are_in_full_precision():
    """TPUs and newer GPUs would take float32 products in fewer bits."""
    arrays = [
        jnp.zeros(shape, dtype) for shape, dtype in (((2, 3, 4), "float32"), ((2, 3, 1), "float32"), ((2, 2), bool))
    ]
    text = str(jax.make_jaxpr(moments)(*arrays))
    assert text.count("dot_general") == text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 2
