"""What is known of a step on machines that are not here; called by launch/plan.py."""

import dataclasses
import functools
import re
import time
from typing import Any

from curia2_jax.errors import UserError


def target(topology: str | None, gpus: str | None) -> tuple[str, int]:
    """(chip, devices) of the flags.

    Raises:
      UserError: neither or both were given, or one that says nothing.
    """
    if (topology is None) == (gpus is None):
        raise UserError("--topology or --gpus: write one of them, such as --topology=v5p:4x4x4 or --gpus=h100x64")
    if topology is not None:
        m = re.fullmatch(r"(v\w+):(\d+(?:x\d+)+)", topology)
        if not m:
            raise UserError(f"--topology={topology}: write CHIP:AxB or CHIP:AxBxC, such as v5e:8x8 or v5p:4x4x4")
        devices = 1
        for side in m.group(2).split("x"):
            devices *= int(side)
        return m.group(1), devices
    m = re.fullmatch(r"(\w+?)x(\d+)", gpus)
    if not m or int(m.group(2)) < 1:
        raise UserError(f"--gpus={gpus}: write CHIPxNUMBER, such as h100x64")
    return m.group(1), int(m.group(2))


def tpu_devices(topology: str) -> list[Any]:
    """Descriptions of the devices of a TPU slice.

    Raises:
      UserError: libtpu does not know the slice.
    """
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as e:  # libtpu raises what it likes
        raise UserError(f"--topology={topology}: {' '.join(str(e).split())[:200]}") from e


def compile_step(recipe: Any, mesh: Any, platform: str) -> Any:
    """The whole training step, compiled for the devices of `mesh`; nothing is allocated."""
    import jax
    from jax.sharding import NamedSharding

    from curia2_jax.parallel import compiler
    from curia2_jax.parallel.mesh import BATCH
    from curia2_jax.planning import synthetic
    from curia2_jax.training.initial import abstract_sharded_state
    from curia2_jax.training.step import train_step

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


def plan(recipe: Any, name: str, devices: list[Any], *, tpu: bool, compile_it: bool = True) -> dict[str, Any]:
    """Everything that is known of a step of `recipe` on `devices`."""
    from curia2_jax.data.crops.masks import masked_per_group
    from curia2_jax.parallel.mesh import batch_shards, check_batch, make_mesh
    from curia2_jax.planning import chips, flops, hlo
    from curia2_jax.planning import estimates as plans
    from curia2_jax.training.initial import abstract_sharded_state
    from curia2_jax.training.state import count

    chip = chips.chip(name)
    mesh = make_mesh(recipe.parallel, devices)
    shards, number = batch_shards(mesh), len(devices)
    check_batch(recipe.data.global_batch, recipe.data.group_size, recipe.parallel.accumulation, shards)
    state = abstract_sharded_state(recipe, mesh)
    masked = masked_per_group(recipe.data.group_size, recipe.model.grid**2, recipe.masks)
    params_bytes, state_bytes = plans.device_bytes(state.params), plans.device_bytes(state)
    parts = plans.activations(recipe, masked, shards)
    estimate = state_bytes + params_bytes + sum(parts.values())
    out: dict[str, Any] = {
        "devices": f"{number} x {name}, mesh {dict(mesh.shape)}",
        "parameters": {"backbone": count(state.params["backbone"]), "all": count(state.params)},
        "batch": {"images": recipe.data.global_batch, "a device": recipe.data.global_batch // shards,
                  "micro-batches": recipe.parallel.accumulation},
        "bytes of a device": {"state": state_bytes, "gradients": params_bytes,
                               **{f"{k} (estimate)": v for k, v in parts.items()}, "peak (estimate)": estimate},
    }  # fmt: skip
    peak, source = estimate, "estimate"
    if compile_it:
        began = time.perf_counter()
        program = compile_step(recipe, mesh, "tpu" if tpu else "cpu")
        out["compile_s"] = time.perf_counter() - began
        text = program.as_text()
        out["collectives from"] = "the TPU compiler" if tpu else (
            "the CPU compiler; the bytes are above a GPU's, because it gathers in float32 and writes a reduce-scatter "
            "as an all-reduce"
        )  # fmt: skip
        out["collectives"] = plans.collective_table(text, state.params, recipe)
        out["wire_bytes_of_program"] = sum(hlo.wire_bytes(text).values())
        out["flops_of_program"] = hlo.total_flops(text)
        if tpu:
            peak, source = program.memory_analysis().peak_memory_in_bytes, "compiled program"
            out["bytes of a device"]["peak (compiled program)"] = peak
    fits = peak <= plans.HEADROOM * chip.memory
    out["fits"] = {"peak_bytes": peak, "from": source, "memory_bytes": chip.memory, "fits": fits}
    if not fits:
        out["fits"]["smallest change that does, by estimate"] = smallest_change(recipe, chip, devices, peak / estimate)

    need = plans.fewest_bytes(state.params, recipe)
    work, again = flops.update(recipe, masked), flops.recomputed(recipe)
    total = sum(work.values()) + again + flops.views(recipe)
    traffic = plans.memory_traffic(recipe, params_bytes, masked, number)
    inside, across = plans.split_wire(state.params, recipe, chip, number)
    t = plans.times(total, traffic, inside, across, number, chip)
    steps, images = recipe.schedule.total_steps, recipe.data.global_batch
    out["step"] = {
        "tflop_per_image": {**{k: v / images / 1e12 for k, v in work.items()}, "recomputed": again / images / 1e12,
                            "views": flops.views(recipe) / images / 1e12},
        "fewest_wire_bytes_of_a_device": need,
        "memory_traffic_bytes_of_a_device (estimate)": traffic,
        "least_s": {"products at peak": t.compute, "memory": t.memory, "wire": t.wire, "bound": t.lower_bound},
        "expected_s": t.expected,
        "expected_images_per_s_per_device": images / t.expected / number,
        "expected_mfu": flops.mfu(sum(work.values()), t.expected, number, chip.flops),
    }  # fmt: skip
    out["schedule"] = {
        "steps": steps,
        "images_seen": steps * images,
        "hours": steps * t.expected / 3600,
        "device_hours": steps * t.expected / 3600 * number,
    }
    return out


