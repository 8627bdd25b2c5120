"""Three interpolation forms against the reference tables, torch and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from curia2_jax.models import pos_embed
from tests import reference

TABLES = reference.VALUES["vit_and_head_forward"]["bicubic_tables"]
NAMES = {"offset": "offset0.1_noAA", "size": "size_noAA(HF_Dinov2Model)", "antialias": "size_AA(registers)"}


def table(side, width, seed=0):
    return np.random.default_rng(seed).normal(size=(1, 1 + side * side, width))


@pytest.mark.parametrize("form", pos_embed.FORMS)
@pytest.mark.parametrize("out", [3, 7])
def test_reference_tables(form, out):
    i, j = np.indices((4, 4))
    p = np.sin(0.5 * (i + 1) + 0.3 * (j + 1))
    matrix = pos_embed.weights(form, 4, out)
    np.testing.assert_allclose(matrix @ p @ matrix.T, TABLES[f"to_{out}_{NAMES[form]}"], rtol=1e-9, atol=1e-12)


def in_torch(p, grid, form):
    """The PyTorch calls of Dinov2Model, DINOv2's training code and Dinov2WithRegistersModel."""
    side = int((p.shape[1] - 1) ** 0.5)
    patches = torch.from_numpy(p[:, 1:]).reshape(1, side, side, -1).permute(0, 3, 1, 2)
    options = {"mode": "bicubic", "antialias": form == "antialias"}
    if form == "offset":
        options["scale_factor"] = tuple((n + 0.1) / side for n in grid)
    else:
        options["size"] = grid
    patches = functional.interpolate(patches, **options).permute(0, 2, 3, 1).flatten(1, 2)
    return np.concatenate([p[:, :1], patches.numpy()], axis=1)


@pytest.mark.parametrize("form", pos_embed.FORMS)
@pytest.mark.parametrize(("side", "grid"), [(16, (7, 7)), (16, (32, 32)), (14, (6, 11)), (37, (16, 16)), (4, (9, 2))])
def test_equals_torch(form, side, grid):
    p = table(side, 3)
    expected = in_torch(p, grid, form)
    with jax.enable_x64(True):
        np.testing.assert_allclose(pos_embed.interpolate(jnp.asarray(p), grid, form), expected, rtol=0, atol=1e-12)
    single = pos_embed.interpolate(jnp.asarray(p, jnp.float32), grid, form)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, rtol=0, atol=5e-6)
    if grid[0] == grid[1]:
        np.testing.assert_allclose(pos_embed.resize_grid(p, grid[0], form), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("form", "method"), [("antialias", "cubic"), ("size", "cubic-pytorch")])
@pytest.mark.parametrize("out", [5, 24])
def test_equals_jax_image_resize(form, method, out):
    p = table(16, 4).astype(np.float32)
    patches = p[0, 1:].reshape(16, 16, 4)
    expected = jax.image.resize(jnp.asarray(patches), (out, out, 4), method, antialias=form == "antialias")
    ours = pos_embed.interpolate(jnp.asarray(p), (out, out), form)[0, 1:].reshape(out, out, 4)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("form", pos_embed.FORMS)
def test_native_grid_is_used_as_it_is(form):
    p = table(4, 3).astype(np.float32)
    np.testing.assert_array_equal(pos_embed.interpolate(jnp.asarray(p), (4, 4), form), p)
    np.testing.assert_array_equal(pos_embed.resize_grid(p, 4, form), p)
    # As many patches, but another shape: interpolated.
    assert not np.allclose(pos_embed.interpolate(jnp.asarray(p), (2, 8), form), p)


def test_table_keeps_its_dtype_and_class_entry():
    p = table(16, 3).astype(np.float32)
    wide = pos_embed.resize_grid(p, 32, "size")
    assert wide.dtype == np.float32 and wide.shape == (1, 1025, 3)
    np.testing.assert_array_equal(wide[:, 0], p[:, 0])
    half = pos_embed.interpolate(jnp.asarray(p, jnp.bfloat16), (8, 8), "size")
    assert half.dtype == jnp.float32


def test_unknown_form():
    with pytest.raises(ValueError, match="'linear'"):
        pos_embed.weights("linear", 4, 7)
