"""The content of results.json, typed. Rows, heads and metrics are those of `protocol.py`, by name."""

import json
from pathlib import Path
from typing import NotRequired, TypedDict

from curia2_jax.curiabench.leaks import Leak
from curia2_jax.curiabench.provenance import Provenance
from curia2_jax.errors import UserError

FILE = "results.json"
PAGE = "report.html"
SCORES = "scores.csv"
TEX = "table.tex"

Score = list[float | None]  # [value, lower, upper] of a 95 % interval; None where undefined
Table = dict[str, dict[str, dict[str, Score]]]  # row -> head -> metric -> score


def page_of(task: str) -> str:
    """Where in the folder of a report the page of a task is."""
    return f"pages/{task}.html"


def defined(score: Score) -> tuple[float, float, float]:
    """A score as numbers.

    Raises:
      UserError: it is undefined, as an AUROC is where a task has one class.
    """
    value, low, high = score
    if value is None or low is None or high is None:
        raise UserError(f"{FILE}: found the score {score}; write tasks of which every class has test samples")
    return value, low, high


class Comparison(TypedDict):
    """Scores of every row, and of the trained row minus each other row on the same patients.

    `seeds`: the single values of rows that have several, row -> head -> metric -> values.
    """

    rows: Table
    trained_minus: Table
    seeds: NotRequired[dict[str, dict[str, dict[str, list[float]]]]]


class Count(TypedDict):
    """Size of a split; `per_class` in the order of the task's classes."""

    samples: int
    slices: int
    patients: int
    per_class: list[int]


class Shot(TypedDict):
    """The primary score of a row that learned from so many percent of the patients of train; `patients` of one draw."""

    percent: int
    patients: int
    score: Score


class TaskResults(Comparison):
    """Scores of one task. `resampled` and `validated_on`: what the intervals and the choice of C go over."""

    classes: list[str]
    train: Count
    val: NotRequired[Count]
    test: Count
    warnings: NotRequired[list[str]]  # of how the task was read
    test_samples_seen_in_train: int
    rare_classes: NotRequired[dict[str, int]]  # class -> test patients, where they are few
    resampled: str  # "patient" or "slice"
    validated_on: str  # "val", or "patient" or "slice" of train
    heads: dict[str, dict[str, dict]]  # row -> head -> what it chose
    few_shot: NotRequired[dict[str, list[Shot]]]  # row -> its label-efficiency curve
    attention: NotRequired[Comparison]  # of volumes by attention over their slices
    # row -> head -> score -> of each label, in tasks of several labels
    labels: NotRequired[dict[str, dict[str, dict[str, list[float | None]]]]]
    confusion: NotRequired[
        dict[str, dict[str, list[list[int]]]]
    ]  # row -> head -> [true][predicted], if there are classes


class ModelFacts(TypedDict):
    """Which model was scored. Sizes in tokens' width, blocks and pixels."""

    folder: str
    sha256: str
    parameters: int
    width: int
    depth: int
    patch_size: int
    resolution: int


class Settings(TypedDict):
    """How it was scored, with the constants of the heads beside these."""

    device: str
    kind: NotRequired[str]  # absent in the first reports
    precision: NotRequired[str]  # of the backbones; absent in reports that are all float32, as is the next
    pooling: NotRequired[dict[str, str | int]]  # how tokens became features, of every model
    pooling_defects: NotRequired[dict[str, str]]  # of the public trainer, that the pooling has, and what they change
    others: NotRequired[dict[str, dict[str, str]]]  # other people's models and what they saw
    random_weights: NotRequired[list[str] | str]  # folders, or what they are
    primary: dict[str, str]
    intervals: NotRequired[str]  # absent where they are of a bootstrap
    versions: dict[str, str]


class Results(TypedDict):
    """All of results.json. `mean`: over the tasks; `verdict`: a sentence on the primary score."""

    model: ModelFacts
    settings: Settings
    provenance: NotRequired[Provenance]  # absent in the first reports
    tasks: dict[str, TaskResults]
    mean: Comparison
    leak: NotRequired[Leak]  # absent where no corpus was given to look in
    verdict: str


def read(report: Path) -> Results:
    """results.json of the folder of a report.

    Raises:
      UserError: the file is not there, or is not JSON.
    """
    path = Path(report) / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not there; write the folder of a report by launch/evaluate.py") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); score the model anew with launch/evaluate.py") from None
