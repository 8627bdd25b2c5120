"""What a run has learned: its teacher beside the weights that the run itself began with, asked without masks.

    python launch/learned.py --run RUN[@STEP] --data CORPUS [--learn-from CORPUS] [--beside RUN[@STEP]]

CORPUS is labelled and, for an honest answer, of patients that the run did not see. The class token of every labelled
slice is asked which structures lie in the slice and how high it lies in its scan, by k nearest neighbors and by a
linear probe, which learn from half of the patients, and from 5 of them; intervals go over the other half. With
--learn-from, they learn from the patients of that corpus, and all of --data are tested. With --beside, another run of
the same model is asked, too, and compared on the same patients. Answers and a picture go to --output, by default
RUN/learned.
"""

import json
import pathlib
from typing import Any

import numpy as np
from absl import flags

from curia2_jax import files
from curia2_jax.curiabench import questions, questions_picture
from curia2_jax.curiabench.results import defined
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.errors import UserError
from curia2_jax.training import checkpoints
from curia2_jax.training.class_tokens import began, features
from curia2_jax.training.recipe import Recipe, recipe_from
from launch import command

_RUN = flags.DEFINE_string("run", None, "RUN or RUN@STEP: the working directory of a run.")
_DATA = flags.DEFINE_string("data", None, "Labelled corpus, made by launch/ingest.py.")
_LEARN_FROM = flags.DEFINE_string("learn-from", None, "Labelled corpus of the patients that heads learn from.")
_BESIDE = flags.DEFINE_string("beside", None, "RUN or RUN@STEP: another run of the same model, to compare with.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for answers.json and answers.png; default: RUN/learned.")
SAME = ("width", "depth", "heads", "patch_size", "ffn", "registers", "image_size", "position_form")
BEGAN = "the weights it began with"


def run(argv: list[str]) -> int:
    """Prints one line a question and head, and the sentences that follow from the intervals."""
    folder, step = checkpoints.parse(command.required(_RUN))
    data = pathlib.Path(command.required(_DATA))
    recipe = recipe_from(checkpoints.read_config(folder))
    corpora = [data, *([pathlib.Path(_LEARN_FROM.value)] if _LEARN_FROM.value else [])]
    asked = [questions.read(corpus) for corpus in corpora]
    if any(len(set(one.patients)) < 3 - len(asked) for one in asked):
        print(f"label maps of too few patients in {' or '.join(map(str, corpora))}: nothing to compare")
        return 0
    teacher, _ = checkpoints.restore_teacher(folder, step)
    backbones = {"trained": teacher["backbone"], BEGAN: began(recipe)} | beside(recipe)
    rows = [features(backbones, recipe, Corpus(c), one.slices) for c, one in zip(corpora, asked, strict=True)]
    labelled = asked[0] if len(asked) == 1 else questions.apart(*asked)
    tokens = {name: np.concatenate([one[name] for one in rows]) for name in rows[0]}
    test, fit = (len(set(labelled.patients[mask])) for mask in (labelled.test, ~labelled.test))
    print(f"{folder} at step {step:,}; {len(labelled.slices):,} slices, {fit} patients to learn from, {test} to test")
    answers = questions.compare(labelled, tokens)
    if not answers:
        print("the labels ask nothing: every slice has the same")
        return 0
    for line in table(answers):
        print(line)
    print()
    for sentence in questions.verdict(answers):
        print(sentence)
    output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else pathlib.Path(folder) / "learned"
    output.mkdir(parents=True, exist_ok=True)
    files.write_text(output / "answers.json", json.dumps([one._asdict() for one in answers], indent=1) + "\n")
    questions_picture.draw(output / "answers.png", answers)
    print(f"picture: {output / 'answers.png'}")
    return 0


def beside(recipe: Recipe) -> dict[str, Any]:
    """The backbone of --beside under its name, if it was given.

    Raises:
      UserError: it is another model.
    """
    if not _BESIDE.value:
        return {}
    other, step = checkpoints.parse(_BESIDE.value)
    found = recipe_from(checkpoints.read_config(other))
    if any(getattr(found.model, key) != getattr(recipe.model, key) for key in SAME):
        raise UserError(f"--beside {other}: another model than that of --run; write a run of the same config.model")
    return {f"{other.name} at step {step:,}": checkpoints.restore_teacher(other, step)[0]["backbone"]}


def table(answers: list[questions.Answer]) -> list[str]:
    """Lines of text: the scores of every row, and what the first has more than each other one."""
    rows, others = list(answers[0].scores), list(answers[0].gains)
    lines = [f"{'':<31}{'head':<14}{'labels':<8}" + "".join(f"{row[:25]:<26}" for row in rows)
             + "".join(f"- {row[:25]:<26}" for row in others)]  # fmt: skip
    for one in answers:
        values = "".join(f"{defined(one.scores[row])[0]:<26.3f}" for row in rows)
        gains = "".join("{:+.3f} [{:+.3f}, {:+.3f}]".format(*defined(one.gains[row])).ljust(28) for row in others)
        lines.append(f"{one.question:<31}{one.head:<14}{one.labelled:<8}{values}{gains}".rstrip())
    return lines


if __name__ == "__main__":
    command.start(run)
