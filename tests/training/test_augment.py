"""Crops against PIL, on slices smaller than the canvas and boxes at the true border; every augmentation at its rate."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from PIL import Image

from curia2_jax.training import augment, resample
from curia2_jax.training.recipe import recipe_from
from tests.training.tiny import tiny_config

CONFIG = recipe_from(tiny_config()).augment
OFF = {f"{name}_rate": 0.0 for name in ("gamma", "brightness", "contrast", "noise")} | {"blur_rate": (0.0, 0.0, 0.0)}


@functools.partial(jax.jit, static_argnames="config")
def cut(batch, key, config):
    return augment.crops_of(batch, key, config, 24, 16)


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
    crops = resample.crop_and_resize(jnp.asarray(slices, jnp.float32), jnp.asarray(extent), jnp.asarray(boxes), size)
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
    y0, x0, y1, x1 = jnp.moveaxis(jnp.asarray(boxes), -1, 0)
    rows = np.asarray(resample.resize_weights(y0, y1, jnp.asarray(height), 48, 96))
    columns = np.asarray(resample.resize_weights(x0, x1, jnp.asarray(width), 48, 96))
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
    clipped = augment.clip_ct(jnp.asarray(slices, jnp.float32), jnp.asarray(is_ct))
    mean, std = augment.slice_statistics(clipped, jnp.asarray(extent))
    for i, (h, w) in enumerate(extent):
        true = slices[i, :h, :w].astype(np.float64)
        true = np.maximum(true, -1000) if is_ct[i] else true
        np.testing.assert_allclose([mean[i], std[i]], [true.mean(), true.std()], rtol=1e-5)


def test_crops_of_ct_are_windowed_and_those_of_mr_are_not():
    """No augmentation, the whole slice as the box: values beyond the window are those of its edges."""
    batch = batch_of(2) | {"is_ct": jnp.array([True, False])}
    found, _ = cut(batch, jax.random.key(0), dataclasses.replace(CONFIG, window=(-200.0, 300.0), **OFF))
    native = np.asarray(batch["slices"], np.float64)
    ct = native[0].clip(-200, 300)
    edges = (np.array([-200, 300]) - ct.mean()) / ct.std()
    views = np.asarray(found).reshape(2, 2, 24, 24)
    np.testing.assert_allclose([views[0].min(), views[0].max()], edges, rtol=1e-4)
    assert views[1].min() < (-500 - native[1].mean()) / native[1].std()


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
    blurred = augment.gaussian_blur(jnp.asarray(crops), jnp.asarray(sigma))
    for crop, s, found in zip(crops, sigma, blurred, strict=True):
        kernel = torch.exp(-0.5 * (torch.arange(-4, 5) / float(s)) ** 2)
        kernel = torch.outer(kernel / kernel.sum(), kernel / kernel.sum())[None, None]
        padded = torch.nn.functional.pad(torch.tensor(crop)[None, None], (4, 4, 4, 4), mode="reflect")
        np.testing.assert_allclose(found, torch.nn.functional.conv2d(padded, kernel)[0, 0].numpy(), atol=2e-6)


@pytest.mark.parametrize("size", [5, 16, 64])
def test_blur_equals_a_mirrored_convolution_in_float64(size):
    rng = np.random.default_rng(6)
    crops, sigma = rng.normal(size=(4, size, size)).astype(np.float32), np.array([0, 0.1, 0.7, 2.0], np.float32)
    blurred = augment.gaussian_blur(jnp.asarray(crops), jnp.asarray(sigma))
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


def test_a_constant_slice_is_only_centerd():
    batch = batch_of(2)
    batch["slices"] = jnp.full_like(batch["slices"], 40)
    crops, _ = cut(batch, jax.random.key(0), dataclasses.replace(CONFIG, **OFF))
    np.testing.assert_allclose(crops, 0.0, atol=1e-3)


def sharp_slices():
    """CT with sharp edges, -1,400 around the body and -3,024 in a corner, below what air is clipped at; and an MR."""
    rng = np.random.default_rng(3)
    slices = np.zeros((2, 96, 96), np.int16)
    slices[:, :80, :90] = -1400
    slices[:, 20:60, 30:70] = rng.integers(-50, 1500, (40, 40))
    slices[:, :9, :9] = -3024
    return slices, np.array([[80, 90], [80, 90]], np.int32), np.array([True, False])


def test_without_augmentation_a_crop_is_pils_clipped_and_by_the_statistics_of_the_clipped_slice():
    """CT is clipped after cropping, undershoot of the cubic kernel too, and before its mean and spread are taken."""
    slices, extent, is_ct = sharp_slices()
    boxes = np.tile(np.array([[0, 0, 80, 90], [15.5, 20.25, 63.5, 71.0]], np.float32), (2, 1, 1))
    batch = {
        "slices": slices, "extent": extent, "is_ct": is_ct, "global_boxes": boxes, "local_boxes": boxes[:, ::-1],
        "flips": np.zeros((2, 4), bool),
    }  # fmt: skip
    config = dataclasses.replace(CONFIG, **OFF)
    crops = cut({k: jnp.asarray(v) for k, v in batch.items()}, jax.random.key(0), config)
    for view, size in ((0, 24), (1, 16)):
        ours = np.asarray(crops[view])[..., 0].reshape(2, 2, size, size)
        for i in range(2):
            true = slices[i, :80, :90].astype(np.float32)
            native = np.maximum(true, -1000) if is_ct[i] else true
            for b, (y0, x0, y1, x1) in enumerate(batch["global_boxes" if view == 0 else "local_boxes"][i]):
                image = Image.fromarray(true).resize((size, size), Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))
                pixels = np.maximum(np.asarray(image), -1000) if is_ct[i] else np.asarray(image)
                expected = (pixels - native.mean()) / native.std()
                np.testing.assert_allclose(ours[i, b], expected, rtol=0, atol=2e-4 * np.ptp(true) / native.std())


def test_flips_belong_to_their_view():
    """One view is flipped at a time: that crop is mirrored, and no other."""
    slices, extent, boxes = slices_and_boxes(count=2, boxes=4)
    batch = {
        "slices": slices, "extent": extent, "is_ct": np.zeros(2, bool), "global_boxes": boxes[:, :2],
        "local_boxes": boxes[:, 2:],
    }  # fmt: skip
    config = dataclasses.replace(CONFIG, **OFF)

    def crops(flips):
        out = cut({k: jnp.asarray(v) for k, v in (batch | {"flips": flips}).items()}, jax.random.key(0), config)
        return [np.asarray(c)[..., 0].reshape(2, 2, *c.shape[1:3]) for c in out]

    plain = crops(np.zeros((2, 4), bool))
    for view in range(4):
        flips = np.zeros((2, 4), bool)
        flips[:, view] = True
        found = crops(flips)
        for other in range(4):
            a, b = found[other // 2][:, other % 2], plain[other // 2][:, other % 2]
            np.testing.assert_allclose(a, b[..., ::-1] if other == view else b, rtol=1e-6, atol=1e-6)


def augmented(crops, **changes):
    """Crops (V, R, R) of a slice of mean 0 and spread 1, after one kind of augmentation at rate 1."""
    config = dataclasses.replace(CONFIG, **(OFF | changes))
    mean, std, blur_rates = jnp.zeros(()), jnp.ones(()), jnp.zeros(len(crops))

    def apply(key):
        return augment.augment(jnp.asarray(crops), mean, std, blur_rates, key, config)

    return np.asarray(jax.vmap(apply)(jax.random.split(jax.random.key(1), 400)))


def test_gamma_bends_between_the_ends_with_an_exponent_that_is_log_uniform():
    """A ramp keeps its ends; log(exponent), read off its middle, is uniform in +-log(gamma)."""
    ramp = np.linspace(-2, 6, 81, dtype=np.float32).reshape(1, 9, 9)
    bent = augmented(ramp, gamma_rate=1.0, gamma=1.5)[:, 0].reshape(400, 81)
    np.testing.assert_allclose(bent[:, [0, -1]], np.tile([-2, 6], (400, 1)), atol=1e-5)
    exponent = np.log((bent[:, 40] + 2) / 8) / np.log(0.5)
    reach = np.log(1.5)
    law = scipy.stats.uniform(-reach, 2 * reach)
    assert scipy.stats.kstest(np.log(exponent), law.cdf).pvalue > 0.01


def test_contrast_stretches_about_the_mean_and_brightness_shifts():
    """The mean of a crop stays under contrast and its spread is multiplied; under brightness it is the other way."""
    crop = np.random.default_rng(0).normal(3, 2, (1, 12, 12)).astype(np.float32)
    stretched = augmented(crop, contrast_rate=1.0, contrast=0.4)[:, 0]
    np.testing.assert_allclose(stretched.mean((1, 2)), crop.mean(), rtol=1e-4)
    factor = stretched.std((1, 2)) / crop.std()
    assert scipy.stats.kstest(factor, scipy.stats.uniform(0.6, 0.8).cdf).pvalue > 0.01
    shifted = augmented(crop, brightness_rate=1.0, brightness=0.4)[:, 0]
    np.testing.assert_allclose(shifted.std((1, 2)), crop.std(), rtol=1e-4)
    offset = shifted.mean((1, 2)) - crop.mean()
    assert scipy.stats.kstest(offset, scipy.stats.uniform(-0.4, 0.8).cdf).pvalue > 0.01
