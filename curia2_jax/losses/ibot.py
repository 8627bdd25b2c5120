"""iBOT loss on masked patches (iBOT, arXiv 2111.07832, equation 2; weights as in DINOv2, arXiv 2304.07193)."""

import jax
import jax.numpy as jnp
import numpy as np

from curia2_jax.losses.linear_cross_entropy import linear_cross_entropy
from curia2_jax.losses.targets import Targets


def masked_patches(masks: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Where the masked patches of each group are, and what each weighs.

    masks: (groups, crops, N) bool with exactly ``count`` (static) true entries in every group. Returns index
    (groups, count) int32 into the group's crops * N patches, ascending, and weight (groups, count) =
    1 / (masked patches of the same crop), float32, or float64 under x64.
    """
    groups, crops, patches = masks.shape
    flat = masks.reshape(groups, crops * patches)
    index = jax.vmap(lambda group: jnp.nonzero(group, size=count)[0])(flat).astype(jnp.int32)
    per_crop = 1 / jnp.maximum(masks.sum(axis=-1).astype(float), 1)
    return index, jnp.take_along_axis(per_crop, index // patches, axis=1)


def ibot_loss(
    features: jax.Array,
    kernel: jax.Array,
    targets: Targets,
    weights: jax.Array,
    *,
    crops: int,
    temp: float = 0.1,
    chunk: int,
    bound: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of masked student patches against the teacher's, averaged inside each crop, then over crops.

    features: (shards, rows, bottleneck) of the student's head at masked patches; targets: the teacher's at the same
    patches, (shards, rows, K); weights: (shards, rows), 1 / (masked patches of the crop). ``crops``: number of all
    global crops of the batch, masked or not, as in DINOv2. chunk: rows per shard and scan step. bound: see
    ``linear_cross_entropy``.
    """
    loss, _ = linear_cross_entropy(
        features[:, :, None, :],
        kernel,
        targets,
        weights[:, :, None] / crops,
        mixing=np.ones((1, 1)),
        temp=temp,
        chunk=chunk,
        bound=bound,
    )
    return loss
