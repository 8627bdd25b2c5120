"""The fused layer and loss against plain autodiff, and the memory that it saves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from curia2_jax.losses import targets
from curia2_jax.losses.linear_cross_entropy import linear_cross_entropy

SHARDS, UNITS, ROWS, TEACHERS, DIM, K = 2, 5, 3, 2, 6, 11
MIXING = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.5]])


def problem(dtype):
    random = np.random.default_rng(0)
    features = jnp.asarray(random.normal(size=(SHARDS, UNITS, ROWS, DIM)), dtype)
    kernel = jnp.asarray(random.normal(size=(DIM, K)), dtype)
    logits = jnp.asarray(random.normal(size=(SHARDS, UNITS * TEACHERS, K)), dtype)
    weights = jnp.asarray(random.uniform(size=(SHARDS, UNITS, ROWS)), dtype)
    return features, kernel, targets.sinkhorn_knopp(logits, 0.3, 4), weights


def dense(features, kernel, made, weights):
    """Sum of w * cross-entropy(sum_v M q_v, softmax(x W / 0.1)) in one expression, and its parts by student row."""
    q = targets.probabilities(made).reshape(SHARDS, UNITS, TEACHERS, K)
    target = jnp.einsum("rv,suvk->surk", jnp.asarray(MIXING, q.dtype), q)
    log_p = jax.nn.log_softmax(jnp.einsum("surd,dk->surk", features, kernel) / 0.1)
    parts = -jnp.einsum("sur,surk,surk->r", weights, target, log_p)
    return parts.sum(), parts


@pytest.mark.parametrize("chunk", [1, 6, 12, 100])
def test_value_and_gradients_in_float64(chunk):
    """Chunks of less than a unit, of some units with and without a rest, and of more than there are."""
    with jax.enable_x64(True):
        features, kernel, made, weights = problem("float64")

        def fused(features, kernel):
            loss, parts = linear_cross_entropy(features, kernel, made, weights, mixing=MIXING, temp=0.1, chunk=chunk)
            return 3 * loss, parts

        def plain(features, kernel):
            loss, parts = dense(features, kernel, made, weights)
            return 3 * loss, parts

        (value, parts), gradients = jax.jit(jax.value_and_grad(fused, (0, 1), has_aux=True))(features, kernel)
        (truth, true_parts), true_gradients = jax.value_and_grad(plain, (0, 1), has_aux=True)(features, kernel)
        np.testing.assert_allclose(value, truth, rtol=1e-12)
        np.testing.assert_allclose(parts, true_parts, rtol=1e-12)
        for ours, theirs in zip(gradients, true_gradients, strict=True):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("scale", [0.5, 5.9, 6.1, 400.0])
def test_a_bound_of_the_logits_changes_nothing(scale):
    """Unit features and columns of a known length, of which exp(length / 0.1) is large, or more than float32 holds."""
    with jax.enable_x64(True):
        features, kernel, made, weights = problem("float64")
        features = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
        kernel = scale * kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True)
        truth, gradients = jax.value_and_grad(lambda *a: dense(*a, made, weights)[0], (0, 1))(features, kernel)
    single = [x.astype(jnp.float32) for x in (features, kernel, weights)]
    made = targets.Targets(*(x.astype(jnp.float32) for x in made))

    def fused(features, kernel):
        bound = jnp.asarray(scale, jnp.float32)
        return linear_cross_entropy(features, kernel, made, single[2], mixing=MIXING, temp=0.1, chunk=6, bound=bound)[0]

    value, ours = jax.jit(jax.value_and_grad(fused, (0, 1)))(*single[:2])
    np.testing.assert_allclose(value, truth, rtol=2e-5)
    for found, expected in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_value_without_differentiation_is_the_same_and_cheaper():
    features, kernel, made, weights = problem("float32")
    loss = functools.partial(linear_cross_entropy, mixing=MIXING, temp=0.1, chunk=6)
    truth = dense(features, kernel, made, weights)[0]
    np.testing.assert_allclose(jax.jit(loss)(features, kernel, made, weights)[0], truth, rtol=2e-5)

    def matmuls(f):
        return str(jax.make_jaxpr(f)(features, kernel)).count("dot_general")

    # One matmul for the value, two more for the gradients; the scan and the rest have their own.
    assert matmuls(lambda x, w: loss(x, w, made, weights)[0]) == 2
    assert matmuls(jax.grad(lambda x, w: loss(x, w, made, weights)[0], (0, 1))) == 6


def test_bfloat16_features_with_float32_sums():
    features, kernel, made, weights = problem("float32")
    features = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    rounded = features.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16).astype(jnp.float32)

    def fused(features, kernel):
        return linear_cross_entropy(features, kernel, made, weights, mixing=MIXING, temp=0.1, chunk=6)[0]

    value, (d_features, d_kernel) = jax.jit(jax.value_and_grad(fused, (0, 1)))(*rounded)
    assert (value.dtype, d_features.dtype, d_kernel.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    truth, (t_features, t_kernel) = jax.value_and_grad(lambda *a: dense(*a, made, weights)[0], (0, 1))(
        rounded[0].astype(jnp.float32), rounded[1]
    )
    # The inputs are equal to the bit, so only the rounding of the slopes and of the result is left.
    np.testing.assert_allclose(value, truth, rtol=1e-5)
    for ours, theirs in ((d_features, t_features), (d_kernel, t_kernel)):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=0, atol=0.01 * np.abs(theirs).max())


def test_on_a_mesh_one_reduction_of_the_kernel_gradient():
    features, kernel, made, weights = problem("float32")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def step(features, kernel, logits, weights):
        made = targets.sinkhorn_knopp(logits, 0.3, 4)

        def loss(features, kernel):
            return linear_cross_entropy(features, kernel, made, weights, mixing=MIXING, temp=0.1, chunk=6)[0]

        return jax.value_and_grad(loss, (0, 1))(features, kernel)

    arguments = features, kernel, made.logits, weights
    truth = jax.jit(step)(*arguments)
    sharded = jax.jit(step, in_shardings=(split, whole, split, split), out_shardings=(whole, (split, whole)))
    text = sharded.lower(*arguments).compile().as_text()
    reductions = [line for line in text.splitlines() if " all-reduce(" in line]
    # Sinkhorn's maximum and three column sums, the loss, the kernel's gradient; nothing per chunk, nothing gathered.
    assert sum(f"f32[{DIM},{K}]" in line for line in reductions) == 1
    assert len(reductions) <= 6 and not any("while" in line for line in reductions)
    assert " all-gather(" not in text and " all-to-all(" not in text and " collective-permute(" not in text
    for ours, theirs in zip(jax.tree.leaves(sharded(*arguments)), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


CHUNK, PROTOTYPES = 256, 4096


def temporary_bytes(rows, dim=32):
    """Compiled temporary memory of teacher logits, targets, loss and gradients, all in float32.

    Not bfloat16, whose matmuls a CPU emulates through float32 copies.
    """

    def step(teacher, student, kernel, weights):
        made = targets.sinkhorn_knopp(jnp.einsum("snd,dk->snk", teacher, kernel), 0.07, CHUNK)

        def loss(student, kernel):
            mixing = np.ones((1, 1))
            return linear_cross_entropy(student, kernel, made, weights, mixing=mixing, temp=0.1, chunk=CHUNK)[0]

        return jax.value_and_grad(loss, (0, 1))(student, kernel)

    shapes = ((1, rows, dim), (1, rows, 1, dim), (dim, PROTOTYPES), (1, rows, 1))
    lowered = jax.jit(step).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_is_the_teacher_logits_and_a_few_arrays_of_a_chunk():
    small, large = (temporary_bytes(rows) - rows * PROTOTYPES * 4 for rows in (1024, 2048))
    # Doubling the rows adds the logits themselves and less than 10 % of the rest.
    assert large < 1.1 * small
    # The rest is a chunk's logits, targets, slopes and one more that the CPU does not fuse away.
    assert small < 4.5 * CHUNK * PROTOTYPES * 4