def smallest_change(recipe: Any, chip: Any, devices: list[Any], factor: float) -> str:
    """The first change, from cheap to dear, whose estimate times `factor` fits; as flags."""
    from curia2_jax.data.crops.masks import masked_per_group
    from curia2_jax.parallel.mesh import batch_shards, make_mesh
    from curia2_jax.planning import estimates as plans
    from curia2_jax.training.initial import abstract_sharded_state

    masked = masked_per_group(recipe.data.group_size, recipe.model.grid**2, recipe.masks)
    number = len(devices)

    def with_(fsdp: int, remat: str, accumulation: int, images: int) -> Any:
        parallel = dataclasses.replace(recipe.parallel, fsdp=fsdp, accumulation=accumulation)
        return dataclasses.replace(
            recipe,
            parallel=parallel,
            model=dataclasses.replace(recipe.model, remat=remat),
            data=dataclasses.replace(recipe.data, global_batch=images),
        )

    now, batch, group = recipe.parallel, recipe.data.global_batch, recipe.data.group_size
    fsdps = [n for n in (2**i for i in range(13)) if n > now.fsdp and number % n == 0]
    remats = [r for r in ("nothing_saveable",) if r != recipe.model.remat]
    micro = [n for n in (2**i for i in range(1, 10)) if batch % (group * n * number) == 0]
    widest = fsdps[-1:] or [now.fsdp]
    tries = [(n, recipe.model.remat, now.accumulation, batch) for n in fsdps]
    tries += [(now.fsdp, r, now.accumulation, batch) for r in remats]
    tries += [(n, r, now.accumulation, batch) for n in fsdps for r in remats]
    tries += [(now.fsdp, recipe.model.remat, n, batch) for n in micro]
    tries += [(widest[0], "nothing_saveable", n, batch) for n in micro]
    smaller = [n for n in (batch // 2**i for i in range(1, 10)) if n and n % (group * number) == 0]
    tries += [(widest[0], "nothing_saveable", 1, n) for n in smaller]
    for fsdp, remat, accumulation, images in tries:
        other = with_(fsdp, remat, accumulation, images)
        mesh = make_mesh(other.parallel, devices)
        state = abstract_sharded_state(other, mesh)
        peak = plans.device_bytes(state) + plans.device_bytes(state.params)
        peak += sum(plans.activations(other, masked, batch_shards(mesh)).values())
        if peak * factor <= plans.HEADROOM * chip.memory:
            changes = {
                "parallel.fsdp": (now.fsdp, fsdp),
                "model.remat": (recipe.model.remat, remat),
                "parallel.accumulation": (now.accumulation, accumulation),
                "data.global_batch": (batch, images),
            }
            said = [f"--config.{key}={new}" for key, (old, new) in changes.items() if new != old]
            return f"{' '.join(said)} (about {peak * factor / 2**30:.1f} GiB)"
    return f"none on {number} x {chip.name}: take more devices, or a smaller data.group_size with a smaller batch"


def weak_scaling(recipe: Any, name: str, images: int) -> list[dict[str, Any]]:
    """8 to 4,096 devices with the same number of images each, by arithmetic alone."""
    from jax.sharding import AbstractMesh, AxisType

    from curia2_jax.data.crops.masks import masked_per_group
    from curia2_jax.planning import chips, flops
    from curia2_jax.planning import estimates as plans
    from curia2_jax.training.initial import abstract_sharded_state

    chip, rows = chips.chip(name), []
    masked = masked_per_group(recipe.data.group_size, recipe.model.grid**2, recipe.masks)
    for number in (2**i for i in range(3, 13)):
        one = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, global_batch=images * number))
        fsdp = min(recipe.parallel.fsdp, number)
        mesh = AbstractMesh((number // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        params = abstract_sharded_state(one, mesh).params
        inside, across = plans.split_wire(params, one, chip, number)
        total = sum(flops.update(one, masked).values()) + flops.recomputed(one) + flops.views(one)
        traffic = plans.memory_traffic(one, plans.device_bytes(params), masked, number)
        t = plans.times(total, traffic, inside, across, number, chip)
        rows.append({
            "devices": number,
            "global_batch": images * number,
            "wire_bytes_inside": inside,
            "wire_bytes_across": across,
            "compute_s": t.compute / plans.EFFICIENCY,
            "wire_s": t.wire,
            "expected_s": t.expected,
            "images_per_s": images * number / t.expected,
            "wire_overtakes_below_images": images * t.wire / (t.compute / plans.EFFICIENCY),
            "note": "not a recipe" if images * number > plans.RECIPE_BATCH else "",
        })  # fmt: skip
    return rows
