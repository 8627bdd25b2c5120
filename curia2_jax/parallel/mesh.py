"""The device mesh: `data` replicates the state, `fsdp` shards it; the batch is split over both."""

import dataclasses

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from curia2_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")
BATCH = PartitionSpec(BATCH_AXES)


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    fsdp: int  # devices that share one copy of the state
    accumulation: int  # micro-batches a step


def make_mesh(c: ParallelConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh ("data", "fsdp") over all devices.

    The fsdp axis is the minor one, so that a copy of the state lies within a node or a slice of neighbours.

    Raises:
      UserError: `parallel.fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if c.fsdp < 1 or len(devices) % c.fsdp:
        fits = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise UserError(
            f"config.parallel.fsdp: {c.fsdp} does not divide the {len(devices)} devices; write one of {fits}"
        )
    shape = (len(devices) // c.fsdp, c.fsdp)
    return jax.make_mesh(shape, BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_shards(mesh: Mesh | None) -> int:
    """Into how many pieces the batch is split."""
    return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def check_batch(global_batch: int, group_size: int, accumulation: int, shards: int) -> None:
    """A batch shard must hold whole groups in every micro-batch.

    Raises:
      UserError: with the nearest batches that do.
    """
    unit = group_size * accumulation * shards
    if global_batch % unit:
        low, high = global_batch // unit * unit, (global_batch // unit + 1) * unit
        nearest = f"{high}" if low == 0 else f"{low} or {high}"
        raise UserError(
            f"config.data.global_batch: {global_batch} images are no whole groups of {group_size} in {accumulation} "
            f"micro-batch(es) on {shards} device(s); write {nearest}, or another data.group_size"
        )


def local_rows(global_batch: int, mesh: Mesh) -> np.ndarray:
    """The rows of the global batch that this process's devices hold, ascending. (n,) int64."""
    sharding = NamedSharding(mesh, BATCH)
    index_map = sharding.addressable_devices_indices_map((global_batch,))
    rows = {row for (piece,) in index_map.values() for row in range(*piece.indices(global_batch))}
    return np.array(sorted(rows), np.int64)
