"""Teacher targets against the DINOv2 reference and dense float64 formulas."""

import collections

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from curia2_jax.losses import targets
from tests import reference

BLOCK = reference.VALUES["dino_ibot_koleo"]
TEACHER = np.sin(0.31 * reference.grid(8, 32) + 0.2)
# The reference runs Sinkhorn in float32 even on float64 logits.
EXACT, WITH_FLOAT32 = {"rtol": 1e-9}, {"rtol": 1e-6, "atol": 1e-9}
SINGLE = {"rtol": 2e-5, "atol": 1e-6}


def logits(x, dtype, shards=1):
    return jnp.asarray(x, {"f64": "float64", "f32": "float32"}[dtype]).reshape(shards, -1, x.shape[-1])


def dense(made):
    q = np.asarray(targets.probabilities(made), np.float64)
    return q.reshape(-1, q.shape[-1])


@pytest.fixture(params=["f64", "f32"])
def dtype(request):
    with jax.enable_x64(request.param == "f64"):
        yield request.param


centered = jax.jit(targets.softmax_centering, static_argnames="chunk")
balanced = jax.jit(targets.sinkhorn_knopp, static_argnames=("chunk", "iterations"))


# 8 rows in 1, 2 and 4 shards; chunks that divide the rows, that leave a rest, and that exceed them.
@pytest.mark.parametrize(("shards", "chunk"), [(1, 3), (2, 2), (4, 100)])
class TestReference:
    """Row 0 of the reference's targets is row 4 of the logits: it swaps the two views, of four images each."""

    def test_softmax_centering(self, dtype, shards, chunk):
        z = logits(TEACHER, dtype, shards)
        rule = EXACT if dtype == "f64" else SINGLE
        for temp in (0.04, 0.07):
            center = jnp.zeros(32, z.dtype)
            for step in range(2):
                q = dense(centered(z, center, temp, chunk=chunk))
                expected = BLOCK[dtype][f"T{temp}_center_step{step}"]["teacher_probs_row0_first8"]
                np.testing.assert_allclose(q[4, :8], expected, **rule)
                np.testing.assert_allclose(q.sum(axis=1), 1, rtol=1e-5)
                center = targets.update_center(center, z)
                if step == 0:
                    expected = BLOCK[dtype][f"T{temp}_center_after_1_update_first8"]
                    np.testing.assert_allclose(center[:8], expected, **rule)

    def test_sinkhorn_knopp(self, dtype, shards, chunk):
        z = logits(TEACHER, dtype, shards)
        expected = BLOCK[dtype]
        loose = WITH_FLOAT32 if dtype == "f64" else SINGLE
        for temp in (0.04, 0.07):
            made = balanced(z, temp, chunk=chunk)
            q = np.roll(dense(made), 4, axis=0)
            np.testing.assert_allclose(q[0, :8], expected[f"T{temp}_sinkhorn"]["teacher_probs_row0_first8"], **loose)
            check = expected[f"T{temp}_sinkhorn_check"]
            np.testing.assert_allclose(q.sum(axis=0)[:4], check["col_sums_over_samples_first4(K)"], **loose)
            np.testing.assert_allclose(q.sum(axis=1), check["row_sums"], **loose)
            # The same in float64 throughout.
            exact = BLOCK["pure_f64_sinkhorn"][f"T{temp}"]
            rule = EXACT if dtype == "f64" else SINGLE
            np.testing.assert_allclose(q[0, :8], exact["row0_first8"], **rule)
            entropy = targets.entropy(made, chunk)
            assert entropy.shape == (shards, 8 // shards)
            np.testing.assert_allclose(np.mean(entropy), exact["entropy_mean"], **rule)


@pytest.mark.parametrize("iterations", [1, 10])
def test_sinkhorn_knopp_iterations(dtype, iterations):
    z = logits(TEACHER, dtype, 2)
    for temp in (0.04, 0.07):
        q = dense(balanced(z, temp, chunk=3, iterations=iterations))
        expected = BLOCK[dtype][f"T{temp}_sinkhorn_iters{iterations}_row0_first4"]
        np.testing.assert_allclose(q[4, :4], expected, **(WITH_FLOAT32 if dtype == "f64" else SINGLE))


def test_ibot_targets(dtype):
    block = BLOCK["ibot"][dtype]
    z = logits(np.sin(0.19 * reference.grid(10, 32) + 0.3), dtype, 2)
    loose = WITH_FLOAT32 if dtype == "f64" else SINGLE
    q = dense(balanced(z, 0.07, chunk=2))
    np.testing.assert_allclose(q[0, :8], block["sinkhorn_row0_first8"], **loose)
    center = targets.update_center(jnp.zeros(32, z.dtype), z)
    np.testing.assert_allclose(center[:8], block["center_after_update_first8"], **(EXACT if dtype == "f64" else SINGLE))


def plain_sinkhorn(z, temp, iterations=3):
    """The textbook loop on a dense float64 matrix."""
    q = np.exp((z - z.max()) / temp)
    for _ in range(iterations):
        q /= q.sum(axis=0, keepdims=True) * q.shape[1]
        q /= q.sum(axis=1, keepdims=True) * q.shape[0]
    return q * q.shape[0]


def test_sinkhorn_survives_what_overflows_the_textbook():
    """Float32 logits for which exp(z / T) is infinite, columns that vanish beside the maximum, equal rows."""
    random = np.random.default_rng(0)
    hard = random.normal(size=(1, 12, 16)).astype(np.float32)
    hard[0, :, 0] += 40
    hard[0, :, 1] -= 300
    hard[0, 5] = hard[0, 6]
    made = balanced(jnp.asarray(hard), 0.04, chunk=5)
    assert all(np.isfinite(x).all() for x in made)
    with np.errstate(under="ignore"):
        z = hard[0].astype(np.longdouble)
        z[:, 1] += 300  # A shift of one column is undone by the first normalization; exp would be 0 without it.
        z[:, 0] -= 40
        expected = plain_sinkhorn(z.astype(np.float64), 0.04)
    np.testing.assert_allclose(dense(made), expected, rtol=0, atol=2e-3)
    # Scores of a thousand in float32 are good to 1e-4.
    np.testing.assert_allclose(dense(made).sum(axis=1), 1, rtol=1e-3)


@pytest.mark.parametrize(("bound", "temp"), [(1.0, 0.04), (1.0, 1 / 60), (1.0, 0.004), (30.0, 0.04)])
def test_a_bound_spares_the_maxima_and_changes_nothing(bound, temp):
    """As many logits at either end as a bound allows, a whole row and a whole column of the least among them.

    Below and at the limit that exponents may reach, and beyond it, where maxima are taken after all.
    """
    z = np.random.default_rng(1).choice([-bound, 0, 0.5 * bound, bound], size=(12, 16)).astype(np.float32)
    z[3], z[:, 2], z[4] = -bound, -bound, bound
    made = balanced(jnp.asarray(z).reshape(2, 6, 16), temp, chunk=4, bound=jnp.asarray(bound))
    assert all(np.isfinite(x).all() for x in made)
    # In units of T, so that float64 holds what float32 could not; scores of thousands are good to 1e-4.
    expected = textbook_in_logarithms(z.astype(np.float64) / temp)
    np.testing.assert_allclose(dense(made), np.exp(expected), rtol=0, atol=1e-5 * max(1, bound / temp / 60))


def textbook_in_logarithms(z, iterations=3):
    for _ in range(iterations):
        z = z - scipy.special.logsumexp(z, axis=0, keepdims=True)
        z = z - scipy.special.logsumexp(z, axis=1, keepdims=True)
    return z


def readings(jaxpr):
    """How often a program reduces an array of a whole chunk, by primitive; of a branch, both."""
    found = collections.Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("reduce_max", "reduce_sum") and equation.invars[0].aval.ndim == 3:
            found[equation.primitive.name] += 1
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += readings(inner)
    return found


def test_six_sums_and_maxima_only_behind_a_condition():
    z = jnp.zeros((1, 8, 16))
    made = jax.make_jaxpr(lambda z, b: targets.sinkhorn_knopp(z, 0.04, 4, bound=b))(z, jnp.ones(()))
    assert readings(made.jaxpr) == {"reduce_max": 2, "reduce_sum": 6}
    without_branches = made.jaxpr.replace(eqns=[e for e in made.jaxpr.eqns if e.primitive.name != "cond"])
    assert readings(without_branches) == {"reduce_sum": 6}


def test_constant_logits_give_uniform_targets():
    made = balanced(jnp.zeros((2, 3, 8)), 0.04, chunk=2)
    np.testing.assert_allclose(targets.probabilities(made), np.full((2, 3, 8), 1 / 8), rtol=1e-6)
    np.testing.assert_allclose(targets.entropy(made, 2), np.full((2, 3), np.log(8)), rtol=1e-6)


def test_bfloat16_logits_are_accumulated_in_float32():
    z = jax.random.normal(jax.random.key(0), (2, 6, 16), jnp.bfloat16)
    made = balanced(z, 0.1, chunk=4)
    assert made.logits.dtype == jnp.bfloat16 and made.col.dtype == made.row.dtype == jnp.float32
    expected = plain_sinkhorn(np.asarray(z, np.float64).reshape(12, 16), 0.1)
    np.testing.assert_allclose(dense(made), expected, rtol=1e-4, atol=1e-6)


def test_no_gradient_reaches_the_teacher():
    def total(z):
        made = targets.softmax_centering(z, z.mean(axis=(0, 1)), 0.1, 2), targets.sinkhorn_knopp(z, 0.1, 2)
        return sum(targets.probabilities(m)[..., 0].sum() for m in made)

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(TEACHER, jnp.float32)[None]), np.zeros((1, 8, 32)))
