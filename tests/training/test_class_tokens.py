"""Class tokens of stored slices: the weights that a run began with, and the pixels that it is shown."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax.curia_image_processor import CuriaImageProcessor
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.errors import UserError
from curia2_jax.models.vit import ViT
from curia2_jax.training import checkpoints, class_tokens
from curia2_jax.training.recipe import recipe_from
from curia2_jax.training.state import init_state
from tests.data.small_corpus import write_small_corpus
from tests.training.tiny import tiny_config


def test_the_baseline_is_what_the_run_itself_began_with():
    recipe = dataclasses.replace(recipe_from(tiny_config()), seed=3)
    first = jax.jit(lambda: init_state(jax.random.key(3), recipe).teacher["backbone"])()
    for ours, theirs in zip(jax.tree.leaves(class_tokens.began(recipe)), jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("is_ct", [True, False])
def test_a_slice_is_shown_as_the_exported_processor_shows_it(is_ct):
    """To the accuracy of two resamplings: the published one goes by PIL's."""
    rng = np.random.default_rng(0)
    one = np.cumsum(np.cumsum(rng.normal(size=(40, 40)), 0), 1) * 20 - 900
    canvas = np.zeros((1, 48, 48), np.int16)
    canvas[0, :40, :40] = one
    found = class_tokens.pixels(jnp.asarray(canvas), jnp.array([[40, 40]], jnp.int32), jnp.array([is_ct]), 32)
    processor = CuriaImageProcessor(crop_size=32)
    expected = processor(canvas[0, :40, :40].astype(np.float32), clip_below_air=is_ct, return_tensors="pt")
    np.testing.assert_allclose(found[0, ..., 0], expected["pixel_values"][0, 0].numpy(), atol=2e-3)


def test_thumbnails_are_the_slices_made_small_and_tokens_those_of_each_backbone(tmp_path):
    """Of slices out of order and more than a batch; every one as it is alone."""
    write_small_corpus(tmp_path)
    corpus, recipe = Corpus(tmp_path), recipe_from(tiny_config())
    indices = np.arange(len(corpus))[::-1]
    indices = np.tile(indices, 64 // len(indices) + 1)
    first = class_tokens.began(recipe)
    other = jax.tree.map(lambda a: a * 1.5, first)
    found = class_tokens.features({"other": other, "one": first}, recipe, corpus, indices)
    assert list(found) == ["other", "one", class_tokens.THUMBNAILS]  # whoever compares takes the first for its own
    assert found["one"].shape == found["other"].shape == (len(indices), 32) and len(indices) > 64
    assert found[class_tokens.THUMBNAILS].shape == (len(indices), 256)
    np.testing.assert_array_equal(found["one"][0], found["one"][len(corpus)])
    row, index = len(indices) - 1, int(indices[-1])
    one = corpus.read(index)
    is_ct = jnp.array([corpus.column("modality")[index] == "CT"])
    canvas = np.zeros((1, *[max(one.shape)] * 2), np.int16)
    canvas[0, : one.shape[0], : one.shape[1]] = one
    extent = jnp.array([one.shape], jnp.int32)
    small = class_tokens.pixels(jnp.asarray(canvas), extent, is_ct, 16)
    np.testing.assert_allclose(found[class_tokens.THUMBNAILS][row], np.ravel(small), atol=1e-4)
    for name, params in (("one", first), ("other", other)):
        image = class_tokens.pixels(jnp.asarray(canvas), extent, is_ct, 32)
        alone = ViT(recipe.model).apply({"params": params}, image)["cls"][0]
        np.testing.assert_allclose(found[name][row], alone, atol=2e-4)


def test_another_run_stands_beside_under_its_name_if_it_is_the_same_model(tmp_path):
    recipe = recipe_from(tiny_config())
    stored = jax.tree.map(lambda a: np.full(a.shape, 0.25, a.dtype), class_tokens.began(recipe))
    checkpoints.save_items(tmp_path / "other", 7, {"teacher": {"backbone": stored}}, {"step": 7})
    (tmp_path / "other" / "config.json").write_text(json.dumps(tiny_config()))
    found = class_tokens.beside(f"{tmp_path / 'other'}@7", recipe)
    assert list(found) == ["other at step 7"]
    jax.tree.map(np.testing.assert_array_equal, found["other at step 7"], stored)
    wider = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, heads=1))
    with pytest.raises(UserError, match="another model than that of --run"):
        class_tokens.beside(str(tmp_path / "other"), wider)
