"""DINO loss between class tokens of different crops of an image (DINOv2, arXiv 2304.07193, section 4)."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from curia2_jax.losses.linear_cross_entropy import linear_cross_entropy
from curia2_jax.losses.targets import Targets


def dino_loss(
    global_features: Float[Array, "shards images 2 bottleneck"],
    local_features: Float[Array, "shards images local bottleneck"],
    kernel: Float[Array, "bottleneck K"],
    targets: Targets,
    *,
    temp: float = 0.1,
    chunk: int,
    bound: Float[Array, ""] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of every student crop against every teacher view except its own, all pairs weighted alike.

    The features are of the student's head. targets: the teacher's, (shards, images * 2, K), image-major, views *not*
    swapped.
    chunk: student rows per shard and scan step. bound: see `linear_cross_entropy`.

    The weight of a pair is 1 / (2 + max(2 L, 1)) / (number of images), DINOv2's normalization. Returns the loss and,
    for logging only, its two parts "dino_global" (global against the other global) and "dino_local".
    """
    shards, images, _, _ = global_features.shape
    num_local = local_features.shape[2]
    features = jnp.concatenate([global_features, local_features], axis=2)
    mixing = np.concatenate([[[0.0, 1.0], [1.0, 0.0]], np.ones((num_local, 2))])
    weight = 1 / (2 + max(2 * num_local, 1)) / (shards * images)
    weights = jnp.full((shards, images, 2 + num_local), weight, jnp.promote_types(features.dtype, jnp.float32))
    loss, parts = linear_cross_entropy(
        features, kernel, targets, weights, mixing=mixing, temp=temp, chunk=chunk, bound=bound
    )
    return loss, {"dino_global": parts[:2].sum(), "dino_local": parts[2:].sum()}
