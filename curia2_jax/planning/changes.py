"""What to change where a plan does not fit, and how it scales: both by estimate."""

import dataclasses
from typing import Any

import jax

from curia2_jax.data.crops.masks import masked_per_group
from curia2_jax.parallel.mesh import abstract_mesh, batch_shards, make_mesh
from curia2_jax.planning import estimates, flops
from curia2_jax.planning.chips import Chip
from curia2_jax.training.initial import abstract_sharded_state
from curia2_jax.training.recipe import Recipe


def smallest(recipe: Recipe, chip: Chip, devices: list[jax.Device], factor: float, kernels: bool) -> str:
    """The first change, from cheap to dear, whose estimate times `factor` fits; as flags."""
    masked = masked_per_group(recipe.data.group_size, recipe.model.grid**2, recipe.masks)
    for fsdp, remat, accumulation, images in _tries(recipe, len(devices)):
        other = dataclasses.replace(
            recipe,
            parallel=dataclasses.replace(recipe.parallel, fsdp=fsdp, accumulation=accumulation),
            model=dataclasses.replace(recipe.model, remat=remat),
            data=dataclasses.replace(recipe.data, global_batch=images),
        )
        mesh = make_mesh(other.parallel, devices)
        state = abstract_sharded_state(other, mesh)
        peak = factor * sum(estimates.memory(other, state, masked, batch_shards(mesh), kernels).values())
        if peak <= estimates.usable(chip):
            wanted = {
                "parallel.fsdp": (recipe.parallel.fsdp, fsdp),
                "model.remat": (recipe.model.remat, remat),
                "parallel.accumulation": (recipe.parallel.accumulation, accumulation),
                "data.global_batch": (recipe.data.global_batch, images),
            }
            flags = [f"--config.{key}={new}" for key, (old, new) in wanted.items() if new != old]
            return f"{' '.join(flags)} (about {peak / 2**30:.1f} GiB)"
    return f"none on {len(devices)} x {chip.name}: take more devices, or a smaller data.group_size with a smaller batch"


def _tries(recipe: Recipe, number: int) -> list[tuple[int, str, int, int]]:
    """(fsdp, remat, accumulation, batch), from cheap to dear."""
    now, remat, batch, group = recipe.parallel, recipe.model.remat, recipe.data.global_batch, recipe.data.group_size
    fsdps = [n for n in (2**i for i in range(13)) if n > now.fsdp and number % n == 0]
    widest = (fsdps or [now.fsdp])[-1]
    micro = [n for n in (2**i for i in range(1, 10)) if batch % (group * n * number) == 0]
    smaller = [n for n in (batch // 2**i for i in range(1, 10)) if n and n % (group * number) == 0]
    least = "nothing_saveable"
    return [
        *((n, remat, now.accumulation, batch) for n in fsdps),
        *([(now.fsdp, least, now.accumulation, batch)] if remat != least else []),
        *((n, least, now.accumulation, batch) for n in fsdps if remat != least),
        *((now.fsdp, remat, n, batch) for n in micro),
        *((widest, least, n, batch) for n in micro),
        *((widest, least, 1, n) for n in smaller),
    ]


def weak_scaling(recipe: Recipe, chip: Chip, images: int, kernels: bool) -> list[dict[str, Any]]:
    """8 to 4,096 devices with the same number of images each, by arithmetic alone."""
    rows = []
    masked = masked_per_group(recipe.data.group_size, recipe.model.grid**2, recipe.masks)
    for number in (2**i for i in range(3, 13)):
        one = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, global_batch=images * number))
        fsdp = min(recipe.parallel.fsdp, number)
        mesh = abstract_mesh(number, fsdp)
        params = abstract_sharded_state(one, mesh).params
        inside, across = estimates.split_wire(params, one, chip, number)
        total = sum(flops.update(one, masked).values()) + flops.recomputed(one) + flops.crops(one)
        traffic = estimates.memory_traffic(one, estimates.device_bytes(params), masked, number, kernels=kernels)
        t = estimates.times(total, traffic, inside, across, number, chip)
        rows.append({
            "devices": number,
            "global_batch": images * number,
            "wire_bytes_inside": inside,
            "wire_bytes_across": across,
            "on_device_s": t.on_device,
            "wire_s": t.wire,
            "expected_s": t.expected,
            "images_per_s": images * number / t.expected,
            "wire_overtakes_below_images": images * t.wire / t.on_device,
            "note": "not a recipe" if images * number > estimates.RECIPE_BATCH else "",
        })  # fmt: skip
    return rows
