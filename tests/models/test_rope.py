"""Rotary positions against DINOv3's own in transformers, and what they leave alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.dinov3_vit import modeling_dinov3_vit as theirs
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig

from curia2_jax.errors import UserError
from curia2_jax.models import rope
from curia2_jax.models.vit import ViT
from tests.models.test_vit import SMALL, params_of, pixels

ROTARY = dataclasses.replace(SMALL, depth=2, positions="rope", registers=3, remat="none")


@pytest.mark.parametrize("grid", [(4, 4), (3, 7)])
def test_queries_and_keys_turn_as_in_transformers(grid):
    """Class token, registers and padding do not."""
    heads, head_dim, first, behind = 3, 16, 5, 2
    tokens = first + grid[0] * grid[1] + behind
    x = np.random.default_rng(0).standard_normal((2, tokens, heads * head_dim), np.float32)
    config = DINOv3ViTConfig(hidden_size=heads * head_dim, num_attention_heads=heads, patch_size=8)
    cos, sin = theirs.DINOv3ViTRopePositionEmbedding(config).eval()(torch.zeros(1, 3, 8 * grid[0], 8 * grid[1]))
    by_head = torch.from_numpy(x[:, : tokens - behind]).unflatten(-1, (heads, head_dim)).transpose(1, 2)
    expected, _ = theirs.apply_rotary_pos_emb(by_head, by_head, cos, sin)
    turned = np.asarray(rope.rotate(jnp.asarray(x), heads, grid, first))
    np.testing.assert_allclose(turned[:, : tokens - behind], expected.transpose(1, 2).flatten(2), rtol=0, atol=2e-6)
    np.testing.assert_array_equal(turned[:, :first], x[:, :first])
    np.testing.assert_array_equal(turned[:, -behind:], x[:, -behind:])
    assert np.abs(turned - x)[:, first:-behind].max() > 0.1


def test_scores_know_the_displacement_alone():
    """Two patches of one token each: what they say to each other is the same wherever the pair lies."""
    grid, side = (6, 6), 6
    token = np.random.default_rng(1).standard_normal(8)
    with jax.enable_x64(True):
        turned = rope.rotate(jnp.asarray(np.tile(token, (1, side * side, 1))), 1, grid, 0)[0]
        scores = np.asarray(turned @ turned.T).reshape(side, side, side, side)
    for row, column in np.ndindex(4, 5):
        np.testing.assert_allclose(scores[row, column, row + 2, column + 1], scores[0, 0, 2, 1], rtol=1e-12)
    assert np.ptp(scores[0, 0]) > 0.1


def test_the_loop_over_blocks_and_half_precision_keep_them():
    params, x = params_of(ROTARY), pixels(ROTARY, 4)
    assert "pos_embed" not in params and params["blocks"]["attn"]["key"].keys() == {"kernel"}

    def cls(**changes):
        model = ViT(dataclasses.replace(ROTARY, **changes))
        return np.asarray(jax.jit(model.apply)({"params": params}, x)["cls"])

    np.testing.assert_allclose(cls(scan=False, remat="qkv"), cls(), rtol=0, atol=1e-5)
    assert 0 < np.abs(cls(dtype="bfloat16") - cls()).max() < 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": "rotary"}, "positions='rotary': write one of learned, rope"),
        ({"heads": 16}, "heads of 2 channels"),
    ],
)
def test_what_cannot_turn_is_one_line(changes, words):
    with pytest.raises(UserError, match=words) as told:
        dataclasses.replace(ROTARY, **changes)
    assert "\n" not in str(told.value)
