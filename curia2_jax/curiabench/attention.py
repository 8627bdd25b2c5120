"""Volumes by attention over their slices, beside the mean over slices that the table has: a head of the 3-D track.

A slice's token is that of the table: the mean of the patches under the mask, or the class token where there are none.
The answers lie beside the others, their head called `attentive@slices`, one a seed of random weights.
"""

import numpy as np
import torch

from curia2_jax.curiabench import comparison, features, intervals
from curia2_jax.curiabench.answers import ASIDE, Answers
from curia2_jax.curiabench.heads import attentive
from curia2_jax.curiabench.masks import patch_mask
from curia2_jax.curiabench.model import Model
from curia2_jax.curiabench.probing import Key
from curia2_jax.curiabench.protocol import RANDOM, TRAINED, Scoring
from curia2_jax.curiabench.results import Score
from curia2_jax.curiabench.splits import Split, read_sample
from curia2_jax.curiabench.tasks import Task
from curia2_jax.data.ingest.benchmark_schema import CLASSIFICATION, REGRESSION
from curia2_jax.errors import UserError

HEAD = f"attentive{ASIDE}slices"
SLICES = 64  # of a volume, at most, evenly spread
BATCH = 16  # encoded at a time


def predictions(task: Task, model: Model) -> dict[Key, list[np.ndarray]]:
    """Outputs on the test split, of the trained backbone and of the random ones.

    Raises:
      UserError: the task is of another kind, or a sample is no volume.
    """
    if task.kind not in (CLASSIFICATION, REGRESSION):
        raise UserError(
            f"--setting=attention: {task.name} is of kind {task.kind.name}; it learns classes or one number"
        )
    classes = np.array(sorted(task.classes), np.int64)
    targets = np.searchsorted(classes, task.train.targets) if task.kind.has_classes else task.train.targets
    train, test = _sequences(task.train, model), _sequences(task.test, model)
    outputs = len(classes) if task.kind.has_classes else 1
    out: dict[Key, list[np.ndarray]] = {}
    for key in train:
        found = attentive.attentive_probe(train[key], targets, test[key], outputs)
        out.setdefault((key[0], HEAD), []).append(found.outputs)
    return out


def scored(one: Answers, scoring: Scoring) -> dict[str, dict[str, Score]]:
    """Of every row, every score with its interval over test patients, the mean over seeds."""
    return {
        row: {
            metric.name: intervals.interval(
                intervals.mean([comparison.alone(one, metric, outputs) for outputs in seeds])
            )
            for metric in scoring.metrics
        }
        for (row, head), seeds in one.aside.items()
        if head == HEAD
    }


def lines(found: dict[str, dict[str, Score]], scoring: Scoring) -> list[str]:
    """The primary score of every row in words."""
    metric, said = scoring.primary.metric, []
    for row, by_metric in found.items():
        value, low, high = by_metric[metric.name]
        reach = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
        if value is not None:
            said.append(f"{row}, by attention over slices: {metric.phrase} {value:.3f}{reach}")
    return said


def _sequences(split: Split, model: Model) -> dict[tuple[str, int], attentive.Sequences]:
    """The tokens of every volume, of the trained backbone and of every random one."""
    backbones = {(TRAINED.name, 0): model.trained}
    backbones |= {(RANDOM.name, seed): one for seed, one in enumerate(model.randoms)}
    tokens: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in backbones}
    for index in range(len(split.images)):
        image, mask = read_sample(split, index)
        if image.ndim != 3:
            raise UserError(f"--setting=attention: {split.images[index]} is one slice; it wants volumes (H, W, S)")
        shown = np.arange(image.shape[2]) if mask is None else np.flatnonzero(mask.any((0, 1)))
        chosen = shown[np.unique(np.linspace(0, len(shown) - 1, min(len(shown), SLICES)).round().astype(int))]
        made = [
            features.to_pixels(model.processor, np.ascontiguousarray(image[..., z]), split.modalities[index])
            for z in chosen
        ]
        for key, backbone in backbones.items():
            found = [features.tokens(backbone, torch.cat(made[i : i + BATCH])) for i in range(0, len(made), BATCH)]
            whole, patches = (torch.cat(parts) for parts in zip(*found, strict=True))
            if mask is not None:
                under = [patch_mask(mask[..., z], made[0].shape[-1], backbone.patch_size) for z in chosen]
                whole = torch.stack([one[inside].mean(0) for one, inside in zip(patches, under, strict=True)])
            tokens[key].append(whole.numpy())
    device = model.device
    return {
        key: attentive.sequences(each, [np.arange(len(one)) for one in each]).to(device) for key, each in tokens.items()
    }
