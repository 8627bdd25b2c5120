"""One step on meshes (1,1), (8,1), (1,8) and (2,4): the same numbers, and no communication but what sharding needs."""

import collections
import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import vitg, vitl_hires
from curia2_jax.parallel import sharding
from curia2_jax.parallel.mesh import BATCH, ParallelConfig, make_mesh
from curia2_jax.planning import hlo, synthetic
from curia2_jax.planning.estimates import device_bytes
from curia2_jax.training.initial import abstract_sharded_state
from curia2_jax.training.recipe import recipe_from
from curia2_jax.training.state import abstract_state, init_state
from curia2_jax.training.step import update
from tests.training.tiny import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]
DEPTH, PASSES = 2, 5  # teacher global; student global and local, forward and backward


def recipe_of(fsdp: int):
    c = tiny_config(parallel__fsdp=fsdp, data__global_batch=32)
    return recipe_from(c)


class Program:
    """The step on one mesh: its HLO, and what one run of it gives."""

    def __init__(self, shape: tuple[int, int], start):
        recipe = recipe_of(shape[1])
        mesh = make_mesh(ParallelConfig(shape[1], 1), jax.devices()[: shape[0] * shape[1]])
        batch = NamedSharding(mesh, BATCH)
        with jax.set_mesh(mesh):
            self.state = abstract_sharded_state(recipe, mesh)
            shardings = jax.tree.map(lambda a: a.sharding, self.state)
            state = jax.device_put(start, shardings)
            crops = tuple(jax.device_put(x, batch) for x in synthetic.crops(recipe))
            masks = jax.device_put(synthetic.batch(recipe)["masks"], batch)
            step = functools.partial(update, recipe=recipe, mesh=mesh)
            lowered = jax.jit(step, out_shardings=(shardings, None), donate_argnums=0).lower(state, crops, masks)
            compiled = lowered.compile(QUICK)
            old = jax.tree.leaves(state.params)
            _, metrics = compiled(state, crops, masks)
        self.donated = all(x.is_deleted() for x in old)
        self.metrics = {name: np.asarray(value) for name, value in metrics.items()}
        self.text = compiled.as_text()
        self.collectives = [o for o in hlo.operations(self.text) if o.kind in hlo.COLLECTIVES]


@pytest.fixture(scope="module")
def programs():
    small, sharding.SMALL = sharding.SMALL, 256  # bytes: the tiny model's kernels are treated as large ones are
    start = jax.tree.map(np.asarray, jax.jit(lambda: init_state(jax.random.key(0), recipe_of(1)))())
    try:
        return {shape: Program(shape, start) for shape in MESHES}
    finally:
        sharding.SMALL = small


def test_every_mesh_gives_the_same_step(programs):
    expected = programs[1, 1].metrics
    assert expected["applied"] == 1
    for shape in MESHES[1:]:
        found = programs[shape].metrics
        for name in ("loss", "dino_global", "dino_local", "ibot", "sigreg", "teacher_entropy"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5), (shape, name)
        for name in ("backbone", "dino_head", "ibot_head"):
            assert found[f"grad_norm/{name}"] == pytest.approx(expected[f"grad_norm/{name}"], rel=1e-5), (shape, name)
        np.testing.assert_allclose(found["class_tokens"], expected["class_tokens"], rtol=1e-4, atol=1e-5)


def test_the_old_state_is_given_away(programs):
    assert all(p.donated for p in programs.values())


def test_one_device_is_alone(programs):
    assert programs[1, 1].collectives == []


def test_nothing_is_shuffled_between_devices(programs):
    """Masked tokens, drop path, crops and views stay where they are: such gathers would be permutes or all-to-alls."""
    for shape, program in programs.items():
        assert {o.kind for o in program.collectives} <= {"all-gather", "all-reduce", "reduce-scatter"}, shape


@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
def test_weights_are_gathered_in_the_layer_loop(programs, shape):
    """Each kernel once a layer and pass, by an all-gather over fsdp; nothing else is gathered there."""
    gathers = [o for o in programs[shape].collectives if o.kind == "all-gather" and o.loop]
    assert {o.times for o in gathers} == {DEPTH} and {o.group for o in gathers} == {shape[1]}
    attention, feed_forward = 32 * 32 * 4, 32 * 88 * 4  # bytes of one kernel of one layer
    kernels = collections.Counter(o.bytes for o in gathers)
    assert kernels == {attention: 4 * PASSES, feed_forward: 3 * PASSES}


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)])
def test_gradients_are_summed_once_a_layer(programs, shape):
    """In the loop of each backward pass: one sum of the kernels over fsdp, of which every device keeps its slice, one
    of the slices over data, and one of biases, norms and LayerScale, which XLA may merge."""
    reduces = [o for o in programs[shape].collectives if o.kind in ("all-reduce", "reduce-scatter") and o.loop]
    assert {o.times for o in reduces} == {DEPTH}
    kernels = (4 * 32 * 32 + 3 * 32 * 88) * 4
    vectors = (4 * 32 + 2 * 88 + 32 + 4 * 32 + 2 * 32) * 4
    over_fsdp = kernels
    over_data = kernels // shape[1] if shape[0] > 1 and shape[1] > 1 else 0
    assert sum(o.bytes for o in reduces) == 2 * (over_fsdp + over_data + vectors)
    assert len(reduces) <= 2 * 3


