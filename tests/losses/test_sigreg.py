"""SIGReg against the LeJEPA reference, numerical integration, and what the design promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import integrate

from curia2_jax.losses import sigreg
from tests import reference

BLOCK = reference.VALUES["sigreg"]
GRID = reference.grid(64, 16)


def unit_columns(dim, columns):
    d, m = np.meshgrid(np.arange(1, dim + 1), np.arange(1, columns + 1), indexing="ij")
    a = np.cos(0.37 * d * m + 0.11 * m)
    return a / np.linalg.norm(a, axis=0, keepdims=True)


def case_input(case):
    scale, shift = case["x"].split("*sin(0.1*(i+1)*(j+1))+")
    return float(scale) * np.sin(0.1 * GRID) + float(shift)


@pytest.mark.parametrize("case", BLOCK["epps_pulley"], ids=lambda c: f"{c['case']}-{c['t_max']}-{c['n_points']}")
@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_reference_statistic_and_gradient(case, dtype):
    with jax.enable_x64(dtype == "f64"):
        full = {"f64": "float64", "f32": "float32"}[dtype]
        x, a = jnp.asarray(case_input(case), full)[None], jnp.asarray(unit_columns(16, 8), full)

        def mean(x):
            per_slice = sigreg.epps_pulley(x, a, case["n_points"], case["t_max"])
            return per_slice.mean(), per_slice[0]

        (value, per_slice), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(x)
        assert value.dtype == full
    if dtype == "f64":
        np.testing.assert_allclose(value, case["pure_f64_mean"], rtol=1e-9)
        np.testing.assert_allclose(per_slice, case["pure_f64_per_slice"], rtol=1e-9)
    theirs = case["ref_f64_with_f32_buffers" if dtype == "f64" else "ref_f32"]
    rtol = 1e-6 if dtype == "f64" else 2e-5
    np.testing.assert_allclose(value, theirs["mean"], rtol=rtol)
    np.testing.assert_allclose(per_slice, theirs["per_slice"], rtol=rtol)
    if "grad" in theirs:
        gradient = np.asarray(gradient[0], np.float64)
        expected = theirs["grad"]
        rule = {"rtol": 1e-4, "atol": 1e-9 if dtype == "f64" else 1e-6}
        np.testing.assert_allclose(gradient.sum(), expected["sum"], **rule)
        np.testing.assert_allclose(np.linalg.norm(gradient), expected["l2"], **rule)
        for row, column in ((0, 0), (5, 3), (63, 15)):
            np.testing.assert_allclose(gradient[row, column], expected[f"g[{row},{column}]"], **rule)


@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_reference_views(dtype):
    expected = BLOCK["multi_view_V3_N32"]
    i, j = np.indices((32, 16))
    x = np.stack([np.sin(0.1 * (i + 1) * (j + 1) + 0.5 * v) for v in range(3)])
    with jax.enable_x64(dtype == "f64"):
        full = {"f64": "float64", "f32": "float32"}[dtype]
        per_view = np.asarray(sigreg.epps_pulley(jnp.asarray(x, full), jnp.asarray(unit_columns(16, 8), full)))
    assert list(per_view.shape) == expected["f32"]["shape"]
    theirs = expected["f64_f32buffers" if dtype == "f64" else "f32"]
    np.testing.assert_allclose(per_view.mean(axis=1), theirs["per_view_mean"], rtol=1e-6 if dtype == "f64" else 2e-5)
    if dtype == "f64":
        np.testing.assert_allclose(per_view.mean(), expected["per_view_pure_f64_mean"], rtol=1e-9)


def test_statistic_is_the_integral():
    """Against adaptive quadrature of N |ecf - phi|^2 phi over [-3, 3], for which 401 knots are plenty."""
    p = np.random.default_rng(0).normal(0.4, 1.3, 50)

    def integrand(t):
        return abs(np.exp(1j * t * p).mean() - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)

    expected = 50 * integrate.quad(integrand, -3, 3, epsabs=1e-12)[0]
    with jax.enable_x64(True):
        ours = sigreg.epps_pulley(jnp.asarray(p).reshape(1, 50, 1), jnp.ones((1, 1)), knots=401)
    np.testing.assert_allclose(ours, [[expected]], rtol=1e-4)


def test_knots_and_weights_of_the_reference():
    expected = BLOCK["buffers_T17_tmax3_f32"]
    t, phi, weights = sigreg._quadrature(17, 3.0)
    np.testing.assert_allclose(t, expected["t"], rtol=1e-6)
    np.testing.assert_allclose(phi, expected["phi"], rtol=1e-6)
    np.testing.assert_allclose(weights, expected["weights"], rtol=1e-6)
    np.testing.assert_allclose(weights.sum(), expected["sum_weights"], rtol=1e-6)


def test_expectation_at_the_optimum():
    expected = BLOCK["H0_expected_statistic"]["T17_tmax3"]
    np.testing.assert_allclose(sigreg.expected_at_optimum(), expected, rtol=1e-12)
    # Monte Carlo: 600 independent samples of 128 draws of N(0, 1).
    z = np.random.default_rng(0).normal(size=(600, 128, 1)).astype(np.float32)
    values = np.asarray(sigreg.epps_pulley(jnp.asarray(z), jnp.ones((1, 1))))
    assert abs(values.mean() - expected) < 4 * values.std() / 600**0.5


def test_directions_are_unit_isotropic_and_their_own():
    a = np.asarray(sigreg.random_directions(jax.random.key(0), jnp.arange(2000), 8, jnp.float32))
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), 1, rtol=1e-5)
    # E[a a^T] = I / D; entries of the mean over 2,000 have a standard deviation below 0.004.
    np.testing.assert_allclose(a @ a.T / 2000, np.eye(8) / 8, rtol=0, atol=0.02)
    some = sigreg.random_directions(jax.random.key(0), jnp.asarray([7, 3]), 8, jnp.float32)
    # The same directions; programs of other shapes need not round alike.
    np.testing.assert_allclose(some, a[:, [7, 3]], rtol=0, atol=1e-6)
    assert not np.allclose(sigreg.random_directions(jax.random.key(1), jnp.arange(2000), 8, jnp.float32), a)


@pytest.mark.parametrize("chunk", [4, 10, 64])
def test_chunk_changes_nothing(chunk):
    """10 directions in chunks with a rest, in one, and in one larger than all; against the mean over the directions."""
    with jax.enable_x64(True):
        z, key = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 5))), jax.random.key(3)
        a = sigreg.random_directions(key, jnp.arange(10), 5, z.dtype)
        truth = jax.value_and_grad(lambda z: sigreg.epps_pulley(z, a).mean())(z)
        ours = jax.jit(jax.value_and_grad(lambda z: sigreg.sigreg(z, key, directions=10, chunk=chunk)))(z)
        np.testing.assert_allclose(ours[0], truth[0], rtol=1e-12)
        np.testing.assert_allclose(ours[1], truth[1], rtol=1e-9, atol=1e-12)


def test_bfloat16_embeddings_are_projected_in_float32():
    z = jax.random.normal(jax.random.key(0), (1, 32, 8), jnp.bfloat16)
    value = sigreg.sigreg(z, jax.random.key(1), directions=8)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, sigreg.sigreg(z.astype(jnp.float32), jax.random.key(1), directions=8), rtol=1e-6)


def test_memory_does_not_grow_with_the_directions():
    def temporary_bytes(directions):
        def loss(z, key):
            return sigreg.sigreg(z, key, directions=directions, chunk=64)

        z = jax.ShapeDtypeStruct((2, 64, 32), jnp.float32)
        compiled = jax.jit(jax.value_and_grad(loss)).lower(z, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(256), temporary_bytes(4096)
    assert abs(many - few) < 0.05 * few


def test_means_are_global_on_a_mesh():
    z, key = np.random.default_rng(0).normal(size=(2, 32, 6)).astype(np.float32), jax.random.key(0)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    run = jax.value_and_grad(lambda z: sigreg.sigreg(z, key, directions=32, chunk=16))
    truth = jax.jit(run)(z)
    ours = jax.jit(run, in_shardings=NamedSharding(mesh, PartitionSpec(None, "data")))(z)
    np.testing.assert_allclose(ours[0], truth[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], truth[1], rtol=1e-4, atol=1e-7)
