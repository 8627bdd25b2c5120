"""Rules from parameter path to PartitionSpec; first match wins; resolved once from the abstract state.

Moments and teacher have the paths of their parameter inside their own, so they follow the same rules.
"""

import math
import re
from typing import Any

import jax
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from curia2_jax.parallel.mesh import BATCH_AXES, FSDP

PyTree = Any

# The axes of an array that may be sharded over fsdp, the best one first; none: it stays whole. Block kernels are
# stacked: (depth, in, out); of their input axis a shard is a run of whole rows.
RULES: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"blocks/.*/kernel$", (1, 2)),
    (r"(dino_head|ibot_head|projector)/mlp_\d/kernel$", (0, 1)),
    (r"last_layer/(v|kernel)$", (1,)),
    (r"last_layer/g$", (0,)),
    (r"pos_embed$", (2,)),
    (r"patch_embed/kernel$", (3,)),
    (r"(bias|centers/(dino|ibot))$", ()),  # vectors, a few hundred KiB at most
)
SMALL = 2**18  # bytes; below that an array is replicated: gathering it costs more than keeping it
# TPUs store bfloat16 matrices in tiles of 16 x 128: a shard that is no whole number of tiles is gathered by an
# all-reduce, at twice the bytes. Other devices do not mind.
_TILE = {-2: 16, -1: 128}


def path_of(path: tuple) -> str:
    """`params/backbone/blocks/attn/query/kernel` for a key path of jax.tree_util."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def state_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many pieces the state is split."""
    return mesh.shape[FSDP]


def spec_of(path: str, shape: tuple[int, ...], itemsize: int, mesh: Mesh | AbstractMesh) -> tuple[P, str]:
    """(spec, why) of one array: a rule, or replicated with the reason."""
    if math.prod(shape) * itemsize < SMALL:
        return P(), f"replicated: under {SMALL // 2**10} KiB"
    fsdp = state_shards(mesh)
    for pattern, axes in RULES:
        if re.search(pattern, path):
            if not axes:
                return P(), "replicated: a vector, which costs more to gather than to keep"
            divides = [axis for axis in axes if shape[axis] % fsdp == 0]
            if not divides:
                sizes = ", ".join(f"axis {axis} of {shape[axis]}" for axis in axes)
                return P(), f"replicated: {sizes} does not divide by fsdp {fsdp}"
            tiled = [axis for axis in divides if shape[axis] // fsdp % _TILE.get(axis - len(shape), 1) == 0]
            axis = (tiled or divides)[0]
            return P(*(None,) * axis, FSDP, *(None,) * (len(shape) - axis - 1)), f"rule {pattern}, axis {axis}"
    return P(), "replicated: no rule"


def state_shardings(abstract_state: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """A NamedSharding for every array of the state."""

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, spec_of(path_of(path), leaf.shape, leaf.dtype.itemsize, mesh)[0])

    return jax.tree_util.tree_map_with_path(one, abstract_state)


def spread(x: Array, mesh: Mesh | None, axis: int = 0) -> Array:
    """Pins an axis of an array to the axes of the batch; off a mesh nothing."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*(None,) * axis, BATCH_AXES)))


def whole(x: Array, mesh: Mesh | None) -> Array:
    """Pins an array to be on every device as it is; off a mesh nothing."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P()))


def gathered(kernel: Array, mesh: Mesh | None) -> Array:
    """Prototypes (bottleneck, K), sharded at rest, whole on every device: once, and not once a chunk of a loss.

    Their gradient goes back in shards: summed whole on every device it would be twice the bytes.
    """
    if mesh is None or kernel.shape[1] % state_shards(mesh):
        return kernel
    everywhere, in_shards = (NamedSharding(mesh, P(None, axis)) for axis in (None, FSDP))
    gather = jax.custom_vjp(lambda k: jax.lax.with_sharding_constraint(k, everywhere))
    gather.defvjp(lambda k: (gather(k), None), lambda _, g: (jax.lax.with_sharding_constraint(g, in_shards),))
    return gather(kernel)


def table(abstract_state: PyTree, mesh: Mesh) -> list[dict[str, Any]]:
    """One row an array that is not SMALL: path, shape, bytes, spec, and why."""
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if size >= SMALL:
            spec, why = spec_of(path_of(path), leaf.shape, leaf.dtype.itemsize, mesh)
            rows.append({"path": path_of(path), "shape": leaf.shape, "bytes": size, "spec": str(spec), "why": why})
    return rows
