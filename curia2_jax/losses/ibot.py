"""iBOT loss on masked patches (iBOT, arXiv 2111.07832, equation 2; weights as in DINOv2, arXiv 2304.07193)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int32

from curia2_jax.losses.linear_cross_entropy import linear_cross_entropy
from curia2_jax.losses.targets import Targets


def masked_patches(
    masks: Bool[Array, "groups crops N"], count: int
) -> tuple[Int32[Array, "groups count"], Float[Array, "groups count"]]:
    """Where the masked patches of each group are, and what each weighs.

    masks: exactly `count` (static) true entries in every group. Returns the index into the group's crops * N patches,
    ascending, and the weight, 1 / (masked patches of the same crop), float32, or float64 under x64.
    """
    groups, crops, patches = masks.shape
    flat = masks.reshape(groups, crops * patches)
    index = jax.vmap(lambda group: jnp.nonzero(group, size=count)[0])(flat).astype(jnp.int32)
    per_crop = 1 / jnp.maximum(masks.sum(axis=-1).astype(float), 1)
    return index, jnp.take_along_axis(per_crop, index // patches, axis=1)


def ibot_loss(
    features: Float[Array, "shards rows bottleneck"],
    kernel: Float[Array, "bottleneck K"],
    targets: Targets,
    weights: Float[Array, "shards rows"],
    *,
    crops: int,
    temp: float = 0.1,
    chunk: int,
    bound: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of masked student patches against the teacher's, averaged inside each crop, then over crops.

    features: of the student's head at masked patches. targets: the teacher's at the same patches. weights:
    1 / (masked patches of the crop). crops: number of all global crops of the batch, masked or not, as in DINOv2.
    chunk: rows per shard and scan step. bound: see `linear_cross_entropy`.
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
