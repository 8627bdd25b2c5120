"""Memory, operations, bytes on the wire and time of a step, before anything is paid for.

What a compiler says about a program for the very chips (TPU topologies) is taken as it is; the rest is arithmetic on
the sizes of a recipe (a `curia2_jax.training.recipe.Recipe`, only numbers are read) and is called an estimate.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from curia2_jax.models.vit import ViTConfig
from curia2_jax.planning import flops, hlo
from curia2_jax.planning.chips import Chip
from curia2_jax.training.recipe import Recipe
from curia2_jax.training.state import TrainState

PyTree = Any
# Of steps of ViT-L and ViT-g on one H200 (docs/clusters.md): products reach 70 % of the peak, by a profile; and what
# nothing hides, norms, gates, biases, drop path and copies, takes as long as 2.4 times the traffic of their operands.
PRODUCTS, PASSES = 0.70, 2.4
RECIPE_BATCH = 16_384  # beyond it nobody has shown this recipe to train
# Shares of the memory that a program can have. JAX takes so much of a GPU's, unless XLA_PYTHON_CLIENT_MEM_FRACTION says
# otherwise; the rest of a TPU's is the runtime's.
GPU_SHARE, TPU_SHARE = 0.75, 0.93


def usable(chip: Chip) -> float:
    """Bytes of a chip's memory that a program can have."""
    return (GPU_SHARE if chip.node else TPU_SHARE) * chip.memory


def device_bytes(tree: PyTree) -> int:
    """Bytes that one device holds of arrays (or ShapeDtypeStructs) with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def residuals(model: ViTConfig, tokens: int, itemsize: int, kernels: bool = True) -> int:
    """Bytes that one block keeps of one crop for the backward pass, by the remat policy; without its own input.

    `kernels`: attention keeps its scores on the chip.
    """
    hidden = model.hidden_matrices * model.hidden
    named = {
        "qkv": 3 * model.width,
        "attn_out": model.width + (model.heads * 4 // itemsize if kernels else 0),  # cuDNN's statistics, in float32
        "ffn_hidden": hidden,
    }
    dense = 3 * model.width + 2 * model.width + hidden  # outputs of every matrix product with a weight
    policies = {
        "nothing_saveable": 0,
        "dots_with_no_batch_dims_saveable": dense,
        "dots_saveable": dense + model.heads * tokens + model.width,
    }
    if model.remat in ("none", "everything_saveable"):
        # Also norms (in float32 as well), the product inside SwiGLU, and scores before and after the softmax.
        wide = 4 * model.width * (1 + 4 // itemsize)
        scores = 0 if kernels else 3 * model.heads * tokens
        per_token = dense + wide + scores + model.width + 2 * model.hidden
    else:
        words = [word.strip() for word in model.remat.split(",")]
        policy = max((policies[word] for word in words if word in policies), default=0)
        # The outputs of products with a weight have qkv and ffn_hidden among them.
        apart = [word for word in words if word in named and (not policy or word == "attn_out")]
        per_token = policy + sum(named[word] for word in apart)
    return tokens * per_token * itemsize


def memory(recipe: Recipe, state: TrainState, masked_per_group: int, shards: int, kernels: bool) -> dict[str, int]:
    """Estimated bytes on one device at the peak of a step, by what they are: their sum is the peak."""
    held = {"state": device_bytes(state), "gradients": device_bytes(state.params)}
    return held | activations(recipe, masked_per_group, shards, kernels)


def activations(recipe: Recipe, masked_per_group: int, shards: int, kernels: bool = True) -> dict[str, int]:
    """The same, parameters and gradients not counted."""
    m, c, size = recipe.model, recipe.crops, jnp.dtype(recipe.model.dtype).itemsize
    images = recipe.data.global_batch // shards  # of one device
    micro = images // recipe.parallel.accumulation
    rows = images // recipe.data.group_size * masked_per_group
    out = {"block inputs": 0, "kept by remat": 0}
    working = 0
    for side, crops in ((c.global_size, 2 * micro), (c.local_size, c.num_local * micro)):
        if not crops:
            continue
        tokens = (side // m.patch_size) ** 2 + 1 + m.registers
        kept = flops.kept_share(crops // (micro // recipe.data.group_size), m.drop_path)
        out["block inputs"] += m.depth * crops * tokens * m.width * size
        out["kept by remat"] += int(m.depth * crops * kept * residuals(m, tokens, size, kernels))
        everything = dataclasses.replace(m, remat="none")
        working = max(working, int(crops * kept * residuals(everything, tokens, size, kernels)))
    out["one block, recomputed"] = working
    heads = {"dino": (recipe.dino_head, 2 * images), "ibot": (recipe.ibot_head, rows)} if recipe.distills else {}
    out["teacher logits"] = sum(n * h.prototypes * size for h, n in heads.values())
    largest = max((h.prototypes for h, _ in heads.values()), default=0)
    out["one chunk of logits"] = 4 * recipe.objective.chunk * largest * 4  # logits, targets, slopes, exponentials
    # Last layers gathered in float32, and their gradients of this device.
    out["last layers"] = sum(2 * h.bottleneck * h.prototypes * 4 for h, _ in heads.values())
    out["head features"] = sum(3 * (n + n * c.num_local // 2) * h.hidden * size for h, n in heads.values())
    canvas = recipe.data.side
    crops_bytes = images * 4 * (2 * c.global_size**2 + c.num_local * c.local_size**2) * m.in_channels
    out["slices and crops"] = images * canvas * canvas * (2 + 4) + 2 * crops_bytes
    return out


def fewest_bytes(params: PyTree, recipe: Recipe) -> dict[str, float]:
    """The least that the sharding makes one device send in a step, by collective, in bytes.

    Every sharded parameter is gathered once a forward and once a backward pass (teacher on global crops; student on
    global and local crops, each micro-batch; the last layers once), in the compute type; gradients are
    reduce-scattered over fsdp after each backward pass, what is left is all-reduced over data, in the compute type in
    the blocks (their products give no more) and in float32 elsewhere.
    """
    size, passes = jnp.dtype(recipe.model.dtype).itemsize, recipe.parallel.accumulation
    crops = 2 if recipe.crops.num_local else 1
    total = {"all-gather": 0.0, "reduce-scatter": 0.0, "all-reduce": 0.0}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        whole = math.prod(leaf.shape) * size
        fsdp = math.prod(leaf.shape) // math.prod(leaf.sharding.shard_shape(leaf.shape))
        replicas = leaf.sharding.num_devices // fsdp
        student = crops if "backbone" in name else 1
        forward_and_backward = student if "last_layer" in name else 2 * student
        gradient = whole if "blocks" in name else math.prod(leaf.shape) * 4
        total["all-gather"] += whole * (fsdp - 1) / fsdp * passes * (1 + forward_and_backward)
        total["reduce-scatter"] += gradient * (fsdp - 1) / fsdp * passes * student
        total["all-reduce"] += 2 * gradient / fsdp * (replicas - 1) / replicas * passes * student
    return total


def memory_traffic(recipe: Recipe, params_bytes: int, masked_per_group: int, devices: int, *, kernels: bool) -> float:
    """Estimated bytes to and from the memory of one device in a step: operands and results of matrix products, scores
    of attention unless a kernel keeps them on the chip, the optimizer's passes over the state, and the prototypes'
    logits."""
    m, c, size = recipe.model, recipe.crops, jnp.dtype(recipe.model.dtype).itemsize
    hidden = m.hidden_matrices * m.hidden
    per_token = size * (16 * m.width + 3 * hidden)
    forward = 0.0
    teacher = int(recipe.distills)  # one pass more over the global crops
    for side, crops, passes in ((c.global_size, 2, 3 + teacher), (c.local_size, c.num_local, 3)):
        tokens = (side // m.patch_size) ** 2 + 1 + m.registers
        forward += passes * crops * tokens * m.depth * per_token
        if not kernels:
            # Float32, in tiles of 8 x 128: written once and read three times forward (the teacher's too), and ten such
            # passes backward with what is made again.
            scores = 4 * m.heads * (-(-tokens // 8) * 8) * (-(-tokens // 128) * 128)
            kept = flops.kept_share(crops * recipe.data.group_size, m.drop_path)
            forward += crops * m.depth * scores * (4 * (passes - 3) + kept * (4 + 10))
    images = recipe.data.global_batch
    rows = {"dino": 2 * images, "ibot": images // recipe.data.group_size * masked_per_group}
    logits = sum(
        n * getattr(recipe, f"{name}_head").prototypes * (6 * size + 4 * 4) for name, n in rows.items()
    )  # six passes over the teacher's, about four arrays of float32 for the student's chunk
    return (forward * images + teacher * logits) / devices + 10 * params_bytes


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds a step by each limit; the longest is the least that the step can take."""

    compute: float
    memory: float
    wire: float

    @property
    def lower_bound(self) -> float:
        return max(self.compute, self.memory, self.wire)

    @property
    def on_device(self) -> float:
        """What one device is expected to take, that waits for no other."""
        return self.compute / PRODUCTS + PASSES * self.memory

    @property
    def expected(self) -> float:
        """The wire is hidden behind what the devices do, where it is shorter."""
        return max(self.on_device, self.wire)


