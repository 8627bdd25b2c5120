"""Frozen features: tokens of a backbone, pooled under a mask, and what they must beat: pixels, and the mask alone.

With a mask the feature is the mean of the patch tokens under it, without one it is the class token (CuriaBench). A
volume's feature is the average over its slices, those without a masked pixel left out (Curia-2, rule of the 3-D track).
"""

import collections
from typing import NamedTuple

import numpy as np
import torch

from curia2_jax.curiabench.masks import patch_mask
from curia2_jax.curiabench.model import Backbone, Model, Processor
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

MAX_WAITING_SLICES = 512  # of one series


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


def extract(split: Split, model: Model, batch_size: int = 32) -> Features:
    """Features of every row of the protocol that the split has, in one pass over the files.

    A slice of a series on which several structures are marked is encoded once.
    """
    backbones = _backbones(model)
    sums: dict[tuple[str, int], list] = collections.defaultdict(lambda: [0] * len(split.images))
    counts = np.zeros((len(split.images), 1), np.float32)
    slices = np.zeros(len(split.images), "U32")
    waiting: dict[tuple, _Waiting] = {}

    def encode():
        items = list(waiting.values())
        for start in range(0, len(items), batch_size):
            chunk = items[start : start + batch_size]
            pixels = torch.cat([item.pixels for item in chunk])
            for rows, seed, backbone in backbones:
                for item, cls, patches in zip(chunk, *tokens(backbone, pixels), strict=True):
                    for index, mask in item.samples:
                        for row, feature in _pool(rows, cls, patches, mask):
                            sums[row, seed][index] = sums[row, seed][index] + feature.numpy()
        waiting.clear()

    last = None
    for index in np.argsort(split.series, kind="stable"):
        if len(waiting) >= batch_size and (split.series[index] != last or len(waiting) >= MAX_WAITING_SLICES):
            encode()
        last, modality = split.series[index], split.modalities[index]
        for digest, one, mask in _slices(*read_sample(split, index)):
            key = (digest, modality)
            slices[index] = slices[index] or digest
            if key not in waiting:
                waiting[key] = _Waiting(to_pixels(model.processor, one, modality), [])
            under = None
            if mask is not None:
                under = patch_mask(mask, waiting[key].pixels.shape[-1], model.trained.patch_size)
                sums[MASK_ONLY.name, 0][index] = sums[MASK_ONLY.name, 0][index] + place(mask, under)
            waiting[key].samples.append((index, under))
            sums[PIXELS.name, 0][index] = sums[PIXELS.name, 0][index] + raw_pixels(one, mask)
            counts[index] += 1
    encode()
    rows: dict[str, list[np.ndarray]] = {}
    for (row, _), features in sums.items():
        rows.setdefault(row, []).append(np.stack(features) / counts)
    return Features(rows, slices)


def _backbones(model: Model) -> list[tuple[tuple[str, str], int, Backbone]]:
    """(row of its feature, row of the mean of its patches where the feature is the class token), seed, backbone."""
    randoms = [((RANDOM.name, RANDOM_PATCHES.name), seed, one) for seed, one in enumerate(model.randoms)]
    linear = (("", PIXELS_LINEAR.name), 0, model.linear)
    return [((TRAINED.name, TRAINED_PATCHES.name), 0, model.trained), *randoms, linear]


def place(mask: np.ndarray, under: torch.Tensor) -> np.ndarray:
    """What a mask says without any pixel: which patches it covers, and its size, middle and extent, as parts of the
    slice. (g * g + 7,) float32 of a mask (H, W) and its patches (g, g)."""
    rows, columns = np.nonzero(mask)
    size = np.array([len(rows) / mask.size])
    spots = [part(axis) / length for axis, length in ((rows, mask.shape[0]), (columns, mask.shape[1]))
             for part in (np.mean, np.min, np.max)]  # fmt: skip
    return np.concatenate([under.numpy().ravel(), size, spots]).astype(np.float32)


class _Waiting(NamedTuple):
    pixels: torch.Tensor  # (1, 1, R, R)
    samples: list[tuple[int, torch.Tensor | None]]  # index and patches under the mask of every sample on this slice


def _pool(rows: tuple[str, str], cls: torch.Tensor, patches: torch.Tensor, under: torch.Tensor | None):
    """The features of a slice, each with its row: the mean of the patches under a mask; without one, the class token
    and the mean of all patches."""
    token, mean = rows
    if under is not None:
        return [(token or mean, patches[under].mean(0))]
    return [(row, one) for row, one in ((token, cls), (mean, patches.flatten(0, 1).mean(0))) if row]


def _slices(image: np.ndarray, mask: np.ndarray | None):
    """Yields (hash, slice, mask) of a slice, or of the slices of a volume that have a masked pixel."""
    if image.ndim == 2:
        image, mask = image[..., None], None if mask is None else mask[..., None]
    for s in range(image.shape[2]):
        if mask is None or mask[..., s].any():
            one = np.ascontiguousarray(image[..., s])
            yield content(one), one, None if mask is None else mask[..., s]
