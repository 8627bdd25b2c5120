"""Stochastic depth on subsets of the batch (DINOv2, arXiv 2304.07193, section 5)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key


def subset_size(crops: int, rate: float) -> int:
    """How many of `crops` crops a residual branch computes when drop path has this rate."""
    return max(int(crops * (1 - rate)), 1)


def on_subset(
    branch: Callable[[Array, float], Array], x: Float[Array, "crops T D"], keys: Key[Array, " groups"], rate: float
) -> Float[Array, "crops T D"]:
    """Batch-subset stochastic depth: x + branch(x, g / s) on s of the g crops of each group only.

    Of the groups, g = crops / groups each, the s kept crops are a uniform subset without replacement; the
    branch gets no others, and is told the factor g / s to multiply its result by. Gather and scatter are batched over
    the groups, so a device that holds whole groups needs nothing from the others.
    """
    groups = keys.shape[0]
    crops = x.shape[0] // groups
    kept = subset_size(crops, rate)
    # Sorted: the order inside the subset is of no consequence, and memory is read in order.
    index = jax.vmap(lambda key: jnp.sort(jax.random.permutation(key, crops)[:kept]))(keys)
    grouped = x.reshape(groups, crops, *x.shape[1:])
    subset = jax.vmap(lambda group, i: group.at[i].get(indices_are_sorted=True, unique_indices=True))(grouped, index)
    change = branch(subset.reshape(groups * kept, *x.shape[1:]), crops / kept).astype(x.dtype).reshape(subset.shape)
    add = jax.vmap(lambda group, i, c: group.at[i].add(c, indices_are_sorted=True, unique_indices=True))
    return add(grouped, index, change).reshape(x.shape)
