"""Frozen features: tokens of a backbone, pooled under a mask, and the raw-pixel features that they must beat.

With a mask the feature is the mean of the patch tokens under it, without one it is the class token (CuriaBench). A
volume's feature is the average over its slices, those without a masked pixel left out (Curia-2, rule of the 3-D track).
"""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from curia2_jax.curiabench.model import Backbone, Model, Processor
from curia2_jax.curiabench.protocol import PIXELS, RANDOM, ROWS, TRAINED
from curia2_jax.curiabench.tasks import Split, read_sample

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


def patch_mask(mask: np.ndarray, resolution: int, patch_size: int) -> torch.Tensor:
    """Which patches lie under a mask: (H, W) bool with a nonzero pixel -> (g, g) bool with a nonzero patch.

    As in CuriaBench: resized to the resolution of the model with antialiased bilinear weights, cut at 0.5, or at half
    of the maximum where nothing reaches 0.5, so that small structures stay, then max-pooled to the grid.
    """
    weight = functional.interpolate(
        torch.from_numpy(mask.astype(np.float32))[None, None],
        size=(resolution, resolution),
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    inside = weight > 0.5
    if not inside.any():
        inside = weight > 0.5 * weight.max()
    return functional.max_pool2d(inside.float(), patch_size)[0, 0] > 0


def raw_pixels(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Mean and spread of the native pixels of a slice (H, W) under the mask, or of all: (2,) float32."""
    values = image if mask is None else image[mask]
    return np.array([values.mean(dtype=np.float64), values.std(dtype=np.float64)], np.float32)


class Features(NamedTuple):
    """Features of n samples: `rows[name]` (n, D) float32; `slices` (n,) hashes of the images (of a volume's first
    masked slice), equal where samples share one."""

    rows: dict[str, np.ndarray]
    slices: np.ndarray


def extract(split: Split, model: Model, batch_size: int = 32) -> Features:
    """Features of every row of the protocol in one pass over the files.

    A slice of a series on which several structures are marked is encoded once.
    """
    backbones = {TRAINED.name: model.trained, RANDOM.name: model.random}
    sums: dict[str, list] = {row.name: [0] * len(split.images) for row in ROWS}
    counts = np.zeros((len(split.images), 1), np.float32)
    slices = np.zeros(len(split.images), "U32")
    waiting: dict[tuple, _Waiting] = {}

    def encode():
        items = list(waiting.values())
        for start in range(0, len(items), batch_size):
            chunk = items[start : start + batch_size]
            pixels = torch.cat([item.pixels for item in chunk])
            for name, backbone in backbones.items():
                for item, cls, patches in zip(chunk, *tokens(backbone, pixels), strict=True):
                    for index, mask in item.samples:
                        feature = _pool(cls, patches, mask, pixels.shape[-1], backbone.patch_size)
                        sums[name][index] = sums[name][index] + feature.numpy()
        waiting.clear()

    last = None
    for index in np.argsort(split.series, kind="stable"):
        if len(waiting) >= batch_size and (split.series[index] != last or len(waiting) >= MAX_WAITING_SLICES):
            encode()
        last, modality = split.series[index], split.modalities[index]
        for content, one, mask in _slices(*read_sample(split, index)):
            key = (content, modality)
            slices[index] = slices[index] or content
            if key not in waiting:
                waiting[key] = _Waiting(to_pixels(model.processor, one, modality), [])
            waiting[key].samples.append((index, mask))
            sums[PIXELS.name][index] = sums[PIXELS.name][index] + raw_pixels(one, mask)
            counts[index] += 1
    encode()
    return Features({name: np.stack(rows) / counts for name, rows in sums.items()}, slices)


class _Waiting(NamedTuple):
    pixels: torch.Tensor  # (1, 1, R, R)
    samples: list[tuple[int, np.ndarray | None]]  # index and mask of every sample on this slice


def _pool(cls: torch.Tensor, patches: torch.Tensor, mask: np.ndarray | None, resolution: int, patch_size: int):
    return cls if mask is None else patches[patch_mask(mask, resolution, patch_size)].mean(0)


def _slices(image: np.ndarray, mask: np.ndarray | None):
    """Yields (hash, slice, mask) of a slice, or of the slices of a volume that have a masked pixel."""
    if image.ndim == 2:
        image, mask = image[..., None], None if mask is None else mask[..., None]
    for s in range(image.shape[2]):
        if mask is None or mask[..., s].any():
            one = np.ascontiguousarray(image[..., s])
            content = hashlib.blake2b(repr(one.shape).encode() + one.tobytes(), digest_size=16).hexdigest()
            yield content, one, None if mask is None else mask[..., s]
