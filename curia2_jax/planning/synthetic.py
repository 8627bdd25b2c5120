"""Batches with the shapes of the pipeline's and random content, for timing and planning without a corpus."""

import jax
import numpy as np
from jax.sharding import NamedSharding

from curia2_jax.data.crops.masks import ladder
from curia2_jax.training.recipe import Recipe


def shapes(recipe: Recipe, sharding: NamedSharding | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """What `training.step.train_step` takes as its batch."""
    rows, canvas, local = recipe.data.global_batch, recipe.data.side, recipe.crops.num_local
    arrays = {
        "slices": ((canvas, canvas), np.int16),
        "extent": ((2,), np.int32),
        "global_boxes": ((2, 4), np.float32),
        "local_boxes": ((local, 4), np.float32),
        "flips": ((2 + local,), np.bool_),
        "masks": ((2, recipe.model.grid**2), np.bool_),
        "is_ct": ((), np.bool_),
    }
    return {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding) for name, (shape, dtype) in arrays.items()
    }


def masks(recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """(B, 2, N) bool: every group has its ladder of masked patches, scattered at random."""
    size, patches = recipe.data.group_size, recipe.model.grid**2
    out = np.zeros((recipe.data.global_batch * 2, patches), bool)
    targets = np.tile(ladder(size, patches, recipe.masks), recipe.data.global_batch // size)
    for row, target in enumerate(targets):
        out[row, rng.permutation(patches)[:target]] = True
    return out.reshape(-1, 2, patches)


def batch(recipe: Recipe, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as the pipeline would give it: noise in slices as large as the canvas, boxes as DINOv2 would draw."""
    rng, rows, canvas = np.random.default_rng(seed), recipe.data.global_batch, recipe.data.side

    def boxes(count: int, area: tuple[float, float]) -> np.ndarray:
        side = canvas * np.sqrt(rng.uniform(*area, (rows, count, 1)))
        start = rng.uniform(0, 1, (rows, count, 2)) * (canvas - side)
        return np.concatenate([start, start + side], -1).astype(np.float32)

    return {
        "slices": rng.integers(-1024, 2048, (rows, canvas, canvas), np.int16),
        "extent": np.full((rows, 2), canvas, np.int32),
        "global_boxes": boxes(2, recipe.crops.global_area),
        "local_boxes": boxes(recipe.crops.num_local, recipe.crops.local_area),
        "flips": np.zeros((rows, 2 + recipe.crops.num_local), bool),
        "masks": masks(recipe, rng),
        "is_ct": np.arange(rows) % 2 == 0,
    }


def crops(recipe: Recipe, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Global (2B, R, R, C) and local (LB, r, r, C) crops, float32 noise."""
    rng, c = np.random.default_rng(seed), recipe.crops
    images, channels = recipe.data.global_batch, recipe.model.in_channels
    return (
        rng.standard_normal((2 * images, c.global_size, c.global_size, channels), np.float32),
        rng.standard_normal((c.num_local * images, c.local_size, c.local_size, channels), np.float32),
    )
