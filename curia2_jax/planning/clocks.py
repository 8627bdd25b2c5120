"""The clocks of launch/bench.py: each returns one dict of figures."""

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.crops.batches import batches
from curia2_jax.data.crops.loader import fitted
from curia2_jax.data.crops.masks import masked_per_group
from curia2_jax.errors import UserError
from curia2_jax.losses.targets import Targets, sinkhorn_knopp
from curia2_jax.parallel import compiler
from curia2_jax.parallel.mesh import batch_shards, check_batch, make_mesh
from curia2_jax.planning import chips, flops, synthetic
from curia2_jax.training import augment
from curia2_jax.training.initial import abstract_sharded_state
from curia2_jax.training.prepare import to_devices
from curia2_jax.training.recipe import Recipe
from curia2_jax.training.state import init_state
from curia2_jax.training.step import train_step, update
from curia2_jax.training.terms import TERMS, Layout, Outputs, Prototypes

# Both sides of the comparison with PyTorch can do this, and no more than this.
COMPARISON = {
    "data.global_batch": 4, "data.group_size": 4,
    "crops.global_size": 224, "crops.local_size": 96, "crops.num_local": 8,
    "masks.probability": 0.5, "masks.ratio": (0.1, 0.5),
    "model.drop_path": 0.0, "model.dtype": "float32", "model.remat": "none",
    "model.positions": "learned",
    "heads.shared": False, "heads.dino_prototypes": 4096, "heads.ibot_prototypes": 4096, "heads.dino_bottleneck": 256,
    "heads.ibot_bottleneck": 256, "heads.hidden": 2048, "heads.layers": 3,
    "objective.koleo.weight": 0.1, "objective.sigreg.weight": 0.0,
}  # fmt: skip


def as_compared(sections: dict[str, Any]) -> dict[str, Any]:
    """The sections of a config with the values that both sides of the comparison can do."""
    for key, value in COMPARISON.items():
        *path, name = key.split(".")
        functools.reduce(dict.__getitem__, path, sections)[name] = value
    return sections