@pytest.mark.parametrize("shape", [(8, 1), (1, 8), (2, 4)])
def test_losses_exchange_columns_only(programs, shape):
    """Sums over prototypes (Sinkhorn), and the class tokens for RankMe: a loop that communicates is one over layers,
    and no array of rows by prototypes crosses devices."""
    layers = r"ViT\)*/while/body/|blocks/|ffn/"  # what JAX 0.10 and 0.12 call what happens there
    assert all(re.search(layers, o.name) for o in programs[shape].collectives if o.loop)
    outside = [o for o in programs[shape].collectives if not o.loop and o.kind == "all-gather"]
    (tokens,) = [o for o in outside if o.name.endswith("/sharding_constraint")]
    assert tokens.bytes == 32 * 32 * 4
    if shape[1] == 1:
        assert outside == [tokens]
    whole = {math.prod(x.shape) * 4 for x in jax.tree.leaves(programs[shape].state.params)}
    # What else is gathered has the size of a parameter, or of the position table resampled for the 4 local patches.
    assert {o.bytes for o in outside} - {tokens.bytes} <= whole | {4 * 32 * 4}


@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
def test_no_device_holds_all_layers_of_a_kernel(programs, shape):
    """Neither parameters nor gradients nor moments: no array of the program has the whole stack's shape."""
    assert "f32[32,88]" in programs[shape].text  # one layer's
    for whole in ("f32[2,32,88]", "f32[2,88,32]", "f32[2,32,32]"):
        assert whole not in programs[shape].text
        assert whole in programs[8, 1].text


def test_every_large_array_is_sharded_or_says_why():
    recipe = recipe_from(vitg.get_config().to_dict())
    mesh = AbstractMesh((4, 16), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    state = abstract_state(recipe)
    rows = sharding.table(state, mesh)
    assert len(rows) > 40 and all(row["why"] for row in rows)
    whole = [row for row in rows if row["why"].startswith("replicated")]
    assert all("vector" in row["why"] and row["bytes"] < 2**20 for row in whole)
    # Moments and teacher lie as their parameter does.
    specs = {row["path"]: row["spec"] for row in rows}
    for path, spec in specs.items():
        if path.startswith("params/"):
            name = path.removeprefix("params/")
            assert specs[f"teacher/{name}"] == specs[f"opt_state/mu/{name}"] == specs[f"opt_state/nu/{name}"] == spec
    assert "'fsdp'" in specs["params/dino_head/last_layer/v"]


def test_an_array_that_cannot_be_sharded_says_why():
    mesh = AbstractMesh((1, 64), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    spec, why = sharding.spec_of("params/backbone/blocks/attn/out/kernel", (40, 1000, 1000), 4, mesh)
    assert spec == P() and "axis 1 of 1000, axis 2 of 1000 does not divide by fsdp 64" in why
    assert sharding.spec_of("params/new/thing", (1000, 1000), 4, mesh)[1] == "replicated: no rule"


def test_shards_are_whole_tiles_where_they_can_be():
    """ViT-L's feed-forward net has 2,736 hidden units, 342 for each of 8 devices: its other axis gives whole tiles."""
    mesh = AbstractMesh((8, 8), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    down = "params/backbone/blocks/ffn/down/kernel"
    assert sharding.spec_of(down, (24, 2736, 1024), 4, mesh)[0] == P(None, None, "fsdp")
    assert sharding.spec_of(down, (40, 4096, 1536), 4, mesh)[0] == P(None, "fsdp", None)


@pytest.mark.parametrize("get_config", [vitg.get_config, vitl_hires.get_config])
def test_state_falls_as_one_over_n(get_config):
    """Parameters, teacher and moments of one device, up to 64 of them, within 10 %."""
    recipe = recipe_from(get_config().to_dict())
    sizes = {}
    for devices in (1, 2, 4, 8, 16, 32, 64):
        mesh = AbstractMesh((1, devices), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        sizes[devices] = device_bytes(abstract_sharded_state(recipe, mesh))
    for devices, size in sizes.items():
        assert size * devices == pytest.approx(sizes[1], rel=0.10), devices


COMPILE_64 = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 64)
sys.path.insert(0, {root!r})
from tests.training.tiny import tiny_config
from curia2_jax.parallel import sharding
from curia2_jax.parallel.mesh import make_mesh
from curia2_jax.training.recipe import recipe_from
from curia2_jax.planning.forecast import compile_step
sharding.SMALL = 256
sizes = {{}}
for fsdp in (8, 64):
    # Biases and scales are whole on every device: wide enough that they are few beside the kernels.
    c = tiny_config(parallel__fsdp=fsdp, data__global_batch=256, model__width=2048, model__heads=32)
    recipe = recipe_from(c)
    size = compile_step(recipe, make_mesh(recipe.parallel)).memory_analysis().output_size_in_bytes
    sizes[fsdp] = size - 256 * 2048 * 4  # the class tokens for RankMe, whole on every device
print(json.dumps(sizes))
"""


@pytest.mark.soak
def test_compiled_state_on_64_devices():
    """The same of a compiled step: what it returns, which is the state and metrics, on one device of 64."""
    script = COMPILE_64.format(root=str(ROOT))
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout.splitlines()[-1])
    assert sizes["64"] * 8 == pytest.approx(sizes["8"], rel=0.10)
