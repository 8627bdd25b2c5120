"""Segmentation by a linear layer on patch tokens, the input at the size of the model and at twice that.

A slice is encoded, asked and forgotten: of train, a fixed draw of patches is kept; of test, five numbers a structure,
`MEASURES`, which stand in predictions.parquet in place of the label maps and from which every score is computed.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from curia2_jax.curiabench import features, heads, overlap
from curia2_jax.curiabench.heads import dense
from curia2_jax.curiabench.model import Backbone, Model
from curia2_jax.curiabench.protocol import DENSE, DENSE_TWICE, PIXELS_LINEAR, RANDOM, TRAINED
from curia2_jax.curiabench.splits import Split, content, read_labels
from curia2_jax.curiabench.tasks import Task

MEASURES = ("both", "found", "truth", "hd95", "surface_dice")  # pixels, pixels, pixels, mm or pixels, share
TOKENS = 20_000  # patches of train that the layer is fitted to, at most
TOLERANCE_MM, TOLERANCE_PIXELS = 2.0, 1.0  # of the surface Dice, with a spacing and without
BATCH = 8  # slices encoded at a time
SCALES = {DENSE.name: 1, DENSE_TWICE.name: 2}

Key = tuple[str, int]  # row, seed


class Drawn(NamedTuple):
    """Patches of a split: `tokens` (n, D) of every row and seed; `shares` (n, K + 1), background first; `patients`."""

    tokens: dict[Key, np.ndarray]
    shares: np.ndarray
    patients: np.ndarray


def answers(task: Task, model: Model) -> tuple[dict[tuple[str, str], list[np.ndarray]], dict[tuple[str, str], dict]]:
    """Of every (row, head): `MEASURES` of the test slices, (n, 5 x structures) float64 a seed, and what it chose."""
    numbers = np.array(sorted(task.classes), np.int64)
    outputs: dict[tuple[str, str], list[np.ndarray]] = {}
    settings: dict[tuple[str, str], dict[str, Any]] = {}
    for head, scale in SCALES.items():
        train = _draw(task.train, model, scale, numbers)
        val = None if task.val is None else _draw(task.val, model, scale, numbers)
        layers = {}
        for key, tokens in train.tokens.items():
            groups = np.unique(train.patients, return_inverse=True)[1]
            asked = heads.Problem(tokens, train.shares, groups, tokens, np.empty(0), True)
            if val is not None:
                asked = asked._replace(val=val.tokens[key], val_targets=val.shares)
            layers[key], chosen = dense.fit_shares(asked._replace(device=model.device))
            settings.setdefault((key[0], head), chosen | {"patches": len(tokens)})
        found: dict[Key, list[np.ndarray]] = {key: [] for key in layers}
        for index, labels, tokens_of in _encoded(task.test, model, scale, numbers):
            spacing = (1.0, 1.0) if task.test.spacing is None else tuple(task.test.spacing[index].tolist())
            for key, layer in layers.items():
                map_found = dense.label_map(tokens_of[key], layer, labels.shape)
                found[key].append(measures(map_found, labels, len(numbers), spacing, task.test.spacing is not None))
        for key, rows in found.items():
            outputs.setdefault((key[0], head), []).append(np.stack(rows))
    return outputs, settings


def hashes(split: Split) -> np.ndarray:
    """(n,) of the slices, as `features.Features` has them."""
    return np.array([content(read_labels(split, index)[0]) for index in range(len(split.images))])


def measures(
    found: np.ndarray, truth: np.ndarray, structures: int, spacing: tuple[float, ...], is_mm: bool
) -> np.ndarray:
    """(structures x 5,) float64 of two label maps (H, W), 0 = background. Surfaces are NaN where truth has none; where
    only the answer has none, HD95 is the diagonal of the slice."""
    rows = []
    diagonal = math.hypot(*(side * step for side, step in zip(truth.shape, spacing, strict=True)))
    for label in range(1, structures + 1):
        one, other = found == label, truth == label
        near = (np.nan, np.nan)
        if other.any():
            agreed = overlap.agreement(one, other, spacing, TOLERANCE_MM if is_mm else TOLERANCE_PIXELS)
            near = (min(agreed.hd95, diagonal), agreed.surface_dice)
        rows.append(((one & other).sum(), one.sum(), other.sum(), *near))
    return np.array(rows, np.float64).ravel()


def _draw(split: Split, model: Model, scale: int, numbers: np.ndarray) -> Drawn:
    """As many patches of every slice, drawn by its place in the table."""
    tokens: dict[Key, list[np.ndarray]] = {}
    shares, patients = [], []
    for index, labels, tokens_of in _encoded(split, model, scale, numbers):
        grid = next(iter(tokens_of.values())).shape[0]
        count = min(grid**2, max(1, TOKENS // len(split.images)))
        which = np.random.default_rng(index).choice(grid**2, count, replace=False)
        for key, one in tokens_of.items():
            tokens.setdefault(key, []).append(one.flatten(0, 1)[which].numpy())
        shares.append(dense.shares_of_patches(labels, grid, len(numbers) + 1).reshape(grid**2, -1)[which])
        patients += [split.patients[index]] * count
    together = {key: np.concatenate(each) for key, each in tokens.items()}
    return Drawn(together, np.concatenate(shares), np.array(patients))


def _encoded(
    split: Split, model: Model, scale: int, numbers: np.ndarray
) -> Iterator[tuple[int, np.ndarray, dict[Key, torch.Tensor]]]:
    """(index, label map with labels 0..K, tokens (g, g, D) of every row and seed) of every slice."""
    processor = copy.copy(model.processor)
    processor.crop_size *= scale
    backbones = _backbones(model)
    for start in range(0, len(split.images), BATCH):
        numbered = range(start, min(start + BATCH, len(split.images)))
        read = [read_labels(split, index) for index in numbered]
        pixels = torch.cat(
            [
                features.to_pixels(processor, image, split.modalities[i])
                for i, (image, _) in zip(numbered, read, strict=True)
            ]
        )
        encoded = {key: features.tokens(one, pixels)[1] for key, one in backbones.items()}
        for place, index in enumerate(numbered):
            labels = read[place][1]
            ordered = np.where(labels > 0, np.searchsorted(numbers, labels) + 1, 0)
            yield index, ordered, {key: one[place] for key, one in encoded.items()}


def _backbones(model: Model) -> dict[Key, Backbone]:
    randoms = {(RANDOM.name, seed): one for seed, one in enumerate(model.randoms)}
    return {(TRAINED.name, 0): model.trained, **randoms, (PIXELS_LINEAR.name, 0): model.linear}
