"""Crops against PIL, on slices smaller than the canvas and boxes at the true border; every augmentation at its rate."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from curia2_jax.training import views
from curia2_jax.training.recipe import recipe_from
from tests.training.tiny import tiny_config

CONFIG = recipe_from(tiny_config()).views
OFF = {f"{name}_rate": 0.0 for name in ("gamma", "brightness", "contrast", "noise")} | {"blur_rate": (0.0, 0.0, 0.0)}


@functools.partial(jax.jit, static_argnames="config")
def cut(batch, key, config):
    return views.views(batch, key, config, 24, 16)


def slices_and_boxes(count=4, boxes=6, canvas=96, seed=0):
    """int16 slices of different sizes on one canvas whose padding is garbage, and boxes up to the true borders."""
    rng = np.random.default_rng(seed)
    slices = rng.integers(-30_000, 30_000, (count, canvas, canvas)).astype(np.int16)
    extent = np.stack([rng.integers(40, canvas + 1, count), rng.integers(40, canvas + 1, count)], 1).astype(np.int32)
    out = np.zeros((count, boxes, 4), np.float32)
    for i, (h, w) in enumerate(extent):
        slices[i, :h, :w] = rng.integers(-1024, 2048, (h, w))
        for b in range(boxes):
            top, left = rng.uniform(0, h / 2), rng.uniform(0, w / 2)
            out[i, b] = top, left, rng.uniform(top + 8, h), rng.uniform(left + 8, w)
        out[i, 0] = 0, 0, h, w
        out[i, 1] = h - 20.5, w - 30.25, h, w
    return slices, extent, out


@pytest.mark.parametrize("size", [16, 48, 160])
def test_crop_and_resize_equals_pil(size):
    slices, extent, boxes = slices_and_boxes()
    crops = views.crop_and_resize(jnp.asarray(slices, jnp.float32), jnp.asarray(extent), jnp.asarray(boxes), size)
    for i, (h, w) in enumerate(extent):
        image = Image.fromarray(slices[i, :h, :w].astype(np.float32))
        for b, (y0, x0, y1, x1) in enumerate(boxes[i]):
            expected = image.resize((size, size), Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))
            error = np.abs(np.asarray(expected) - crops[i, b]).max() / (2048 + 1024)
            assert error < 2e-4, (i, b, error)


def halves(x):
    """x as the sum of two bfloat16 numbers, as far as two go."""
    high = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    return high, (x - high).astype(ml_dtypes.bfloat16).astype(np.float32)


def three_passes(equation, a, b):
    """The product that THREE_PASSES names, where the hardware has it: halves in bfloat16, sums in float32."""
    (a_high, a_low), (b_high, b_low) = halves(a), halves(b)
    product = functools.partial(np.einsum, equation, dtype=np.float32)
    return product(a_high, b_low) + product(a_low, b_high) + product(a_high, b_high)


def test_three_products_of_bfloat16_are_enough_for_a_crop():
    """A CPU computes in float32 whatever it is asked: the arithmetic of TPUs and tensor cores is done here by hand."""
    slices, extent, boxes = slices_and_boxes()
    height, width = (np.broadcast_to(extent[:, axis, None], boxes.shape[:2]) for axis in (0, 1))
    rows = np.asarray(views.resize_weights(boxes[..., 0], boxes[..., 2], height, 48, 96))
    columns = np.asarray(views.resize_weights(boxes[..., 1], boxes[..., 3], width, 48, 96))
    tall = three_passes("bvrs,bst->bvrt", rows, slices.astype(np.float32))
    crops = three_passes("bvrt,bvct->bvrc", tall, columns)
    for i, (h, w) in enumerate(extent):
        image = Image.fromarray(slices[i, :h, :w].astype(np.float32))
        for b, (y0, x0, y1, x1) in enumerate(boxes[i]):
            expected = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC, box=(x0, y0, x1, y1)))
            assert np.abs(expected - crops[i, b]).max() / (2048 + 1024) < 2e-5, (i, b)


def test_z_score_takes_the_true_slice_after_clipping():
    slices, extent, _ = slices_and_boxes()
    is_ct = np.array([True, False, True, False])
    clipped = views.clip_air(jnp.asarray(slices, jnp.float32), jnp.asarray(is_ct))
    mean, std = views.slice_statistics(clipped, jnp.asarray(extent))
    for i, (h, w) in enumerate(extent):
        true = slices[i, :h, :w].astype(np.float64)
        true = np.maximum(true, -1000) if is_ct[i] else true
        np.testing.assert_allclose([mean[i], std[i]], [true.mean(), true.std()], rtol=1e-5)


def batch_of(count=64, canvas=48):
    rng = np.random.default_rng(3)
    return {
        "slices": jnp.asarray(rng.integers(-1000, 1000, (count, canvas, canvas)), jnp.int16),
        "extent": jnp.full((count, 2), canvas, jnp.int32),
        "global_boxes": jnp.tile(jnp.asarray([0.0, 0.0, canvas, canvas]), (count, 2, 1)),
        "local_boxes": jnp.tile(jnp.asarray([4.0, 4.0, 30.0, 30.0]), (count, 3, 1)),
        "flips": jnp.zeros((count, 5), bool),
        "is_ct": jnp.ones(count, bool),
    }


@pytest.mark.parametrize("name", ["gamma", "brightness", "contrast", "noise"])
def test_each_augmentation_comes_at_its_rate_and_alone_changes_the_crop(name):
    batch, key = batch_of(), jax.random.key(0)
    plain = cut(batch, key, dataclasses.replace(CONFIG, **OFF))
    changed = cut(batch, key, dataclasses.replace(CONFIG, **OFF | {f"{name}_rate": 0.3}))
    for a, b in zip(plain, changed, strict=True):
        share = np.mean(np.abs(np.asarray(a - b)).max((1, 2, 3)) > 1e-6)
        n = a.shape[0]
        assert abs(share - 0.3) < 4 * (0.21 / n) ** 0.5, (name, share, n)


def test_blur_has_a_rate_for_each_kind_of_view():
    batch, key = batch_of(), jax.random.key(1)
    plain = cut(batch, key, dataclasses.replace(CONFIG, **OFF))
    blurred = cut(batch, key, dataclasses.replace(CONFIG, **OFF | {"blur_rate": (0.0, 1.0, 0.5)}))
    change = [np.abs(np.asarray(a - b)).max((1, 2, 3)) > 1e-6 for a, b in zip(plain, blurred, strict=True)]
    assert not change[0][0::2].any() and change[0][1::2].mean() > 0.9  # a spread near 0 blurs nothing
    assert 0.3 < change[1].mean() < 0.7


def test_blur_equals_a_reflected_gaussian_convolution_of_torch():
    rng = np.random.default_rng(5)
    crops, sigma = rng.normal(size=(3, 20, 20)).astype(np.float32), np.array([0.3, 1.0, 2.0], np.float32)
    blurred = views.gaussian_blur(jnp.asarray(crops), jnp.asarray(sigma))
    for crop, s, found in zip(crops, sigma, blurred, strict=True):
        kernel = torch.exp(-0.5 * (torch.arange(-4, 5) / float(s)) ** 2)
        kernel = torch.outer(kernel / kernel.sum(), kernel / kernel.sum())[None, None]
        padded = torch.nn.functional.pad(torch.tensor(crop)[None, None], (4, 4, 4, 4), mode="reflect")
        np.testing.assert_allclose(found, torch.nn.functional.conv2d(padded, kernel)[0, 0].numpy(), atol=2e-6)


@pytest.mark.parametrize("size", [5, 16, 64])
def test_blur_equals_a_mirrored_convolution_in_float64(size):
    rng = np.random.default_rng(6)
    crops, sigma = rng.normal(size=(4, size, size)).astype(np.float32), np.array([0, 0.1, 0.7, 2.0], np.float32)
    blurred = views.gaussian_blur(jnp.asarray(crops), jnp.asarray(sigma))
    np.testing.assert_array_equal(blurred[0], crops[0])
    for crop, s, found in list(zip(crops, sigma, blurred, strict=True))[1:]:
        taps = np.exp(-0.5 * (np.arange(-4, 5) / np.float64(s)) ** 2)
        expected = crop.astype(np.float64)
        for axis in (0, 1):
            expected = scipy.ndimage.convolve1d(expected, taps / taps.sum(), axis=axis, mode="mirror")
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_flips_mirror_columns_and_draws_do_not_depend_on_the_batch_around_a_row():
    batch, key = batch_of(8), jax.random.key(2)
    c = dataclasses.replace(CONFIG, **OFF)
    plain = cut(batch, key, c)
    flipped = cut(batch | {"flips": jnp.ones_like(batch["flips"])}, key, c)
    for a, b in zip(plain, flipped, strict=True):
        np.testing.assert_array_equal(a[:, :, ::-1], b)
    few = cut({name: x[:4] for name, x in batch.items()}, key, CONFIG)
    many = cut(batch, key, CONFIG)
    np.testing.assert_allclose(few[0], many[0][:8], rtol=1e-5, atol=1e-5)


def test_a_constant_slice_is_only_centred():
    batch = batch_of(2)
    batch["slices"] = jnp.full_like(batch["slices"], 40)
    crops, _ = cut(batch, jax.random.key(0), dataclasses.replace(CONFIG, **OFF))
    np.testing.assert_allclose(crops, 0.0, atol=1e-3)