def times(total_flops: float, traffic: float, inside: float, across: float, devices: int, chip: Chip) -> Times:
    """Args: FLOPs of all devices; bytes of one: to and from memory, inside its node or slice, and across them."""
    return Times(
        compute=total_flops / devices / chip.flops,
        memory=traffic / chip.bandwidth,
        wire=max(inside / chip.links, across / chip.network),
    )


def split_wire(params: PyTree, recipe: Recipe, chip: Chip, devices: int) -> tuple[float, float]:
    """(inside, across) a node, of the fewest bytes. Replicas over several nodes meet on the network."""
    need = fewest_bytes(params, recipe)
    node = chip.node or devices
    sharded = need["all-gather"] + need["reduce-scatter"]
    if devices <= node:
        return sharded + need["all-reduce"], 0.0
    if recipe.parallel.fsdp > node:
        return 0.0, sharded + need["all-reduce"]
    # Reduced inside the node first, then each device carries its share across.
    return sharded + need["all-reduce"], need["all-reduce"] / max(node // recipe.parallel.fsdp, 1)


def collective_table(text: str, params: PyTree, recipe: Recipe) -> list[dict[str, Any]]:
    """Collectives of a compiled program by kind, beside the fewest bytes that the sharding needs.

    A compiler may write a reduce-scatter as an all-reduce (CPU): then its bytes, twice as many, stand in that row.
    """
    found, sent, need = hlo.collectives(text), hlo.wire_bytes(text), fewest_bytes(params, recipe)
    rows = []
    for kind in hlo.COLLECTIVES:
        row = found.get(kind, {"count": 0, "runs": 0})
        figures = {"wire_bytes": sent[kind], "fewest_wire_bytes": need.get(kind, 0.0)}
        rows.append({"kind": kind, "count": row["count"], "runs": row["runs"], **figures})
    return rows
