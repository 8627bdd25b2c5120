"""The test samples that a head answers worst and best, as pictures without names."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.pictures import middle, outlined, png, windowed
from curia2_jax.curiabench.splits import Split, read_labels, read_sample
from curia2_jax.data.ingest import benchmark_schema


class Case(NamedTuple):
    """A test sample. `number`: its row in the table of the split, from 0; `truth` and `answer`: a class with its
    probability, or a value."""

    picture: str
    number: int
    patient: str
    truth: str
    answer: str
    right: bool


class Cases(NamedTuple):
    """Worst first, and best first."""

    worst: list[Case]
    best: list[Case]


def goodness(one: Answers, row: str, head: str) -> np.ndarray:
    """(n,) larger for better, NaN where there is nothing to answer, by the first seed of a row and head."""
    return ANSWERED[one.kind](one.targets, one.outputs[row, head][0])


def _probability(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Output for the true class."""
    return outputs[np.arange(len(outputs)), targets]


def _nearness(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """How near a value is to the true one."""
    return -np.abs(outputs - targets)


def _overlaps(outputs: np.ndarray) -> np.ndarray:
    """Dice of every structure (n, K) of `segmentation.MEASURES`, NaN where the slice has none of it."""
    both, found, truth = np.moveaxis(outputs.reshape(len(outputs), -1, 5)[..., :3], 2, 0)
    return np.where(truth > 0, 2 * both / np.maximum(found + truth, 1), np.nan)


def _overlap(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Mean Dice of the structures of a slice."""
    found = _overlaps(outputs)
    known = ~np.isnan(found)
    return np.where(known, found, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


# Kinds whose samples are answered one by one: a risk is right or wrong of two patients, not of one.
ANSWERED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    benchmark_schema.CLASSIFICATION.name: _probability,
    benchmark_schema.RETRIEVAL.name: _probability,
    benchmark_schema.REGRESSION.name: _nearness,
    benchmark_schema.SEGMENTATION.name: _overlap,
}


def chosen(order: Sequence[int], patients: np.ndarray, count: int) -> list[int]:
    """The first `count` of an order, one a patient; where there are fewer patients, more of each, evenly."""
    ranked = []
    seen: dict[str, int] = {}
    for place, index in enumerate(order):
        seen[patients[index]] = seen.get(patients[index], -1) + 1
        ranked.append((seen[patients[index]], place))
    return [order[place] for place in sorted(place for _, place in sorted(ranked)[:count])]


def cases(split: Split, one: Answers, row: str, head: str, names: Sequence[str], count: int = 10) -> Cases:
    """The `count` worst and best of a test split by the first seed of a row and head; `names` (n,) of the patients."""
    good = goodness(one, row, head)
    order = np.argsort(good, kind="stable")[: np.isfinite(good).sum()]
    outputs = one.outputs[row, head][0]

    def case(index: int) -> Case:
        image, mask = middle(*(read_labels(split, index) if split.labels else read_sample(split, index)))
        picture = png(outlined(windowed(image, split.modalities[index]), mask))
        return Case(picture, index, names[index], *_words(one, outputs[index], index))

    half = len(order) // 2  # no sample is among both
    ways = (order[:half], order[::-1][:half])
    worst, best = ([case(index) for index in chosen(way.tolist(), one.patients, count)] for way in ways)
    return Cases(worst, best)


def _words(one: Answers, output: np.ndarray, index: int) -> tuple[str, str, bool]:
    """The truth, the answer, and whether they are the same class."""
    if one.kind == benchmark_schema.SEGMENTATION.name:
        each = dict(zip(one.classes, _overlaps(output[None])[0].tolist(), strict=True))
        found = ", ".join(f"{name} {value:.2f}" for name, value in each.items() if not np.isnan(value))
        return f"Dice {np.nanmean(list(each.values())):.2f}", found, True
    if not one.classes:
        return f"{one.targets[index]:.4g}", f"{output:.4g}", True
    truth, said = int(one.targets[index]), int(output.argmax())
    return f"{one.classes[truth]} ({output[truth]:.2f})", f"{one.classes[said]} ({output[said]:.2f})", truth == said


def people(patients: np.ndarray, salted: bool) -> list[str]:
    """What a page calls the patients of n samples: the first letters of salted keys, which a corpus of ours has, else
    numbers, for names in the tables of others may be real ones."""
    if salted:
        return [name[:8] for name in patients.tolist()]
    return [str(number + 1) for number in np.unique(patients, return_inverse=True)[1].tolist()]
