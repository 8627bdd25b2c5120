"""Class tokens of the slices of a corpus, as a run sees them, and the weights that the run began with."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.errors import UserError
from curia2_jax.models.vit import ViT
from curia2_jax.training import augment, checkpoints, initial
from curia2_jax.training.recipe import Recipe, Window, recipe_from
from curia2_jax.training.resample import crop_and_resize
from curia2_jax.training.state import init_params

PyTree = Any
BATCH = 64
SAME = ("width", "depth", "heads", "patch_size", "ffn", "registers", "image_size", "position_form")
THUMBNAILS, THUMBNAIL_SIDE = "16 x 16 pixels", 16


def pixels(slices: jax.Array, extent: jax.Array, is_ct: jax.Array, size: int, window: Window = ()) -> jax.Array:
    """Whole slices as the model is to see them, (B, R, R, 1): resized, CT clipped, z-scored, not augmented."""
    raw = slices.astype(jnp.float32)
    mean, std = augment.slice_statistics(augment.clip_ct(raw, is_ct, window), extent)
    whole = jnp.concatenate([jnp.zeros_like(extent), extent], axis=1).astype(jnp.float32)[:, None]
    cut = augment.clip_ct(crop_and_resize(raw, extent, whole, size), is_ct, window)[:, 0]
    return augment.z_score(cut, mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1))[..., None]


def features(
    backbones: Mapping[str, PyTree], recipe: Recipe, corpus: Corpus, indices: np.ndarray
) -> dict[str, np.ndarray]:
    """Of the slices `indices` (n,): the class tokens (n, D) of every backbone by name, and under THUMBNAILS the pixels
    (n, 256) of the slice made small, which know what no training taught."""
    model = dataclasses.replace(recipe.model, attention="xla", dtype="float32", remat="none", drop_path=0.0)
    modality = np.asarray(corpus.column("modality"))
    side = max(corpus.contract["largest"])
    window = recipe.augment.window

    @jax.jit
    def one_batch(slices: jax.Array, extent: jax.Array, is_ct: jax.Array) -> dict[str, jax.Array]:
        images = pixels(slices, extent, is_ct, recipe.crops.global_size, window)
        found = {name: cast(dict, ViT(model).apply({"params": p}, images))["cls"] for name, p in backbones.items()}
        return found | {THUMBNAILS: pixels(slices, extent, is_ct, THUMBNAIL_SIDE, window).reshape(len(slices), -1)}

    batches: list[dict[str, np.ndarray]] = []
    for start in range(0, len(indices), BATCH):
        some = indices[start : start + BATCH]
        slices, extent = np.zeros((BATCH, side, side), np.int16), np.ones((BATCH, 2), np.int32)
        for row, index in enumerate(some):
            one = corpus.read(int(index))
            slices[row, : one.shape[0], : one.shape[1]], extent[row] = one, one.shape
        is_ct = np.zeros(BATCH, bool)
        is_ct[: len(some)] = modality[some] == "CT"
        found = one_batch(slices, extent, is_ct)
        batches.append({name: np.asarray(x)[: len(some)] for name, x in found.items()})
    # In the order of the backbones: what comes out of jit has its names sorted.
    return {name: np.concatenate([batch[name] for batch in batches]) for name in (*backbones, THUMBNAILS)}


def began(recipe: Recipe) -> dict:
    """The backbone that a run of this recipe has at step 0."""
    random = jax.jit(lambda: init_params(jax.random.key(recipe.seed), recipe)["backbone"])()
    return random | initial.pretrained(recipe).teacher["backbone"] if recipe.init_from else random


def beside(named: str, recipe: Recipe) -> dict[str, PyTree]:
    """The backbone of another run, RUN or RUN@STEP, under its name.

    Raises:
      UserError: there is none, or it is another model than that of `recipe`.
    """
    other, step = checkpoints.parse(named)
    found = recipe_from(checkpoints.read_config(other))
    if any(getattr(found.model, key) != getattr(recipe.model, key) for key in SAME):
        raise UserError(f"--beside {other}: another model than that of --run; write a run of the same config.model")
    return {f"{other.name} at step {step:,}": checkpoints.restore_teacher(other, step)[0]["backbone"]}
