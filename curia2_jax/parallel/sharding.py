"""Rules from parameter path to PartitionSpec; first match wins; resolved once from the abstract state.

Moments and teacher have the paths of their parameter inside their own, so they follow the same rules.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PyTree = Any

# Block kernels are stacked: (depth, in, out). The input axis is sharded: a shard is then a run of whole rows.
RULES: tuple[tuple[str, P], ...] = (
    (r"blocks/.*/kernel$", P(None, "fsdp", None)),
    (r"(dino|ibot)_head/mlp_\d/kernel$", P("fsdp", None)),
    (r"last_layer/(v|kernel)$", P(None, "fsdp")),
    (r"pos_embed$", P(None, None, "fsdp")),
    (r"patch_embed/kernel$", P(None, None, None, "fsdp")),
)
SMALL = 2**20  # bytes; below that an array is replicated: gathering it costs more than keeping it


def path_of(path: tuple) -> str:
    """`params/backbone/blocks/attn/query/kernel` for a key path of jax.tree_util."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def spec_of(path: str, shape: tuple[int, ...], itemsize: int, mesh: Mesh) -> tuple[P, str]:
    """(spec, why) of one array: a rule, or replicated with the reason."""
    if math.prod(shape) * itemsize < SMALL:
        return P(), "replicated: under 1 MiB"
    for pattern, spec in RULES:
        if re.search(pattern, path):
            axis = spec.index("fsdp")
            if shape[axis] % mesh.shape["fsdp"]:
                return P(), f"replicated: axis {axis} of {shape[axis]} does not divide by fsdp {mesh.shape['fsdp']}"
            return spec, f"rule {pattern}"
    return P(), "replicated: no rule"


def state_shardings(abstract_state: PyTree, mesh: Mesh) -> PyTree:
    """A NamedSharding for every array of the state."""

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, spec_of(path_of(path), leaf.shape, leaf.dtype.itemsize, mesh)[0])

    return jax.tree_util.tree_map_with_path(one, abstract_state)


def table(abstract_state: PyTree, mesh: Mesh) -> list[dict[str, Any]]:
    """One row an array over 1 MiB: path, shape, bytes, spec, and why."""
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if size >= SMALL:
            spec, why = spec_of(path_of(path), leaf.shape, leaf.dtype.itemsize, mesh)
            rows.append({"path": path_of(path), "shape": leaf.shape, "bytes": size, "spec": str(spec), "why": why})
    return rows
