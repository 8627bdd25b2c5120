"""Bytes on the wire, counted by hand for one kernel."""

import dataclasses

import jax
import pytest

from curia2_jax.parallel.mesh import make_mesh
from curia2_jax.parallel.sharding import state_shardings
from curia2_jax.planning import estimates
from curia2_jax.training.recipe import recipe_from
from tests.training.tiny import tiny_config


@pytest.mark.parametrize(
    ("path", "gathers", "gradients", "width"),
    [
        # The teacher once; the student's global and its local crops, forward and backward. Gradients as the products.
        ("backbone", 1 + 2 * 2, 2, 2),
        # The teacher once, the student once: its backward pass has the kernel already. Gradients in float32.
        ("dino_head", 1 + 1, 1, 4),
    ],
)
def test_a_sharded_kernel_is_gathered_and_its_gradient_reduced_as_often_as_it_is_used(path, gathers, gradients, width):
    """Eight devices, of which four share a copy of the state."""
    recipe = recipe_from(tiny_config(parallel__fsdp=4, model__dtype="bfloat16"))
    mesh = make_mesh(recipe.parallel)
    shape = (4, 512, 512) if path == "backbone" else (256, 4096)
    inner = {"blocks": {"attn": {"query": {"kernel": 0}}}} if path == "backbone" else {"last_layer": {"v": 0}}
    params = jax.tree.map(lambda _: jax.ShapeDtypeStruct(shape, "float32"), {path: inner})
    shardings = state_shardings(params, mesh)
    params = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), params, shardings)
    found = estimates.fewest_bytes(params, recipe)
    numbers = 2**20
    assert found["all-gather"] == gathers * 2 * numbers * 3 / 4
    assert found["reduce-scatter"] == gradients * width * numbers * 3 / 4
    # A ring of the two copies sends what each device holds once in each direction.
    assert found["all-reduce"] == gradients * 2 * width * numbers / 4 * 1 / 2
    twice = dataclasses.replace(recipe, parallel=dataclasses.replace(recipe.parallel, accumulation=2))
    assert estimates.fewest_bytes(params, twice)["reduce-scatter"] == 2 * found["reduce-scatter"]
