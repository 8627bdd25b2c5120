"""Every pair of a task registered by the features of every row: measures of the fields, which are not kept."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from curia2_jax.curiabench import features
from curia2_jax.curiabench.adapters.adapter import Adapter
from curia2_jax.curiabench.model import Model
from curia2_jax.curiabench.others import Others
from curia2_jax.curiabench.protocol import IDENTITY, PIXELS
from curia2_jax.curiabench.registration import adam, channels, search
from curia2_jax.curiabench.registration.field import on_nodes
from curia2_jax.curiabench.registration.grid import POOLED, Grid, grid_of
from curia2_jax.curiabench.registration.measures import measured
from curia2_jax.curiabench.registration.pairs import Pair, read_pair
from curia2_jax.curiabench.splits import content
from curia2_jax.curiabench.tasks import Task


class Registered(NamedTuple):
    """Of a task. `outputs`: of every row, `measured` of all pairs (n, 5 x structures + 3), one a seed; `settings`: what
    each row compared; `hashes` (n,) of the images of the pairs."""

    outputs: dict[str, list[np.ndarray]]
    settings: dict[str, dict[str, Any]]
    hashes: np.ndarray


def register_all(chosen: Sequence[Task], model: Model, others: Others, say: Callable[[str], None]) -> list[Registered]:
    """Every task. All pairs are read before a backbone is loaded, and once more for each: one backbone and one pair are
    in memory at a time.

    Raises:
      UserError: a pair or a model is at fault.
    """
    found = [_without_network(task, model.device) for task in chosen]
    for (token, patches), load in features.backbones(model, others):
        _add(found, chosen, token or patches, load(), model.device, say)
    return found


def _without_network(task: Task, device: str) -> Registered:
    """Volumes as they lie, and pixels as one channel."""
    hashes, still, gray = [], [], []
    for pair, grid in _pairs(task):
        hashes.append("".join(content(side.volume.voxels)[:16] for side in (pair.fixed, pair.moving)))
        still.append(_measured(task, pair, grid, torch.zeros(3, *grid.nodes)))
        fixed, moving = channels.of_pair(pair, grid, functools.partial(channels.pixels, device=device), device)
        gray.append(_measured(task, pair, grid, registered(fixed, moving, grid)))
    return Registered(
        {IDENTITY.name: [np.stack(still)], PIXELS.name: [np.stack(gray)]},
        {IDENTITY.name: {}, PIXELS.name: {"channels": 1}},
        np.array(hashes),
    )


def _add(
    found: list[Registered],
    chosen: Sequence[Task],
    row: str,
    adapter: Adapter,
    device: str,
    say: Callable[[str], None],
) -> None:
    """Adds a backbone to every task. It goes when this returns."""
    start = time.monotonic()
    for one, task in zip(found, chosen, strict=True):
        rows, width = _by(adapter, task, device)
        one.outputs.setdefault(row, []).append(rows)
        one.settings[row] = {"channels": width}
    say(f"{adapter.name}: pairs registered in {time.monotonic() - start:.1f} s")


def registered(fixed: torch.Tensor, moving: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The field (3, nodes) that brings channels (C, nodes) of the moving volume onto those of the fixed one."""
    coarse = search.search(functional.avg_pool3d(fixed, POOLED), functional.avg_pool3d(moving, POOLED))
    return adam.refined(fixed, moving, on_nodes(coarse, grid.nodes))


def _pairs(task: Task) -> Iterator[tuple[Pair, Grid]]:
    for index in range(len(task.test.images)):
        pair = read_pair(task.test, index, tuple(task.classes), task.landmarks)
        yield pair, grid_of(pair.fixed.volume.voxels.shape, pair.spacing)


def _by(adapter: Adapter, task: Task, device: str) -> tuple[np.ndarray, int]:
    """`measured` of all pairs (n, ...) by a model, and its number of channels."""
    dense, found, width = functools.partial(channels.tokens, adapter=adapter, device=device), [], 0
    for pair, grid in _pairs(task):
        fixed, moving = channels.of_pair(pair, grid, dense, device)
        found.append(_measured(task, pair, grid, registered(fixed, moving, grid)))
        width = len(fixed)
    return np.stack(found), width


def _measured(task: Task, pair: Pair, grid: Grid, field: torch.Tensor) -> np.ndarray:
    return measured(pair, grid, field, tuple(sorted(task.classes)))
