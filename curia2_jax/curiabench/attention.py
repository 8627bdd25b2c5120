"""Volumes by attention over their slices, beside the mean over slices that the table has: a head of the 3-D track.

A slice's token is that of the table: the mean of the patches under the mask, or the class token where there are none.
The answers lie beside the others, their head called `attentive@slices`, one a seed of random weights.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from curia2_jax.curiabench import comparison, features, forward, masks
from curia2_jax.curiabench.adapters.adapter import Adapter, Volume
from curia2_jax.curiabench.aggregate import Choice, after_norm, counted
from curia2_jax.curiabench.answers import ASIDE, Answers
from curia2_jax.curiabench.heads import attentive
from curia2_jax.curiabench.model import Model
from curia2_jax.curiabench.others import Others
from curia2_jax.curiabench.probing import Key
from curia2_jax.curiabench.protocol import Head, Scoring
from curia2_jax.curiabench.results import Comparison
from curia2_jax.curiabench.splits import Split, read_sample
from curia2_jax.curiabench.tasks import Task
from curia2_jax.data.ingest.benchmark_schema import CLASSIFICATION, REGRESSION
from curia2_jax.errors import UserError

HEAD = Head(
    f"attentive{ASIDE}slices",
    "Attention over slices",
    "attention over slices",
    "A head learns which slices of a volume count, in place of their mean.",
    None,
)
SLICES = 64  # of a volume, at most, evenly spread


def check(chosen: Sequence[Task], others: Others) -> None:
    """Raises UserError if a task is of another kind, or a model takes whole volumes."""
    for task in chosen:
        if task.kind not in (CLASSIFICATION, REGRESSION):
            raise UserError(
                f"--setting=attention: {task.name} is of kind {task.kind.name}; it learns classes or one number"
            )
    others.of_slices("--setting=attention")


def predictions(
    chosen: Sequence[Task], model: Model, others: Others, say: Callable[[str], None]
) -> list[dict[Key, list[np.ndarray]]]:
    """Outputs on the test split of every task, of the trained backbone, the random ones and other people's models.

    One backbone is in memory at a time, and is asked all tasks. A slice's token is made as `others` says.

    Raises:
      UserError: a sample is no volume.
    """
    found: list[dict[Key, list[np.ndarray]]] = [{} for _ in chosen]
    for (row, _), load in features.backbones(model, others):
        if row:  # not the linear projection, whose class token is a constant
            _add(found, chosen, row, load(), others.choice, model.device)
            say(f"{row}: volumes read by attention over slices")
    return found


def _add(
    found: list[dict[Key, list[np.ndarray]]],
    chosen: Sequence[Task],
    row: str,
    adapter: Adapter,
    choice: Choice,
    device: str,
) -> None:
    """Adds what heads on a backbone answer to all tasks. It goes when this returns."""
    for one, task in zip(found, chosen, strict=True):
        classes = np.array(sorted(task.classes), np.int64)
        targets = np.searchsorted(classes, task.train.targets) if task.kind.has_classes else task.train.targets
        train, test = (_sequences(split, adapter, choice, device) for split in (task.train, task.test))
        outputs = len(classes) if task.kind.has_classes else 1
        answer = attentive.attentive_probe(train, targets, test, outputs, choice.padding == "read")
        one.setdefault((row, HEAD.name), []).append(answer.outputs)


def answered(one: Answers) -> Answers:
    """The same task with the answers by attention alone."""
    return one._replace(outputs={key: seeds for key, seeds in one.aside.items() if key[1] == HEAD.name}, aside={})


def compared(one: Answers, scoring: Scoring) -> Comparison:
    """Of every row, every score and its difference to the trained one, with intervals over the same test patients."""
    (found,) = comparison.estimates([answered(one)], scoring)
    return comparison.compare(found)


def lines(found: Comparison, scoring: Scoring) -> list[str]:
    """The primary score of every row in words, and how much better the trained one is."""
    name, said = scoring.primary.metric.name, []
    for row, by_head in found["rows"].items():
        value, low, high = by_head[HEAD.name][name]
        if value is None:
            continue
        words = f"{row}, by {HEAD.short}: {scoring.primary.metric.phrase} {value:.3f}"
        words += "" if low is None else f" [{low:.3f}, {high:.3f}]"
        if row in found["trained_minus"]:
            gain, low, high = found["trained_minus"][row][HEAD.name][name]
            words += f"; trained minus it {gain:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")
        said.append(words)
    return said


def _sequences(split: Split, adapter: Adapter, choice: Choice, device: str) -> attentive.Sequences:
    """The tokens of every volume."""
    found = [_volume(split, index, adapter, choice, device) for index in range(len(split.images))]
    return attentive.sequences(found, [np.arange(len(one)) for one in found]).to(device)


def _volume(split: Split, index: int, adapter: Adapter, choice: Choice, device: str) -> np.ndarray:
    """(slices, D) float32: a token of each that counts, pooled as those of the table are."""
    image, mask = read_sample(split, index)
    if image.ndim != 3:
        raise UserError(f"--setting=attention: {split.images[index]} is one slice; it wants volumes (H, W, S)")
    voxels, under = np.moveaxis(image, 2, 0), None if mask is None else np.moveaxis(mask, 2, 0)
    shown = np.array(counted(under, len(voxels), choice))
    numbers = shown[np.unique(np.linspace(0, len(shown) - 1, min(len(shown), SLICES)).round().astype(int))].tolist()
    affine = None if split.affines is None or np.isnan(split.affines[index]).any() else split.affines[index]
    volume, found = Volume(voxels, str(split.modalities[index]), affine), []
    for pixels in forward.prepared(adapter, volume, numbers, device):
        some, numbers = numbers[: len(pixels)], numbers[len(pixels) :]
        inside = None if under is None else torch.stack([masks.resized(under[z], pixels.shape[-1]) for z in some])
        tokens = forward.encode(adapter, pixels, after_norm(choice, len(voxels)), device)
        inside = None if inside is None else inside.to(device)
        values, _ = forward.pool(tokens, torch.arange(len(some), device=device), inside, choice, False)
        found.append(values.cpu().numpy())
    return np.concatenate(found)
