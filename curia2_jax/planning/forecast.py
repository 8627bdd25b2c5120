"""What is known of a step on machines that are not here: memory, work, time, and the schedule that follows."""

import dataclasses
import functools
import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from curia2_jax.data.crops.masks import masked_per_group
from curia2_jax.models import attention
from curia2_jax.parallel import compiler
from curia2_jax.parallel.mesh import BATCH, batch_shards, check_batch, make_mesh, platform_of
from curia2_jax.planning import changes, cycles, estimates, flops, hlo, synthetic
from curia2_jax.planning.chips import Chip
from curia2_jax.training.initial import abstract_sharded_state
from curia2_jax.training.recipe import Recipe
from curia2_jax.training.state import count
from curia2_jax.training.step import train_step

PyTree = Any

NOTES = {  # of the compilers
    "tpu": "",
    "gpu": "compiled without a GPU: nothing is autotuned, and the workspace of cuDNN's attention is not counted",
    "cpu": "the CPU's compiler gathers in float32 and writes a reduce-scatter as an all-reduce: more bytes than GPUs'",
}


@dataclasses.dataclass(frozen=True)
class Program:
    """The step as a compiler made it. `peak_bytes` is of one device, None where the compiler was another's."""

    compiler: str
    compile_s: float
    peak_bytes: int | None
    collectives: list[dict[str, Any]]
    wire_bytes: float
    flops: float
    kernels: dict[str, int]  # of attention: how often a run of the program calls each
    cycles: list[dict[str, Any]]  # planning/cycles.py; empty but for TPUs
    note: str


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Bytes are of one device, times in seconds."""

    devices: str
    parameters: dict[str, int]
    batch: dict[str, int]
    bytes_of_a_device: dict[str, int]
    program: Program | None
    fits: bool
    peak_bytes: int
    peak_from: str
    smallest_change: str  # flags; "" where it fits
    step: dict[str, Any]
    schedule: dict[str, float]


def compile_step(recipe: Recipe, mesh: Mesh) -> jax.stages.Compiled:
    """The whole training step, compiled for the devices of `mesh`, which need not be here; nothing is allocated."""
    platform = platform_of(mesh)
    compiler.configure(platform)
    step = functools.partial(train_step, recipe=recipe, mesh=mesh)
    with jax.set_mesh(mesh):
        state = abstract_sharded_state(recipe, mesh)
        shardings = jax.tree.map(lambda a: a.sharding, state)
        batch = synthetic.shapes(recipe, NamedSharding(mesh, BATCH))
        lowered = jax.jit(step, out_shardings=(shardings, None), donate_argnums=0).lower(state, batch)
    options = compiler.options(platform)
    if platform == "cpu":  # only the partitioned program is read: no machine code is worth waiting for
        options |= {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return lowered.compile(options)


def forecast(recipe: Recipe, chip: Chip, devices: list[jax.Device], *, compile_it: bool = True) -> Forecast:
    """Everything that is known of a step of `recipe` on `devices`: those of a target that is compiled for, or as many
    virtual ones of a CPU for a plan by estimate.

    Raises:
      UserError: the batch holds no whole groups on so many devices, or the mesh does not fit them.
    """
    mesh = make_mesh(recipe.parallel, devices)
    shards = batch_shards(mesh)
    check_batch(recipe.data.global_batch, recipe.data.group_size, recipe.parallel.accumulation, shards)
    state = abstract_sharded_state(recipe, mesh)
    masked = masked_of_a_group(recipe)
    estimate = estimates.memory(recipe, state, masked, shards, kernels_on(recipe, chip))
    peak, source = sum(estimate.values()), "estimate"
    found = program(recipe, mesh, chip, state.params) if compile_it else None
    if found is not None and found.peak_bytes is not None:
        peak, source = found.peak_bytes, "compiled program"
    fits = peak <= estimates.usable(chip)
    factor = peak / sum(estimate.values())
    change = "" if fits else changes.smallest(recipe, chip, devices, factor, kernels_on(recipe, chip))
    step, expected = step_of(recipe, chip, len(devices), state.params)
    steps, images = recipe.schedule.total_steps, recipe.data.global_batch
    hours = steps * expected / 3600
    return Forecast(
        devices=f"{len(devices)} x {chip.name}, mesh {dict(mesh.shape)}",
        parameters={"backbone": count(state.params["backbone"]), "all": count(state.params)},
        batch={"images": images, "of_a_device": images // shards, "micro_batches": recipe.parallel.accumulation},
        bytes_of_a_device=estimate | {"peak_by_estimate": sum(estimate.values())},
        program=found,
        fits=fits,
        peak_bytes=peak,
        peak_from=source,
        smallest_change=change,
        step=step,
        schedule={
            "steps": steps, "images_seen": steps * images, "hours": hours, "device_hours": hours * len(devices),
        },
    )  # fmt: skip


def masked_of_a_group(recipe: Recipe) -> int:
    """Masked patches of a group of `data.group_size` images."""
    return masked_per_group(recipe.data.group_size, recipe.model.grid**2, recipe.masks)


def kernels_on(recipe: Recipe, chip: Chip) -> bool:
    """Whether attention keeps its scores on the chip: cuDNN's kernel, or that of models/attention_tpu.py."""
    model = recipe.model
    platform, head_dim = "gpu" if chip.node else "tpu", model.width // model.heads
    tokens = model.grid**2 + 1 + model.registers
    wanted = model.attention if model.attention in ("auto", "xla") else "auto"
    return attention.resolve(wanted, platform, model.dtype, model.heads, head_dim, tokens) != "xla"


