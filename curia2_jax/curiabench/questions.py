"""What a class token of a whole slice can be asked, without a mask that would give the answer away.

Which structures lie in the slice, and how high it lies in its scan: both follow from the label maps of a corpus.
Features of the same slices are compared, on the same test patients.
"""

import hashlib
import pathlib
from typing import NamedTuple

import numpy as np

from curia2_jax.curiabench import heads, intervals, scores
from curia2_jax.curiabench.questions_answer import FEW, Answer, side
from curia2_jax.data.corpus import structures
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.corpus.planes import in_plane

HEADS = {"kNN": heads.neighbor_mean, "linear probe": heads.ridge_probe}
DRAWS = 5  # how often FEW patients are drawn
PRESENT, HEIGHT = "structures present, AUROC", "height in the scan, R squared"


class Labelled(NamedTuple):
    """n slices of a corpus that have a label map; `test` are those of half of the patients."""

    slices: np.ndarray  # (n,) int64, numbers in the corpus
    present: np.ndarray  # (n, K) bool: the structure has at least as many pixels as a benchmark asks for
    height: np.ndarray  # (n,) float64, 0 at the first slice of the series and 1 at the last
    patients: np.ndarray  # (n,) str
    test: np.ndarray  # (n,) bool
    all_present: np.ndarray  # (n, labels) bool: of every label that occurs, by its number


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
    return _labelled(slices, present, height, patients[slices], test)


def apart(tested: Labelled, learned_from: Labelled) -> Labelled:
    """Slices of two corpora, first those that are tested: structures are those that both ask."""
    count = min(tested.all_present.shape[1], learned_from.all_present.shape[1])
    present = np.concatenate([one.all_present[:, :count] for one in (tested, learned_from)])
    test = np.arange(len(present)) < len(tested.slices)
    return _labelled(
        np.concatenate([tested.slices, learned_from.slices]),
        present,
        np.concatenate([tested.height, learned_from.height]),
        np.concatenate([tested.patients, learned_from.patients]),
        test,
    )


def _labelled(slices, all_present, height, patients, test) -> Labelled:
    """With the structures that can be asked: some patients to learn from have them in a slice, and not in all."""
    asked = np.asarray(all_present[~test].any(0) & ~all_present[~test].all(0))
    asked[0] = False  # what has no label
    return Labelled(slices, all_present[:, asked], height, patients, test, all_present)


def compare(labelled: Labelled, rows: dict[str, np.ndarray]) -> list[Answer]:
    """Every question by every head, of several features (n, D) of the slices of `labelled`, of which the first is
    compared with each other one.

    Heads learn from all patients that are not tested, and from FEW of them, the mean of DRAWS choices; from all alone
    where there are fewer than twice FEW.
    """
    fit_patients = np.unique(labelled.patients[~labelled.test])
    choices = {len(fit_patients): [fit_patients]}
    if len(fit_patients) >= 2 * FEW:
        drawn = (np.random.default_rng(draw).choice(fit_patients, FEW, replace=False) for draw in range(DRAWS))
        choices[FEW] = list(drawn)
    every = (
        (PRESENT, labelled.present.astype(np.float64), scores.presence_auroc),
        (HEIGHT, labelled.height, scores.explained),
    )
    # Single slices have no height, and a label that all slices have asks nothing.
    sides = labelled.test, ~labelled.test
    asked = [one for one in every if one[1].size and all(np.ptp(one[1][side]) > 0 for side in sides)]
    return [
        _answer(labelled, rows, question, head, choice)
        for question in asked
        for choice in choices.values()
        for head in HEADS
    ]


def _answer(labelled: Labelled, rows: dict[str, np.ndarray], asked: tuple, head: str, choice: list) -> Answer:
    """`asked`: the question, its targets (n, ...) and its score. `choice`: the patients of each draw."""
    question, targets, score = asked
    own, numbers = np.unique(labelled.patients[labelled.test], return_inverse=True)
    none = np.empty(0, np.int64)

    def estimate(tokens: np.ndarray, chosen: np.ndarray) -> intervals.Estimate:
        fit = ~labelled.test & np.isin(labelled.patients, chosen)
        groups = np.unique(labelled.patients[fit], return_inverse=True)[1]
        problem = heads.Problem(tokens[fit], targets[fit], groups, tokens[labelled.test], none, True)
        outputs = HEADS[head](problem).outputs
        return intervals.estimate(score, targets[labelled.test], outputs, numbers, np.arange(len(own)), len(own))

    found = {row: intervals.mean([estimate(tokens, one) for one in choice]) for row, tokens in rows.items()}
    first, *others = found
    gains = {row: intervals.interval(intervals.minus(found[first], found[row])) for row in others}
    values = {row: intervals.interval(one) for row, one in found.items()}
    return Answer(question, head, len(choice[0]), values, gains, len(own))


def verdict(answers: list[Answer]) -> list[str]:
    """A sentence for every other row: better or worse is said only where the interval of the difference does not hold
    zero, and only of enough patients."""
    fewest = min(one.patients for one in answers)
    if fewest < intervals.FEWEST_PATIENTS:
        return [f"Not judged: {fewest} test patients, fewer than {intervals.FEWEST_PATIENTS}."]
    said = []
    for row in answers[0].gains:
        parts: dict[str, list[str]] = {}
        for one in answers:
            which = f"{one.question.split(',')[0]} by {one.head} from {one.labelled} patients"
            parts.setdefault(side(one.gains[row]), []).append(which)
        if len(parts) == 1:
            what = f"{next(iter(parts))} {row} in all {len(answers)} comparisons"
        else:
            what = f"beside {row}: " + "; ".join(f"{word} in {len(w)} ({', '.join(w)})" for word, w in parts.items())
        said.append(f"By its class token, without masks, the trained backbone is {what}.")
    return said
