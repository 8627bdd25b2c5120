"""Every pair of a task registered by the features of every row: measures of the fields, which are not kept."""

import functools
from collections.abc import Callable, Iterator
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
    """`outputs`: of every row, `measured` of all pairs (n, 5 x structures + 3), one a seed; `settings`: what each row
    compared; `hashes` (n,) of the images of the pairs."""

    outputs: dict[str, list[np.ndarray]]
    settings: dict[str, dict[str, Any]]
    hashes: np.ndarray


def register_all(task: Task, model: Model, others: Others, say: Callable[[str], None]) -> Registered:
    """All pairs are read before a backbone is loaded, and once more for each: one pair is in memory at a time.

    Raises:
      UserError: a pair or a model is at fault.
    """
    device = model.device
    hashes, still, gray = [], [], []
    for pair, grid in _pairs(task):
        hashes.append("".join(content(side.volume.voxels)[:16] for side in (pair.fixed, pair.moving)))
        still.append(_measured(task, pair, grid, torch.zeros(3, *grid.nodes)))
        fixed, moving = channels.of_pair(pair, grid, functools.partial(channels.pixels, device=device), device)
        gray.append(_measured(task, pair, grid, registered(fixed, moving, grid)))
    outputs = {IDENTITY.name: [np.stack(still)], PIXELS.name: [np.stack(gray)]}
    settings: dict[str, dict[str, Any]] = {IDENTITY.name: {}, PIXELS.name: {"channels": 1}}
    model.let_go()
    ours = ((token or patches, load) for (token, patches), load in features.ours(model))
    for row, load in [*ours, *((one.name, one.load) for one in others.models)]:
        found, width = _by(load(), task, device)
        outputs.setdefault(row, []).append(found)
        settings[row] = {"channels": width}
        say(f"{task.name}: {len(found)} pairs registered by {row}")
    return Registered(outputs, settings, np.array(hashes))


def registered(fixed: torch.Tensor, moving: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The field (3, nodes) that brings channels (C, nodes) of the moving volume onto those of the fixed one."""
    coarse = search.search(functional.avg_pool3d(fixed, POOLED), functional.avg_pool3d(moving, POOLED))
    return adam.refined(fixed, moving, on_nodes(coarse, grid.nodes))


def _pairs(task: Task) -> Iterator[tuple[Pair, Grid]]:
    for index in range(len(task.test.images)):
        pair = read_pair(task.test, index, tuple(task.classes), task.landmarks)
        yield pair, grid_of(pair.fixed.volume.voxels.shape, pair.spacing)


def _by(adapter: Adapter, task: Task, device: str) -> tuple[np.ndarray, int]:
    """`measured` of all pairs (n, ...) by one model, which goes when this returns, and its number of channels."""
    dense, found, width = functools.partial(channels.tokens, adapter=adapter, device=device), [], 0
    for pair, grid in _pairs(task):
        fixed, moving = channels.of_pair(pair, grid, dense, device)
        found.append(_measured(task, pair, grid, registered(fixed, moving, grid)))
        width = len(fixed)
    return np.stack(found), width


def _measured(task: Task, pair: Pair, grid: Grid, field: torch.Tensor) -> np.ndarray:
    return measured(pair, grid, field, tuple(sorted(task.classes)))