def program(recipe: Recipe, mesh: Mesh, chip: Chip, params: PyTree) -> Program:
    """The step, compiled for the devices of the mesh."""
    platform = platform_of(mesh)
    began = time.perf_counter()
    compiled = compile_step(recipe, mesh)
    seconds = time.perf_counter() - began
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if text is None or memory is None:
        raise RuntimeError(f"the compiler for {platform} shows neither its program nor its memory")
    return Program(
        compiler=platform,
        compile_s=seconds,
        peak_bytes=None if platform == "cpu" else memory.peak_memory_in_bytes,
        collectives=estimates.collective_table(text, params, recipe),
        wire_bytes=math.fsum(hlo.wire_bytes(text).values()),
        flops=hlo.total_flops(text),
        kernels={name: runs for name, runs in hlo.custom_calls(text).items() if re.search(r"fmha|tpu_custom", name)},
        cycles=cycles.table(text, chip) if platform == "tpu" else [],
        note=NOTES[platform],
    )


def step_of(recipe: Recipe, chip: Chip, devices: int, params: PyTree) -> tuple[dict[str, Any], float]:
    """Work and times of a step by arithmetic, and the seconds that are expected of it."""
    masked, images = masked_of_a_group(recipe), recipe.data.global_batch
    work, again, crops = flops.update(recipe, masked), flops.recomputed(recipe), flops.crops(recipe)
    traffic = estimates.memory_traffic(
        recipe, estimates.device_bytes(params), masked, devices, kernels=kernels_on(recipe, chip)
    )
    inside, across = estimates.split_wire(params, recipe, chip, devices)
    t = estimates.times(sum(work.values()) + again + crops, traffic, inside, across, devices, chip)
    per_image = {**{k: v / images / 1e12 for k, v in work.items()}, "recomputed": again / images / 1e12}
    return {
        "tflop_per_image": per_image | {"crops": crops / images / 1e12},
        "fewest_wire_bytes_of_a_device": estimates.fewest_bytes(params, recipe),
        "memory_traffic_bytes_of_a_device": traffic,
        "least_s": {"products_at_peak": t.compute, "memory": t.memory, "wire": t.wire, "bound": t.lower_bound},
        "expected_s": t.expected,
        "expected_images_per_s_per_device": images / t.expected / devices,
        "expected_mfu": flops.mfu(sum(work.values()), t.expected, devices, chip.flops),
    }, t.expected
