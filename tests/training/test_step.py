"""The whole step against two steps of DINOv2's own code, and against itself on meshes and in micro-batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from curia2_jax.data.crops.masks import ladder
from curia2_jax.parallel.mesh import ParallelConfig, make_mesh
from curia2_jax.parallel.sharding import state_shardings
from curia2_jax.training import state as states
from curia2_jax.training.recipe import recipe_from
from curia2_jax.training.step import update
from tests import reference
from tests.training.tiny import tiny_config

SOAK = pytest.mark.soak  # parallel/test_sharding.py has more meshes
E2E = reference.VALUES["end_to_end_two_steps"]
# Where the reference's entries lie in our tree: name -> (path, transform to the torch layout, index).
ENTRIES = {
    "cls_token[0,0,:3]": (("backbone", "cls_token"), lambda x: x[0, 0, :3]),
    "pos_embed[0,5,:3]": (("backbone", "pos_embed"), lambda x: x[0, 5, :3]),
    "mask_token[0,:3]": (("backbone", "mask_token"), lambda x: x[0, :3]),
    "patch_embed.proj.weight[0,0,0,:3]": (("backbone", "patch_embed", "kernel"), lambda x: x[0, :3, 0, 0]),
    "blocks.0.norm1.weight[:3]": (("backbone", "blocks", "norm1", "scale"), lambda x: x[0, :3]),
    "blocks.1.mlp.fc2.weight[0,:3]": (("backbone", "blocks", "ffn", "fc2", "kernel"), lambda x: x[1, :3, 0]),
    "blocks.0.ls1.gamma[:3]": (("backbone", "blocks", "ls1", "gamma"), lambda x: x[0, :3]),
    "dino_head.last_layer.weight_v[0,:3]": (("dino_head", "last_layer", "v"), lambda x: x[:3, 0]),
    "dino_head.last_layer.weight_g[:3,0]": (("dino_head", "last_layer", "g"), lambda x: x[:3]),
    "ibot_head.last_layer.weight_v[0,:3]": (("ibot_head", "last_layer", "v"), lambda x: x[:3, 0]),
    "ibot_head.last_layer.weight_g[:3,0]": (("ibot_head", "last_layer", "g"), lambda x: x[:3]),
}


def reference_recipe(dtype: str, shared: bool, clip: float, centering: str):
    """The hyper-parameters of the reference run."""
    c = tiny_config()
    c["total_steps"] = 100
    c["data"].update(global_batch=2, group_size=2)
    c["crops"].update(global_size=16, local_size=8, num_local=3)
    # Two of four crops are masked, with 4 and 6 of 16 patches: the masks of the reference.
    c["masks"].update(probability=0.5, ratio=(0.125, 0.375))
    c["model"].update(
        {k: v for k, v in reference.BACKBONE.items() if k != "image_size"}, ffn="mlp", drop_path=0.0,
        interpolation="offset", dtype=dtype,
    )  # fmt: skip
    c["heads"].update(
        shared=shared, dino_prototypes=24, ibot_prototypes=24, dino_bottleneck=16, ibot_bottleneck=16, hidden=48
    )
    c["objective"].update(koleo={"weight": 0.1}, sigreg=c["objective"]["sigreg"] | {"weight": 0.0}, centering=centering)
    c["optim"].update(base_lr=1e-3 / (2 / 1024) ** 0.5, min_lr=1e-3, clip_norm=clip, layerwise_decay=0.9)
    c["schedule"].update(
        warmup_steps=0, freeze_last_layer_steps=1, weight_decay=0.05, weight_decay_end=0.05, teacher_momentum=0.9,
        teacher_momentum_end=0.9, teacher_temp=0.05, teacher_temp_start=0.05, teacher_temp_warmup_steps=0,
    )  # fmt: skip
    return recipe_from(c)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=SOAK)])
@pytest.mark.parametrize(
    ("block", "shared", "clip", "centering"),
    [
        ("centering_shared_head_clip3.0", True, 3.0, "softmax_centering"),
        ("sinkhorn_knopp_separate_head_clip0.05", False, 0.05, "sinkhorn_knopp"),
    ],
)
def test_two_steps_of_dinov2(dtype, block, shared, clip, centering):
    with jax.enable_x64(dtype == "float64"):
        recipe = reference_recipe(dtype, shared, clip, centering)
        params = reference.student_params(dtype, separate_heads=not shared)
        teacher = reference.teacher_params(dtype, separate_heads=not shared)
        state = states.from_params(jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, teacher), recipe)
        state = state.replace(centers=jax.tree.map(lambda c: c.astype(dtype), state.centers))
        batch = reference.end_to_end_batch()
        crops = jnp.asarray(batch["global_crops"], dtype), jnp.asarray(batch["local_crops"], dtype)
        step = jax.jit(functools.partial(update, recipe=recipe))
        # The reference's Sinkhorn and interpolation are float32 inside even in its float64 run.
        rtol, atol = (2e-6, 1e-9) if dtype == "float64" else (2e-5, 2e-6)
        for expected in E2E[block]["f64" if dtype == "float64" else "f32"]:
            state, metrics = step(state, crops, jnp.asarray(batch["masks"]))
            assert metrics["applied"]
            close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
            close(metrics["dino_local"], expected["dino_local"])
            close(metrics["dino_global"], expected["dino_global"])
            close(0.1 * metrics["koleo"], expected["koleo_weighted"])
            close(metrics["ibot"], expected["ibot"])
            close(metrics["loss"], expected["total"])
            for module, norm in expected["grad_norm_preclip"].items():
                np.testing.assert_allclose(metrics[f"grad_norm/{module}"], norm, rtol=1e-4)
            for who, tree in (("student", state.params), ("teacher", state.teacher)):
                for module in ("backbone", "dino_head"):
                    l2 = optax.tree.norm(tree[module])
                    np.testing.assert_allclose(l2, expected[who][module]["l2"], rtol=1e-5, err_msg=f"{who} {module}")
                for name, value in expected[who]["entries"].items():
                    path, torch_layout = ENTRIES[name]
                    leaf = functools.reduce(lambda t, key: t[key], path, tree)
                    np.testing.assert_allclose(torch_layout(leaf), value, rtol=1e-4, atol=2e-6, err_msg=f"{who} {name}")
            for name, value in expected.get("centers", {}).items():
                close(state.centers[name], value)


def random_batch(recipe, seed=0):
    """Noise crops and masks with the ladder of every group."""
    rng = np.random.default_rng(seed)
    images, group, patches = recipe.data.global_batch, recipe.data.group_size, recipe.model.grid**2
    masks = np.zeros((images, 2, patches), bool)
    for start in range(0, images, group):
        targets = rng.permutation(ladder(group, patches, recipe.masks)).reshape(group, 2)
        for image, view in np.ndindex(group, 2):
            masks[start + image, view, rng.permutation(patches)[: targets[image, view]]] = True
    sizes = (2, recipe.crops.global_size), (recipe.crops.num_local, recipe.crops.local_size)
    crops = tuple(jnp.asarray(rng.normal(size=(views * images, s, s, 1)), jnp.float32) for views, s in sizes)
    return crops, jnp.asarray(masks)


def drawn(recipe):
    """A first state; recipes of the same parameters share one."""
    without = {"data", "masks", "schedule", "parallel", "checkpoint", "guard", "log", "probe"}
    return _drawn(dataclasses.replace(recipe, **dict.fromkeys(without)))


@functools.cache
def _drawn(recipe):
    return jax.jit(lambda: states.init_state(jax.random.key(1), recipe))()


@functools.cache
def compiled(recipe, mesh):
    return jax.jit(functools.partial(update, recipe=recipe, mesh=mesh))


def run(recipe, mesh=None, steps=2):
    """(metrics of the last of `steps` steps, state), the state placed as the rules say."""
    state = drawn(recipe)
    crops, masks = random_batch(recipe)
    if mesh is not None:
        shardings = state_shardings(states.abstract_state(recipe), mesh)
        state = jax.device_put(state, shardings)
        batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
        crops, masks = jax.device_put((crops, masks), batch)
    step = compiled(recipe, mesh)
    for _ in range(steps):
        state, metrics = step(state, crops, masks)
    return {name: np.asarray(value) for name, value in metrics.items()}, state


@pytest.fixture(scope="module")
def base():
    """A recipe with everything on, and its metrics on one device."""
    config = tiny_config(data__global_batch=16, data__group_size=2, masks__ratio=(0.2, 0.5))
    return config, run(recipe_from(config))


@pytest.fixture(scope="module")
def lejepa():
    """A recipe of LeJEPA alone, and its metrics on one device."""
    config = tiny_config(
        data__global_batch=16, data__group_size=2, masks__probability=0.0, heads__projector_width=16,
        objective__dino__weight=0.0, objective__ibot__weight=0.0, objective__invariance__weight=0.95,
        objective__sigreg__placement="projector",
    )  # fmt: skip
    return config, run(recipe_from(config))


@pytest.mark.parametrize(("devices", "fsdp"), [(2, 1), pytest.param(4, 2, marks=SOAK), pytest.param(8, 8, marks=SOAK)])
def test_lejepa_on_meshes_agrees_with_one_device(lejepa, devices, fsdp):
    config, (expected, _) = lejepa
    mesh = make_mesh(ParallelConfig(fsdp, 1), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        metrics, _ = run(recipe_from(config), mesh)
    for name in ("loss", "invariance", "sigreg", "grad_norm/backbone", "grad_norm/projector"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)


def test_lejepa_alone_has_no_heads_and_moves_the_rest(lejepa):
    config, (metrics, after) = lejepa
    before = drawn(recipe_from(config))
    assert set(before.params) == {"backbone", "projector"}
    assert not any(name.startswith(("teacher_e", "teacher_i", "nats", "dino", "ibot")) for name in metrics)
    same = jax.tree.map(np.array_equal, before.params, after.params)
    unmoved = [jax.tree_util.keystr(path) for path, is_same in jax.tree_util.tree_leaves_with_path(same) if is_same]
    assert unmoved == ["['backbone']['mask_token']"]  # nothing is masked
    assert not np.array_equal(
        before.teacher["projector"]["mlp_0"]["kernel"], after.teacher["projector"]["mlp_0"]["kernel"]
    )


@pytest.mark.parametrize(("devices", "fsdp"), [(2, 1), pytest.param(4, 2, marks=SOAK), pytest.param(8, 8, marks=SOAK)])
def test_meshes_agree_with_one_device(base, devices, fsdp):
    config, (expected, _) = base
    mesh = make_mesh(ParallelConfig(fsdp, 1), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        metrics, _ = run(recipe_from(config), mesh)
    for name in ("loss", "dino_global", "dino_local", "ibot", "sigreg", "grad_norm/backbone", "grad_norm/dino_head"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)


def test_class_tokens_at_steps_that_are_logged(base):
    """The base logs every step. Here step 1 is no multiple of the interval, and step 2 is the last."""
    config, (every_step, _) = base
    recipe = recipe_from(config | {"log": {"every_steps": 3}, "total_steps": 2})
    step = jax.jit(functools.partial(update, recipe=recipe))
    state, metrics = step(drawn(recipe), *random_batch(recipe))
    assert metrics["class_tokens"].shape == (16, 32) and not metrics["class_tokens"].any()
    _, metrics = step(state, *random_batch(recipe))
    for tokens in (metrics["class_tokens"], every_step["class_tokens"]):
        # After the final norm, whose scale and shift have hardly moved: every row has mean 0 and spread 1.
        np.testing.assert_allclose(np.mean(tokens, -1), 0, atol=0.1)
        np.testing.assert_allclose(np.std(tokens, -1), 1, atol=0.1)


def test_micro_batches_equal_the_whole_batch(base):
    """All but SigReg, which is of the micro-batch by design."""
    config, _ = base
    terms = {"koleo": {"weight": 0.1}, "sigreg": config["objective"]["sigreg"] | {"weight": 0.0}}
    config = config | {"objective": config["objective"] | terms}
    expected, whole = run(recipe_from(config))
    metrics, parts = run(recipe_from(config | {"parallel": config["parallel"] | {"accumulation": 4}}))
    for name in ("loss", "dino_global", "dino_local", "ibot", "koleo", "grad_norm/backbone", "grad_norm/ibot_head"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(metrics["class_tokens"], expected["class_tokens"], rtol=1e-3, atol=1e-4)
    for a, b in zip(jax.tree.leaves(whole.teacher), jax.tree.leaves(parts.teacher), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_every_parameter_moves_and_a_nonfinite_step_moves_none(base):
    config, (_, after) = base
    recipe = recipe_from(config)
    before = drawn(recipe)
    for path, (a, b) in zip(
        [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(before.params)],
        zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True), strict=True,
    ):  # fmt: skip
        assert not np.array_equal(a, b), path
    (global_crops, local_crops), masks = random_batch(recipe)
    state, metrics = compiled(recipe, None)(before, (global_crops.at[0, 0, 0, 0].set(jnp.nan), local_crops), masks)
    assert not metrics["applied"]
    assert states.state_hash(state) == states.state_hash(before)


def test_a_frozen_backbone_stays_to_the_bit_while_the_heads_learn():
    """Student's and teacher's, which differ; on a mesh; with zeros of either sign and a subnormal number."""
    config = tiny_config(
        data__global_batch=2, data__group_size=1, crops__num_local=1, crops__global_size=16, crops__local_size=8,
        model__drop_path=0.0, heads__shared=True, objective__ibot__weight=0.0, objective__sigreg__weight=0.0,
        schedule__freeze_backbone_steps=2, schedule__warmup_steps=0, masks__probability=1.0,
    )  # fmt: skip
    recipe = recipe_from(config)
    mesh = make_mesh(ParallelConfig(2, 1), jax.devices()[:2])
    with jax.set_mesh(mesh):
        first = drawn(recipe)
        odd = jnp.tile(jnp.asarray([0.0, -0.0, 1e-40, 1.0]), 8).reshape(1, -1)
        student = {**first.params, "backbone": first.params["backbone"] | {"mask_token": odd}}
        teacher = jax.tree.map(lambda x: x * 1.1, student)
        state = jax.device_put(
            first.replace(params=student, teacher=teacher), state_shardings(states.abstract_state(recipe), mesh)
        )
        batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
        crops, masks = jax.device_put(random_batch(recipe), batch)
        step = jax.jit(functools.partial(update, recipe=recipe, mesh=mesh))
        for number in range(3):
            before, (state, _) = state, step(state, crops, masks)
            for old, new in ((before.params, state.params), (before.teacher, state.teacher)):
                same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), old, new)
                kept = jax.tree.leaves(same["backbone"])
                assert all(kept) if number < 2 else not any(kept[1:])
                assert not any(jax.tree.leaves(same["dino_head"]["mlp_0"]["kernel"]))
