"""Frozen features: tokens of a backbone, pooled under a mask, and what they must beat: pixels, and the mask alone.

With a mask the feature is the mean of the patch tokens under it, without one it is the class token (CuriaBench). A
volume's feature is the average over its slices, those without a masked pixel left out (Curia-2, rule of the 3-D track);
`aggregate.py` has the other choices.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from curia2_jax.curiabench import encoded
from curia2_jax.curiabench.adapters import folders
from curia2_jax.curiabench.adapters.adapter import Adapter
from curia2_jax.curiabench.aggregate import Choice, counted
from curia2_jax.curiabench.masks import patch_mask
from curia2_jax.curiabench.model import LINEAR, Backbone, Model, Processor
from curia2_jax.curiabench.others import Others
from curia2_jax.curiabench.protocol import (
    MASK_ONLY,
    PIXELS,
    PIXELS_LINEAR,
    RANDOM,
    RANDOM_PATCHES,
    TRAINED,
    TRAINED_PATCHES,
)
from curia2_jax.curiabench.splits import Split, content, read_sample


def to_pixels(processor: Processor, image: np.ndarray, modality: str) -> torch.Tensor:
    """A slice (H, W) as the model saw it in training, (1, 1, R, R): CT is clipped below air, MR is not."""
    clip = modality == "CT" if modality else None  # unknown: what the processor says
    return processor(image, clip_below_air=clip, return_tensors="pt")["pixel_values"]


@torch.inference_mode()
def tokens(backbone: Backbone, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Final-norm tokens of (B, 1, R, R) pixels, on the CPU: class token (B, D) and patches (B, g, g, D), float32."""
    hidden = backbone.model(pixels.to(backbone.model.device)).last_hidden_state.float().cpu()
    grid = pixels.shape[-1] // backbone.patch_size
    return hidden[:, 0], hidden[:, backbone.prefix :].reshape(len(pixels), grid, grid, -1)


def raw_pixels(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Mean and spread of the native pixels of a slice (H, W) under the mask, or of all: (2,) float32."""
    values = image if mask is None else image[mask]
    return np.array([values.mean(dtype=np.float64), values.std(dtype=np.float64)], np.float32)


class Features(NamedTuple):
    """Features of n samples: `rows[name]` is a list of (n, D) float32, one a seed; `slices` (n,) hashes of the images
    (of a volume's first masked slice), equal where samples share one."""

    rows: dict[str, list[np.ndarray]]
    slices: np.ndarray


def extract(
    splits: Sequence[Split],
    model: Model,
    others: Others | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Features]:
    """Features of every row of the protocol that a split has, and of other people's models.

    One backbone is in memory at a time, and encodes all splits. `others` says how tokens are pooled, for ours too, and
    where features are kept. `say` receives a line a model.
    """
    others = others or Others()
    found = [without_network(split, model, others.choice) for split in splits]
    for names, load in backbones(model, others):
        say(_add(found, splits, names, load(), others, model.device))
    return found


def _add(
    found: list[Features], splits: Sequence[Split], names: tuple[str, str], adapter: Adapter, asked: Others, device: str
) -> str:
    """Adds the rows of a model to the features of all splits. The model goes when this returns with what it did."""
    new = 0
    for split, features in zip(splits, found, strict=True):
        rows = _names(names, split.masked)
        choices = [asked.choice if row == names[0] else asked.choice.of_patches() for row in rows]
        arrays, made = encoded.encode(split, adapter, choices, device, asked.cache)
        new += made
        for row, array in zip(rows, arrays, strict=True):
            features.rows.setdefault(row, []).append(array)
    return f"{adapter.name}: {new} of {sum(len(one.images) for one in splits)} samples encoded, the rest was known"


def backbones(model: Model, others: Others) -> Iterator[tuple[tuple[str, str], Callable[[], Adapter]]]:
    """(row of its feature, row of the mean of its patches where the feature is the class token), and what loads it; the
    first is "" where a class token says nothing.

    Whoever asks frees one before the next is loaded, so that one is in memory at a time; `model` then holds none.
    """
    model.let_go()

    def adapter(name: str, weights: Callable[[], folders.Other]) -> Callable[[], Adapter]:
        return lambda: folders.ours(model.folder, model.device, model.trusted, weights())._replace(name=name)

    yield (TRAINED.name, TRAINED_PATCHES.name), adapter(TRAINED.name, lambda: folders.own(model.folder))
    for seed in range(model.seeds):
        weights = (
            functools.partial(folders.own, model.began[seed])
            if model.began
            else functools.partial(folders.random, model.folder, seed)
        )
        yield (RANDOM.name, RANDOM_PATCHES.name), adapter(f"{RANDOM.name} {seed}", weights)
    yield ("", PIXELS_LINEAR.name), adapter(PIXELS_LINEAR.name, lambda: folders.random(model.folder, 0, LINEAR))
    yield from (((one.name, ""), one.load) for one in others.models)


def _names(names: tuple[str, str], masked: bool) -> list[str]:
    """The rows that a split has: under a mask a feature is a mean of patches anyway."""
    token, patches = names
    return [token or patches] if masked else [name for name in (token, patches) if name]


def without_network(split: Split, model: Model, choice: Choice) -> Features:
    """The rows that see no network, raw pixels and the mask alone, and the hashes of the images."""
    found = [_plain(split, index, model, choice) for index in range(len(split.images))]
    rows = {PIXELS.name: [np.stack([pixels for _, pixels, _ in found])]}
    if split.masked:
        rows[MASK_ONLY.name] = [np.stack([places for _, _, places in found])]
    return Features(rows, np.array([digest for digest, _, _ in found]))


def _plain(split: Split, index: int, model: Model, choice: Choice) -> tuple[str, np.ndarray, np.ndarray]:
    """Hash of a sample's first slice, raw pixels, and place of its mask. No volume is copied, nor outlives this."""
    digest, pixels, places = "", [], []
    for one, mask in _slices(*read_sample(split, index), choice):
        digest = digest or content(one)
        pixels.append(raw_pixels(one, mask))
        if mask is not None:
            places.append(place(mask, patch_mask(mask, model.processor.crop_size, model.config.patch_size)))
    return digest, np.mean(pixels, 0), np.mean(places, 0) if places else np.zeros(0)


def place(mask: np.ndarray, under: torch.Tensor) -> np.ndarray:
    """What a mask says without any pixel: which patches it covers, and its size, middle and extent, as parts of the
    slice. (g * g + 7,) float32 of a mask (H, W) and its patches (g, g)."""
    rows, columns = np.nonzero(mask)
    size = np.array([len(rows) / mask.size])
    spots = [part(axis) / length for axis, length in ((rows, mask.shape[0]), (columns, mask.shape[1]))
             for part in (np.mean, np.min, np.max)]  # fmt: skip
    return np.concatenate([under.numpy().ravel(), size, spots]).astype(np.float32)


def _slices(
    image: np.ndarray, mask: np.ndarray | None, choice: Choice
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields (slice, mask) of a slice, or of the slices of a volume that count."""
    if image.ndim == 2:
        yield image, mask
        return
    for s in counted(None if mask is None else np.moveaxis(mask, 2, 0), image.shape[2], choice):
        yield np.ascontiguousarray(image[..., s]), None if mask is None else mask[..., s]
