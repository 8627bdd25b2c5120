"""The test samples that a head answers worst and best, as pictures without names."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.pictures import middle, outlined, png, windowed
from curia2_jax.curiabench.splits import Split, read_sample


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
    """(n,) the output for the true class, or how near a value is to the true one; larger for better."""
    outputs = one.outputs[row, head][0]
    if one.classes:
        return outputs[np.arange(len(outputs)), one.targets]
    return -np.abs(outputs - one.targets)


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
    order = np.argsort(goodness(one, row, head), kind="stable")
    outputs = one.outputs[row, head][0]

    def case(index: int) -> Case:
        image, mask = middle(*read_sample(split, index))
        picture = png(outlined(windowed(image, split.modalities[index]), mask))
        return Case(picture, index, names[index], *_words(one, outputs[index], index))

    half = len(order) // 2  # no sample is among both
    ways = (order[:half], order[::-1][:half])
    worst, best = ([case(index) for index in chosen(way.tolist(), one.patients, count)] for way in ways)
    return Cases(worst, best)


def _words(one: Answers, output: np.ndarray, index: int) -> tuple[str, str, bool]:
    """The truth, the answer, and whether they are the same class."""
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
