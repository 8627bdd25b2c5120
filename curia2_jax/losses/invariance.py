"""The prediction term of LeJEPA (Balestriero and LeCun, arXiv 2511.08544): every view of an image lies at one point."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def invariance(projections: Float[Array, "N V D"], global_views: int = 2) -> Float[Array, ""]:
    """Mean squared distance, over images, views and dimensions, of every view's projection to the center of its image.

    projections: the first `global_views` of the V views of each of N images are the global ones, whose mean is the
    center. No gradient is stopped: what keeps the answer from being one point for all images is SigReg of the same
    projections. In float32 or better.
    """
    wide = projections.astype(jnp.promote_types(projections.dtype, jnp.float32))
    center = wide[:, :global_views].mean(axis=1, keepdims=True)
    return jnp.square(wide - center).mean()
