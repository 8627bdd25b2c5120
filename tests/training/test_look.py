"""What is seen of a network at a look: against NumPy in float64, and the same on a mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import vits
from curia2_jax.models.vit import ViT
from curia2_jax.parallel.mesh import ParallelConfig, make_mesh
from curia2_jax.training.class_tokens import pixels
from curia2_jax.training.look import VIEWS, look, mean_cosine
from curia2_jax.training.recipe import recipe_from
from curia2_jax.training.state import abstract_state, init_params
from tests.training.test_lowering import FORWARD, PLATFORMS, as_an_h100
from tests.training.tiny import tiny_config

RECIPE = recipe_from(tiny_config(model__init="fan_in", model__layerscale=1.0))


@pytest.fixture(scope="module")
def slices() -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    pixels = np.cumsum(rng.normal(size=(16, 40, 40)) * 100, 1).astype(np.int16)
    return jnp.asarray(pixels), jnp.full((16, 2), 40, jnp.int32), jnp.asarray(np.arange(16) % 2 == 0)


@pytest.fixture(scope="module")
def params() -> dict:
    return jax.jit(lambda: init_params(jax.random.key(0), RECIPE))()


@pytest.fixture(scope="module")
def seen(params, slices) -> dict[str, np.ndarray]:
    return jax.tree.map(np.asarray, jax.jit(functools.partial(look, recipe=RECIPE, mesh=None))(params, *slices))


def test_the_first_view_is_the_whole_slice_and_the_nearest_prototype_its_own(params, slices, seen):
    images = pixels(*slices, RECIPE.crops.global_size)
    out = jax.jit(lambda p, x: ViT(RECIPE.model).apply({"params": p}, x))(params["backbone"], images)
    np.testing.assert_allclose(seen["class"][:, 0], out["cls"], atol=1e-5)
    np.testing.assert_allclose(seen["patch"], out["patches"].mean(1), atol=1e-5)
    assert seen["class"].shape == (16, len(VIEWS), 32) and np.ptp(seen["class"], axis=1).max(-1).min() > 0.01

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ head[name]["kernel"] + head[name]["bias"]

    head = jax.tree.map(lambda a: np.asarray(a, np.float64), params["dino_head"])
    x = np.asarray(out["cls"], np.float64)
    for name in ("mlp_0", "mlp_1"):
        x = np.asarray(jax.nn.gelu(dense(name, x), approximate=False))
    x = dense("mlp_2", x)
    columns = head["last_layer"]["v"] / np.linalg.norm(head["last_layer"]["v"], axis=0)
    assert (seen["choice"] == (x @ columns).argmax(1)).mean() > 0.9  # but for ties to float32


def test_mean_cosine_is_that_of_every_pair(seen):
    tokens = np.random.default_rng(1).normal(size=(3, 7, 5)) + 0.5
    pairs = [
        [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i in range(7) for j in range(7) if i != j]
        for x in tokens
    ]
    np.testing.assert_allclose(mean_cosine(jnp.asarray(tokens, jnp.float32)), np.mean(pairs, 1), rtol=1e-5)
    assert seen["patch_cosine"].min() > -1 and seen["patch_cosine"].max() < 1


def test_attention_entropy_is_of_the_weights_of_the_block(params, slices, seen):
    """The first block in NumPy. A second one that is the first again, behind branches that add nothing, is as it."""
    images = pixels(*slices, RECIPE.crops.global_size)[:2]
    backbone = params["backbone"]
    patches = images.reshape(2, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(2, 16, 64)
    embedding = jax.tree.map(np.asarray, backbone["patch_embed"])
    patches = np.asarray(patches, np.float64) @ embedding["kernel"].reshape(64, 32) + embedding["bias"]
    first = np.broadcast_to(backbone["cls_token"], (2, 1, 32))
    x = np.concatenate([first, patches], 1) + np.asarray(backbone["pos_embed"], np.float64)
    block = jax.tree.map(lambda a: np.asarray(a[0], np.float64), backbone["blocks"])
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    query, key = (
        (normed @ block["attn"][name]["kernel"] + block["attn"][name]["bias"]).reshape(2, -1, 2, 16)
        for name in ("query", "key")
    )
    scores = np.einsum("bthd,bshd->bhts", query, key) / 4
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = -(weights * np.log(weights)).sum(-1).mean() / np.log(17)
    assert seen["attention_entropy"][0] == pytest.approx(expected, rel=1e-4)
    assert 0.5 < expected < 0.99

    twice = jax.tree.map(lambda a: jnp.stack([a[0], a[0]]), backbone["blocks"])
    silent = {name: jax.tree.map(jnp.zeros_like, twice[name]) for name in ("ls1", "ls2")}
    flat = {"attn": twice["attn"] | {"query": jax.tree.map(jnp.zeros_like, twice["attn"]["query"])}}
    found = jax.jit(functools.partial(look, recipe=RECIPE, mesh=None))
    entropy = found({"backbone": backbone | {"blocks": twice | silent}}, *slices)["attention_entropy"]
    np.testing.assert_allclose(entropy, expected, rtol=1e-4)
    entropy = found({"backbone": backbone | {"blocks": twice | flat}}, *slices)["attention_entropy"]
    np.testing.assert_allclose(entropy, 1, rtol=2e-5)


def test_a_mesh_sees_the_same(params, slices, seen):
    """And sums over its patch tokens, whose means are those of the tokens."""
    mesh = make_mesh(ParallelConfig(fsdp=2, accumulation=1))
    assert mesh.shape == {"data": 4, "fsdp": 2}
    test = np.arange(16) < 6
    dense = jnp.ones((16, 16, 1)), jnp.asarray(np.stack([~test, test], 1))
    with jax.set_mesh(mesh):
        program = jax.jit(lambda p, s, d: look(p, *s, recipe=RECIPE, mesh=mesh, dense=d))
        found = program(params, slices, dense)
    means = [np.append(seen["patch"][half].mean(0), 1) for half in (~test, test)]
    np.testing.assert_allclose(found["dense_mean"], means, atol=2e-5)
    assert found["dense_patches"].tolist() == [160, 96] and found["dense_second"].sharding.is_fully_replicated
    for name in ("class", "patch", "patch_cosine"):
        np.testing.assert_allclose(found[name], seen[name], atol=2e-5, err_msg=name)
        assert found[name].sharding.is_fully_replicated
    assert (found["choice"] == seen["choice"]).mean() > 0.9


@pytest.mark.parametrize("platform", PLATFORMS)
def test_it_lowers_with_the_kernel_of_the_platform(platform):
    """Once: for the views. Entropies are of XLA's products."""
    recipe = recipe_from(vits.get_config().to_dict())
    mesh = make_mesh(recipe.parallel, jax.devices()[:1])
    shapes = [((4, 64, 64), jnp.int16), ((4, 2), jnp.int32), ((4,), jnp.bool_)]
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    program = jax.jit(functools.partial(look, recipe=recipe, mesh=mesh, platform=platform))
    with jax.set_mesh(mesh), as_an_h100():
        text = program.trace(abstract_state(recipe).teacher, *arrays).lower(lowering_platforms=(PLATFORMS[platform],))
    assert len(re.findall(FORWARD[platform], text.as_text())) == 1
