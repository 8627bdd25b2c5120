"""Everything on a task page that needs the images of the test split."""

from collections.abc import Sequence
from typing import NamedTuple

from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.model import Model
from curia2_jax.curiabench.pages.cases import ANSWERED, Cases, cases, people
from curia2_jax.curiabench.pages.tokens import SlicePicture, color_of, token_pictures
from curia2_jax.curiabench.protocol import TRAINED, scoring_of
from curia2_jax.curiabench.tasks import Task


class Images(NamedTuple):
    """`legend`: name and color, as in CSS, of the classes in label maps; `cases`: None where no sample is answered."""

    tokens: Sequence[SlicePicture] = ()
    legend: Sequence[tuple[str, str]] = ()
    cases: Cases | None = None


def images_of(task: Task, model: Model, one: Answers, salted: bool) -> Images:
    """`salted`: whether patients of the task are called by salted keys, which may be shown."""
    labelled = bool(task.test.labels) or (task.kind.has_classes and task.test.masked)
    tokens = token_pictures(task.test, model, one.slices, labelled)
    numbers = sorted({number for picture in tokens for number in picture.classes})
    legend = [(task.classes[number], "rgb({}, {}, {})".format(*color_of(number))) for number in numbers]
    found = None
    if task.kind.name in ANSWERED:
        head = scoring_of(task.kind.name).primary.head
        found = cases(task.test, one, TRAINED.name, head.name, people(one.patients, salted))
    return Images(tokens, legend, found)
