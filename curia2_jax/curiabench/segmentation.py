"""Segmentation by a linear layer on patch tokens, the input at the size of the model and at twice that.

A slice is encoded, asked and forgotten: of train, a fixed draw of patches is kept; of test, five numbers a structure,
`MEASURES`, which stand in predictions.parquet in place of the label maps and from which every score is computed.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from curia2_jax.curiabench import features, few_shot, forward, heads, overlap
from curia2_jax.curiabench.adapters.adapter import Adapter, Volume
from curia2_jax.curiabench.heads import dense, logistic
from curia2_jax.curiabench.model import Model
from curia2_jax.curiabench.others import Others
from curia2_jax.curiabench.probing import Key
from curia2_jax.curiabench.protocol import DENSE, DENSE_TWICE
from curia2_jax.curiabench.splits import Split, content, read_labels
from curia2_jax.curiabench.tasks import Task
from curia2_jax.errors import UserError

MEASURES = ("both", "found", "truth", "hd95", "surface_dice")  # pixels, pixels, pixels, mm or pixels, share
TOKENS = 20_000  # patches of train that the layer is fitted to, at most
TOLERANCE_MM, TOLERANCE_PIXELS = 2.0, 1.0  # of the surface Dice, with a spacing and without
BATCH = 8  # slices encoded at a time
SCALES = {DENSE.name: 1, DENSE_TWICE.name: 2}


class Answered(NamedTuple):
    """Of a task. `outputs` of every (row, head): `MEASURES` of the test slices, (n, 5 x structures) float64 a seed;
    `aside`: the same from fewer patients; `settings`: what every head chose."""

    outputs: dict[Key, list[np.ndarray]]
    aside: dict[Key, list[np.ndarray]]
    settings: dict[Key, dict[str, Any]]


class Drawn(NamedTuple):
    """Patches of a split: `tokens` (n, D); `shares` (n, K + 1), background first; `slices` (n,), the sample of each;
    `ranks` (n,), how many of its slice were drawn before; `patients` of the samples."""

    tokens: np.ndarray
    shares: np.ndarray
    slices: np.ndarray
    ranks: np.ndarray
    patients: np.ndarray

    def of(self, fit: np.ndarray) -> "Drawn":
        """Those that a layer learns from which learns from the samples `fit`, (samples,) bool: as many of each slice,
        and the same whatever else was drawn."""
        rows = fit[self.slices] & (self.ranks < _count(fit))
        return Drawn(self.tokens[rows], self.shares[rows], self.slices[rows], self.ranks[rows], self.patients)


def answers(
    chosen: Sequence[Task], model: Model, others: Others, few: bool, say: Callable[[str], None]
) -> list[Answered]:
    """Of every task; one backbone is in memory at a time, and is asked all of them.

    Args:
      few: also from fewer patients, the primary head (`few_shot.py`).
    """
    found = [Answered({}, {}, {}) for _ in chosen]
    for names, load in features.backbones(model, others):
        _add(found, chosen, names[0] or names[1], load(), model.device, few, say)
    return found


def _add(
    found: list[Answered],
    chosen: Sequence[Task],
    row: str,
    adapter: Adapter,
    device: str,
    few: bool,
    say: Callable[[str], None],
) -> None:
    """Adds a backbone to the answers of every task. It goes when this returns."""
    start = time.monotonic()
    for head, times in SCALES.items():
        sized = adapter if times == 1 else adapter.larger(times) if adapter.larger else None
        if sized is None:
            say(f"{adapter.name}: takes one size of input; {head} is left out")
            continue
        for one, task in zip(found, chosen, strict=True):
            _ask(one, task, (row, head), sized, device, few and head == DENSE.name)
    say(f"{adapter.name}: segmented in {time.monotonic() - start:.1f} s")


def _ask(one: Answered, task: Task, key: Key, adapter: Adapter, device: str, few: bool) -> None:
    """A backbone with its input at one size: layers on all patients and, with `few`, on fewer."""
    row, head = key
    numbers = np.array(sorted(task.classes), np.int64)
    everyone = np.ones(len(task.train.images), bool)
    fits = [(head, everyone), *(few_shot.draws(task, head) if few else ())]
    train = _draw(task.train, adapter, numbers, [fit for _, fit in fits], device)
    val = None
    if task.val is not None:
        val = _draw(task.val, adapter, numbers, [np.ones(len(task.val.images), bool)], device)
    layers = [_layer(train.of(fit), val, device) for _, fit in fits]
    found = _measured(task.test, adapter, numbers, [layer for layer, _ in layers], device)
    one.outputs.setdefault(key, []).append(found[0])
    one.settings.setdefault(key, layers[0][1])
    for (name, _), outputs in zip(fits[1:], found[1:], strict=True):
        one.aside.setdefault((row, name), []).append(outputs)


def _layer(train: Drawn, val: Drawn | None, device: str) -> tuple[logistic.Fit, dict[str, Any]]:
    """The layer, and what it chose."""
    groups = np.unique(train.patients[train.slices], return_inverse=True)[1]
    asked = heads.Problem(train.tokens, train.shares, groups, train.tokens, np.empty(0), True, device=device)
    if val is not None:
        asked = asked._replace(val=val.tokens, val_targets=val.shares)
    layer, chosen = dense.fit_shares(asked)
    return layer, chosen | {"patches": len(train.tokens)}


def _measured(
    split: Split, adapter: Adapter, numbers: np.ndarray, layers: Sequence[logistic.Fit], device: str
) -> list[np.ndarray]:
    """(n, 5 x structures) float64 of every layer."""
    found: list[list[np.ndarray]] = [[] for _ in layers]
    for index, labels, tokens in _encoded(split, adapter, numbers, device):
        spacing = (1.0, 1.0) if split.spacing is None else tuple(split.spacing[index].tolist())
        for rows, layer in zip(found, layers, strict=True):
            map_found = dense.label_map(tokens, layer, labels.shape)
            rows.append(measures(map_found, labels, len(numbers), spacing, split.spacing is not None))
    return [np.stack(rows) for rows in found]


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


def _count(fit: np.ndarray) -> int:
    """Patches of each slice, where the samples `fit` are learned from."""
    return max(1, TOKENS // int(fit.sum()))


def _draw(split: Split, adapter: Adapter, numbers: np.ndarray, fits: Sequence[np.ndarray], device: str) -> Drawn:
    """What `Drawn.of` needs for all of `fits`; the order in a slice is drawn by its place in the table."""
    wanted = np.max([np.where(fit, _count(fit), 0) for fit in fits], 0)
    drawn = []
    for index, labels, found in _encoded(split, adapter, numbers, device):
        grid = found.shape[0], found.shape[1]
        which = np.random.default_rng(index).permutation(grid[0] * grid[1])[: wanted[index]]
        shares = dense.shares_of_patches(labels, grid, len(numbers) + 1).reshape(-1, len(numbers) + 1)
        here = np.full(len(which), index)
        drawn.append((found.flatten(0, 1)[which].numpy(), shares[which], here, np.arange(len(which))))
    tokens, shares, slices, ranks = (np.concatenate(each) for each in zip(*drawn, strict=True))
    return Drawn(tokens, shares, slices, ranks, split.patients)


def _encoded(
    split: Split, adapter: Adapter, numbers: np.ndarray, device: str
) -> Iterator[tuple[int, np.ndarray, torch.Tensor]]:
    """(index, label map with labels 0..K, tokens (g, h, D) float32 on the CPU) of every slice."""
    for start in range(0, len(split.images), BATCH):
        numbered = range(start, min(start + BATCH, len(split.images)))
        read = [read_labels(split, index) for index in numbered]
        made = [
            forward.prepared(adapter, Volume(image[None], str(split.modalities[index])), [0], device)
            for index, (image, _) in zip(numbered, read, strict=True)
        ]
        patches = forward.encode(adapter, torch.cat([one for each in made for one in each]), True, device).patches
        if patches is None:
            raise UserError(f"--against: {adapter.name} gives no patch tokens, which segmentation needs; leave it out")
        for index, (_, labels), found in zip(numbered, read, patches.float().cpu(), strict=True):
            yield index, np.where(labels > 0, np.searchsorted(numbers, labels) + 1, 0), found
