"""What a class token of a whole slice can be asked, without a mask that would give the answer away.

Which structures lie in the slice, and how high it lies in its scan: both follow from the label maps of a corpus.
Two sets of tokens of the same slices are compared, on the same test patients.
"""

import hashlib
import pathlib
from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench import heads, intervals, scores
from curia2_jax.curiabench.results import defined
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import structures
from curia2_jax.data.ingest.slicing import in_plane

HEADS = {"kNN": heads.neighbor_mean, "linear probe": heads.ridge_probe}
PRESENT, HEIGHT = "structures present, AUROC", "height in the scan, R squared"


class Labelled(NamedTuple):
    """n slices of a corpus that have a label map; `test` are those of half of the patients."""

    slices: np.ndarray  # (n,) int64, numbers in the corpus
    present: np.ndarray  # (n, K) bool: the structure has at least as many pixels as a benchmark asks for
    height: np.ndarray  # (n,) float64, 0 at the first slice of the series and 1 at the last
    patients: np.ndarray  # (n,) str
    test: np.ndarray  # (n,) bool


class Answer(NamedTuple):
    """A score with its 95 % interval over patients, of both sets of tokens, and of their difference."""

    question: str
    head: str
    trained: list[float | None]
    baseline: list[float | None]
    difference: list[float | None]
    patients: int  # who were tested


def read(folder: pathlib.Path) -> Labelled:
    """The labelled slices of a corpus, by the kind of labels that most of its series have."""
    corpus = Corpus(folder)
    series, patients, planes = (np.asarray(corpus.column(name)) for name in ("series", "patient", "plane"))
    position = np.asarray(corpus.column("position")).astype(np.int64)
    maps = structures.label_maps(folder, np.unique(series[np.asarray(corpus.column("label")) != ""]))
    slices = np.flatnonzero(np.isin(series, list(maps)))
    present = structures.present(maps, series[slices], planes[slices], position[slices])
    last = {name: len(in_plane(one, planes[np.argmax(series == name)])) - 1 for name, one in maps.items()}
    height = position[slices] / np.maximum([last[name] for name in series[slices]], 1)
    order = sorted(set(patients[slices]), key=lambda name: hashlib.sha256(str(name).encode()).hexdigest())
    test = np.isin(patients[slices], order[: len(order) // 2])
    asked = np.asarray(present[~test].any(0) & ~present[~test].all(0))
    asked[0] = False  # what has no label
    return Labelled(slices, present[:, asked], height, patients[slices], test)


def compare(labelled: Labelled, trained: np.ndarray, baseline: np.ndarray) -> list[Answer]:
    """Every question by every head, of two sets of tokens (n, D) of the slices of `labelled`."""
    _, groups = np.unique(labelled.patients, return_inverse=True)
    own = np.unique(groups[labelled.test], return_inverse=True)[1]
    patients = np.arange(own.max() + 1)
    asked = (
        (PRESENT, labelled.present.astype(np.float64), scores.presence_auroc),
        (HEIGHT, labelled.height, scores.explained),
    )
    out = []
    for question, targets, score in asked:
        for head, predict in HEADS.items():
            found = []
            for tokens in (trained, baseline):
                fit, rest = ~labelled.test, labelled.test
                none = np.empty(0, np.int64)
                problem = heads.Problem(tokens[fit], targets[fit], groups[fit], tokens[rest], none, True)
                outputs = predict(problem).outputs
                found.append(intervals.estimate(score, targets[rest], outputs, own, patients, len(patients)))
            first, second, gain = (intervals.interval(one) for one in (*found, intervals.minus(*found)))
            out.append(Answer(question, head, first, second, gain, len(patients)))
    return out


def verdict(answers: list[Answer]) -> str:
    """One sentence: better or worse is said only where the interval of the difference does not hold zero, and only of
    enough patients."""
    begin = "By its class token, without masks, the trained backbone is"
    fewest = min(one.patients for one in answers)
    if fewest < intervals.FEWEST_PATIENTS:
        return f"{begin} not judged: {fewest} test patients, fewer than {intervals.FEWEST_PATIENTS}."

    def side(difference: list[float | None]) -> str:
        _, low, high = defined(difference)
        return "above" if low > 0 else "below" if high < 0 else "not distinguishable from"

    parts: dict[str, list[str]] = {}
    for one in answers:
        parts.setdefault(side(one.difference), []).append(f"{one.question.split(',')[0]} by {one.head}")
    said = "; ".join(f"{word} the weights it began with: {', '.join(which)}" for word, which in parts.items())
    return f"{begin} {said}."