def machine() -> dict[str, Any]:
    """Host, device and library versions."""
    return {
        "host": platform.node(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
    }


def seconds(run: Callable[[], Any], steps: int) -> list[float]:
    """Wall-clock of each of `steps` calls, after two that are not counted; `run` returns when its work is done."""
    for _ in range(2):
        run()
    out = []
    for _ in range(steps):
        began = time.perf_counter()
        run()
        out.append(time.perf_counter() - began)
    return out


def compiled(function: Callable, *arguments: Any, **options: Any) -> tuple[Any, float]:
    """(program, seconds that compiling took)."""
    began = time.perf_counter()
    program = jax.jit(function, **options).lower(*arguments).compile(compiler.options(jax.default_backend()))
    return program, time.perf_counter() - began


def peak_memory(program: Any) -> int:
    """Bytes a device needs for a program; the compiler's figure where the device keeps no count of its own (CPU)."""
    statistics_of_device = jax.local_devices()[0].memory_stats() or {}
    return statistics_of_device.get("peak_bytes_in_use") or program.memory_analysis().peak_memory_in_bytes


def time_step(recipe: Recipe, steps: int, *, with_crops: bool = True) -> dict[str, Any]:
    """The step on a mesh of all devices."""
    if recipe.data.corpus and with_crops:  # the noise of the first step has the shape of the batches that follow
        recipe = dataclasses.replace(recipe, data=fitted(recipe.data, Corpus(recipe.data.corpus)))
    mesh = make_mesh(recipe.parallel)
    check_batch(recipe.data.global_batch, recipe.data.group_size, recipe.parallel.accumulation, batch_shards(mesh))
    put = functools.partial(to_devices, mesh=mesh)
    waited: list[float] = []
    with jax.set_mesh(mesh):
        shardings = jax.tree.map(lambda a: a.sharding, abstract_sharded_state(recipe, mesh))
        state = jax.jit(lambda: init_state(jax.random.key(recipe.seed), recipe), out_shardings=shardings)()
        if with_crops:
            step = functools.partial(train_step, recipe=recipe, mesh=mesh)
            inputs: tuple = (put(synthetic.batch(recipe)),)
        else:
            step = functools.partial(update, recipe=recipe, mesh=mesh)
            arrays = put(dict(zip(("global", "local"), synthetic.crops(recipe), strict=True)))
            arrays |= put({"masks": synthetic.batch(recipe)["masks"]})
            inputs = (arrays["global"], arrays["local"]), arrays["masks"]
        program, compile_seconds = compiled(step, state, *inputs, out_shardings=(shardings, None), donate_argnums=0)
        real = batches(
            recipe.data, recipe.crops, recipe.masks, recipe.model.patch_size, seed=recipe.seed
        ) if recipe.data.corpus and with_crops else None  # fmt: skip

        def run() -> None:
            nonlocal state, inputs
            state, metrics = program(state, *inputs)
            if real is not None:
                began = time.perf_counter()
                inputs = (put(next(real)),)
                waited.append(time.perf_counter() - began)
            if not bool(metrics["applied"]):
                raise FloatingPointError(f"the loss is {metrics['loss']}")

        times = seconds(run, steps)
        if real is not None:
            real.close()

    devices, images, median = mesh.devices.size, recipe.data.global_batch, statistics.median(times)
    parts = flops.update(recipe, masked_per_group(recipe.data.group_size, recipe.model.grid**2, recipe.masks))
    chip = chips.chip_of(jax.devices()[0].device_kind)
    model, heads = recipe.model, recipe.heads
    return {
        "model": f"width {model.width}, depth {model.depth}, {model.dtype}, remat {model.remat}, drop path "
        f"{model.drop_path}; crops 2 x {recipe.crops.global_size} + {recipe.crops.num_local} x "
        f"{recipe.crops.local_size}; prototypes {heads.dino_prototypes}; "
        f"{'shared' if heads.shared else 'separate'} heads",
        "data": "none: ready crops" if not with_crops else recipe.data.corpus or "noise",
        "mesh": dict(mesh.shape),
        "images_per_step": images,
        "compile_s": compile_seconds,
        "step_s": {"median": median, "min": min(times), "all": times},
        "images_per_s_per_device": images / median / devices,
        "tflop_per_image": {name: value / images / 1e12 for name, value in parts.items()},
        "tflops_per_device": sum(parts.values()) / median / devices / 1e12,
        "mfu": None if chip is None else flops.mfu(sum(parts.values()), median, devices, chip.flops),
        "data_wait_s": statistics.median(waited[-steps:]) if waited else None,
        "peak_bytes_per_device": peak_memory(program),
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def time_augment(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Cutting, resizing and augmenting a batch on one device."""
    sizes = recipe.crops.global_size, recipe.crops.local_size
    batch = jax.device_put(synthetic.batch(recipe))
    program, compile_seconds = compiled(
        lambda b, k: augment.crops_of(b, k, recipe.augment, *sizes), batch, jax.random.key(0)
    )
    times = seconds(lambda: jax.block_until_ready(program(batch, jax.random.key(0))), steps)
    median = statistics.median(times)
    return {
        "compile_s": compile_seconds,
        "augment_s": {"median": median, "min": min(times)},
        "images_per_s": recipe.data.global_batch / median,
        "crop_resize_tflops": flops.crops(recipe) / median / 1e12,
    }


def time_losses(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Teacher targets and each loss with its gradients, on one device; features are noise."""
    arguments, targets = _noise_of_outputs(recipe)
    out = {}

    def record(name: str, function: Callable, *arguments: Any) -> Any:
        program, compile_seconds = compiled(function, *arguments)
        times = seconds(lambda: jax.block_until_ready(program(*arguments)), steps)
        out[name] = {
            "median_s": statistics.median(times),
            "compile_s": compile_seconds,
            "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        }
        return program(*arguments)

    temp, chunk = jnp.asarray(0.07), recipe.objective.chunk
    found = {
        name: record(f"{name} sinkhorn", lambda z, t: sinkhorn_knopp(z, t, chunk), logits, temp)
        for name, logits in targets.items()
    }
    for term in TERMS:
        config = recipe.objective.term(term.name)
        value = lambda x, t, term=term, config=config: term.loss(_outputs(recipe, x, t), config)[0]  # noqa: E731
        record(term.name, jax.value_and_grad(value), arguments, found)
    return out


def _noise_of_outputs(recipe: Recipe) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Float arrays of `training.terms.Outputs`, and teacher logits (1, rows, K), of the sizes of a recipe."""
    images, size, dtype = recipe.data.global_batch, recipe.data.group_size, recipe.model.dtype
    masked = images // size * masked_per_group(size, recipe.model.grid**2, recipe.masks)
    dino, ibot = recipe.dino_head, recipe.ibot_head

    def noise(*shape: int, unit: bool = False) -> jax.Array:
        x = jax.random.normal(jax.random.key(len(shape)), shape)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True) if unit else x

    arrays = {
        "class_tokens": noise(images, 2, recipe.model.width),
        "class_features": noise(images, 2, dino.bottleneck, unit=True).astype(dtype),
        "local_features": noise(images, recipe.crops.num_local, dino.bottleneck, unit=True).astype(dtype),
        "projections": noise(images, 2 + recipe.crops.num_local, recipe.heads.projector_width),
        "patch_features": noise(1, masked, ibot.bottleneck, unit=True).astype(dtype),
        "dino": Prototypes(noise(dino.bottleneck, dino.prototypes, unit=True), jnp.asarray(1.0)),
        "ibot": Prototypes(noise(ibot.bottleneck, ibot.prototypes, unit=True), jnp.asarray(1.0)),
    }
    logits = {
        "dino": noise(1, 2 * images, dino.prototypes).astype(dtype) * 0.1,
        "ibot": noise(1, masked, ibot.prototypes).astype(dtype) * 0.1,
    }
    return arrays, logits


def _outputs(recipe: Recipe, arrays: dict[str, Any], targets: dict[str, Targets]) -> Outputs:
    images = recipe.data.global_batch
    return Outputs(
        **arrays,
        patch_weights=jnp.full(arrays["patch_features"].shape[:2], 0.01),
        targets=targets,
        key=jax.random.key(0),
        layout=Layout(images, images // recipe.data.group_size, 1),
        student_temp=recipe.objective.student_temp,
        chunk=recipe.objective.chunk,
    )


def time_torch(recipe: Recipe, steps: int) -> dict[str, Any]:
    """The same sizes through torch_peer, in a process of its own."""
    m, c, h = recipe.model, recipe.crops, recipe.dino_head
    line = [sys.executable, "-m", "curia2_jax.planning.torch_peer.bench", "--json", f"--steps={steps}",
               f"--width={m.width}", f"--depth={m.depth}", f"--heads={m.heads}", f"--patch={m.patch_size}",
               f"--channels={m.in_channels}", f"--ffn={m.ffn}", f"--images={recipe.data.global_batch}",
               f"--global={c.global_size}", f"--local={c.local_size}", f"--num-local={c.num_local}",
               f"--prototypes={h.prototypes}", f"--hidden={h.hidden}", f"--bottleneck={h.bottleneck}",
               f"--regularizer={'koleo' if recipe.objective.term('koleo').weight else 'sigreg'}"]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"--against=torch: {line[2]} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
