"""Class tokens of stored slices: the weights that a run began with, and the pixels that it is shown."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax.curia_image_processor import CuriaImageProcessor
from curia2_jax.training import class_tokens
from curia2_jax.training.recipe import recipe_from
from curia2_jax.training.state import init_state
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
