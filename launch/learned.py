"""What a run has learned: its teacher beside the weights that the run itself began with, asked without masks.

    python launch/learned.py --run RUN[@STEP] --data CORPUS

CORPUS is labelled and, for an honest answer, of patients that the run did not see. The class token of every labelled
slice is asked which structures lie in the slice and how high it lies in its scan, by k nearest neighbors and by a
linear probe that learn from half of the patients; intervals go over the other half.
"""

import pathlib

from absl import flags

from curia2_jax.curiabench import questions
from curia2_jax.curiabench.results import defined
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.training import checkpoints
from curia2_jax.training.class_tokens import began, class_tokens
from curia2_jax.training.recipe import recipe_from
from launch import command

_RUN = flags.DEFINE_string("run", None, "RUN or RUN@STEP: the working directory of a run.")
_DATA = flags.DEFINE_string("data", None, "Labelled corpus, made by launch/ingest.py.")


def run(argv: list[str]) -> int:
    """Prints one line a question and head, and the sentence that follows from the intervals."""
    folder, step = checkpoints.parse(command.required(_RUN))
    data = pathlib.Path(command.required(_DATA))
    recipe = recipe_from(checkpoints.read_config(folder))
    labelled = questions.read(data)
    if len(set(labelled.patients)) < 2:
        print(f"label maps of fewer than two patients in {data}: nothing to compare")
        return 0
    teacher, _ = checkpoints.restore_teacher(folder, step)
    trained, baseline = class_tokens([teacher["backbone"], began(recipe)], recipe, Corpus(data), labelled.slices)
    test, fit = (len(set(labelled.patients[mask])) for mask in (labelled.test, ~labelled.test))
    print(f"{folder} at step {step:,}; {len(labelled.slices):,} slices, {fit} patients to learn from, {test} to test")
    print(f"{'':<30}{'':<14}{'trained':<9}{'step 0':<9}trained - step 0, 95 % interval over patients")
    answers = questions.compare(labelled, trained, baseline)
    for one in answers:
        gain, low, high = defined(one.difference)
        values = f"{one.trained[0]:<9.3f}{one.baseline[0]:<9.3f}"
        print(f"{one.question:<30}{one.head:<14}{values}{gain:+.3f} [{low:+.3f}, {high:+.3f}]")
    print(f"\n{questions.verdict(answers)}")
    return 0


if __name__ == "__main__":
    command.start(run)
