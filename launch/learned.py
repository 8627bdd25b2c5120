"""What a run has learned: its teacher beside the weights that the run itself began with, asked without masks.

    python launch/learned.py --run RUN[@STEP] --data CORPUS

CORPUS is labelled and, for an honest answer, of patients that the run did not see. The class token of every labelled
slice is asked which structures lie in the slice and how high it lies in its scan, by k nearest neighbors and by a
linear probe that learn from half of the patients; intervals go over the other half.
"""

import dataclasses
import pathlib
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from curia2_jax.curiabench import questions
from curia2_jax.curiabench.results import defined
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.models.vit import ViT
from curia2_jax.training import augment, checkpoints, initial
from curia2_jax.training.recipe import Recipe, recipe_from
from curia2_jax.training.resample import crop_and_resize
from curia2_jax.training.state import init_params
from launch import command

BATCH = 64

_RUN = flags.DEFINE_string("run", None, "RUN or RUN@STEP: the working directory of a run.")
_DATA = flags.DEFINE_string("data", None, "Labelled corpus, made by launch/ingest.py.")


def pixels(slices: jax.Array, extent: jax.Array, is_ct: jax.Array, size: int) -> jax.Array:
    """Whole slices as the model is to see them, (B, R, R, 1): resized, clipped below air, z-scored, not augmented."""
    raw = slices.astype(jnp.float32)
    mean, std = augment.slice_statistics(augment.clip_air(raw, is_ct), extent)
    whole = jnp.concatenate([jnp.zeros_like(extent), extent], axis=1).astype(jnp.float32)[:, None]
    cut = augment.clip_air(crop_and_resize(raw, extent, whole, size), is_ct)[:, 0]
    return augment.z_score(cut, mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1))[..., None]


def class_tokens(backbones: list, recipe: Recipe, corpus: Corpus, indices: np.ndarray) -> list[np.ndarray]:
    """Class tokens (n, D) of the slices `indices` (n,), of every backbone."""
    model = dataclasses.replace(recipe.model, attention="xla", dtype="float32", remat="none", drop_path=0.0)
    modality = np.asarray(corpus.column("modality"))
    side = max(corpus.contract["largest"])

    @jax.jit
    def tokens(slices: jax.Array, extent: jax.Array, is_ct: jax.Array) -> list[jax.Array]:
        images = pixels(slices, extent, is_ct, recipe.crops.global_size)
        return [cast(dict, ViT(model).apply({"params": one}, images))["cls"] for one in backbones]

    found = []
    for start in range(0, len(indices), BATCH):
        some = indices[start : start + BATCH]
        slices, extent = np.zeros((BATCH, side, side), np.int16), np.ones((BATCH, 2), np.int32)
        for row, index in enumerate(some):
            one = corpus.read(int(index))
            slices[row, : one.shape[0], : one.shape[1]], extent[row] = one, one.shape
        is_ct = np.zeros(BATCH, bool)
        is_ct[: len(some)] = modality[some] == "CT"
        found.append([np.asarray(x)[: len(some)] for x in tokens(slices, extent, is_ct)])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def began(recipe: Recipe) -> dict:
    """The backbone that a run of this recipe has at step 0."""
    if recipe.init_from:
        return initial.pretrained(recipe)[1]["backbone"]
    return jax.jit(lambda: init_params(jax.random.key(recipe.seed), recipe)["backbone"])()


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
