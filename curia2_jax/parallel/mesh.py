"""The device mesh: `data` replicates the state, `fsdp` shards it; the batch is split over both.

`fsdp` equal to the devices of a node (or slice) is hybrid sharding: weights are gathered over the fast links of a node
only, and just the gradients of a device's own shard cross the network.
"""

import dataclasses

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from curia2_jax.errors import UserError

FSDP = "fsdp"
BATCH_AXES = ("data", FSDP)
BATCH = PartitionSpec(BATCH_AXES)


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    fsdp: int  # devices that share one copy of the state; all of them where there are fewer
    accumulation: int  # micro-batches a step


def make_mesh(c: ParallelConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh ("data", "fsdp") over all devices.

    The fsdp axis is the minor one: JAX numbers the devices of a process, and so of a node, in a row. On a TPU the axes
    are laid along those of the torus where that is possible; between slices there is only `data`.

    Raises:
      UserError: `parallel.fsdp` does not divide the number of devices (of a slice, if there are several).
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    fsdp, together = min(c.fsdp, len(devices)), len(devices) // slices
    if c.fsdp < 1 or together % fsdp:
        fits = [n for n in range(1, together + 1) if together % n == 0]
        where = f"{len(devices)} devices" if slices == 1 else f"{together} devices of a slice"
        raise UserError(f"config.parallel.fsdp: {c.fsdp} does not divide the {where}; write one of {fits}")
    shape = (len(devices) // fsdp, fsdp)
    if devices[0].platform == "tpu":
        inside = (shape[0] // slices, fsdp)
        if slices > 1:
            array = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1), devices, allow_split_physical_axes=True)
        else:
            array = mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    else:
        array = np.array(devices).reshape(shape)
    return Mesh(array, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def abstract_mesh(devices: int, fsdp: int) -> AbstractMesh:
    """The shape of `make_mesh` for so many devices, none of which has to be there."""
    return AbstractMesh((devices // fsdp, fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def platform_of(mesh: Mesh | None) -> str:
    """What the devices of a mesh are, "cpu", "gpu" or "tpu"; off a mesh "cpu", whose program runs everywhere."""
    return "cpu" if mesh is None else mesh.devices.flat[0].platform


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
        groups = [g for g in range(group_size, 1, -1) if global_batch % (g * accumulation * shards) == 0]
        other = f", or config.data.group_size={groups[0]}" if groups else ""
        raise UserError(
            f"config.data.global_batch: {global_batch} images are no whole groups of {group_size} in {accumulation} "
            f"micro-batch(es) on {shards} device(s); write {nearest}{other}"
        )


def local_rows(global_batch: int, mesh: Mesh) -> np.ndarray:
    """The rows of the global batch that this process's devices hold, ascending. (n,) int64."""
    sharding = NamedSharding(mesh, BATCH)
    index_map = sharding.addressable_devices_indices_map((global_batch,))
    pieces = [index[0] for index in index_map.values() if index is not None]
    rows = {row for piece in pieces for row in range(*piece.indices(global_batch))}
    return np.array(sorted(rows), np.int64)
