"""Where the body is found, against masks that are known."""

import numpy as np
import pytest
from scipy import ndimage

from curia2_jax.data.ingest import foreground, intensity
from curia2_jax.data.readers import nifti
from tests.data.small_studies import body


def scene(seed: int = 0, shape=(512, 512), noise: float = 15.0) -> tuple[np.ndarray, np.ndarray]:
    """A CT of one elliptic body: (int16 slice, the body)."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = ((y - 0.45 * shape[0]) / (0.25 * shape[0])) ** 2 + ((x - 0.55 * shape[1]) / (0.35 * shape[1])) ** 2 < 1
    rng = np.random.default_rng(seed)
    return np.where(inside, 40.0, -1000.0) + rng.normal(0, noise, shape), inside


def truth(mask: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(mask)
    return np.array([y.mean() + 0.5, x.mean() + 0.5, y.std(), x.std()])


def found(pixels: np.ndarray, threshold: float = foreground.CT_THRESHOLD) -> tuple[np.ndarray, float]:
    couch = threshold == foreground.CT_THRESHOLD
    one = foreground.find(np.round(pixels).astype(np.int16)[None], threshold, couch)
    return np.array([one.y[0], one.x[0], one.std_y[0], one.std_x[0]]), float(one.fraction[0])


@pytest.mark.parametrize("shape", [(512, 512), (500, 317), (128, 128), (129, 400), (40, 33)])
def test_center_and_spread_of_a_body(shape):
    """In pixels of the slice."""
    pixels, inside = scene(shape=shape)
    moments, fraction = found(pixels)
    np.testing.assert_allclose(moments, truth(inside), atol=max(1.0, 0.006 * max(shape)))
    assert abs(fraction - inside.mean()) < 0.03


def test_table_cushion_and_cable_are_left_out():
    """They do not move the center."""
    pixels, inside = scene()
    pixels[390:396, 40:470] = 100  # a table below the body
    pixels[396:430, 40:46] = -200
    pixels[10:14, 200:400] = 60  # a cable above
    np.testing.assert_allclose(found(pixels)[0], truth(inside), atol=2)


def test_walls_of_a_hollow_phantom_are_body_and_those_of_a_hollow_table_are_not():
    """By shape and size of what they shut in."""
    _, inside = scene()
    hollow = inside & ~ndimage.binary_erosion(inside, iterations=6)  # opened away but for the inside
    hollow[200:240, 250:290] = True  # an insert
    pixels = np.where(hollow, 100.0, -1000.0)
    solid = np.where(inside, 40.0, -1000.0)
    for body_pixels in (pixels, solid):
        np.testing.assert_allclose(found(body_pixels)[0], truth(inside), atol=2)
        table = body_pixels.copy()
        table[366:372, 30:480] = table[410:416, 30:480] = 100
        table[366:416, 30:36] = table[366:416, 474:480] = 100
        np.testing.assert_allclose(found(table)[0], truth(inside), atol=2)
        y, x = np.mgrid[:512, :512]
        small = (y - 250) ** 2 + (x - 260) ** 2 < 45**2
        neck = np.where(small, 40.0, -1000.0)
        neck[366:416, 30:480] = table[366:416, 30:480]
        np.testing.assert_allclose(found(neck)[0], truth(small), atol=2)  # smaller than what the table shuts in


def test_arms_stay_in():
    """Though they do not touch the trunk."""
    pixels, inside = scene()
    y, x = np.mgrid[:512, :512]
    arm = ((y - 240) / 60) ** 2 + ((x - 40) / 30) ** 2 < 1
    pixels[arm] = 50
    np.testing.assert_allclose(found(pixels)[0], truth(inside | arm), atol=2)


def test_lungs_implants_and_padding_change_nothing():
    """Holes are filled."""
    pixels, inside = scene()
    lungs, y, x = pixels.copy(), *np.mgrid[:512, :512]
    lungs[((y - 220) / 60) ** 2 + ((x - 220) / 50) ** 2 < 1] = -850
    implant = pixels.copy()
    implant[200:230, 300:330] = 30000
    ring = pixels.copy()
    ring[(y - 256) ** 2 + (x - 256) ** 2 > 256**2] = -3024
    for changed in (lungs, implant, ring):
        np.testing.assert_allclose(found(changed)[0], truth(inside), atol=2)


@pytest.mark.parametrize("floor", [0, 30, 120])
def test_mr_with_a_noise_floor_and_a_bias_field(floor):
    """With the threshold of the volume."""
    _, inside = scene()
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:512, :512] / 512
    signal = np.where(inside, 400 * (0.6 + 0.8 * x) * (0.8 + 0.4 * np.sin(40 * y) * np.sin(40 * x)), 0.0)
    pixels = np.hypot(signal + rng.normal(0, 25, signal.shape), rng.normal(0, 25, signal.shape)) + floor
    values = foreground.reduce(np.round(pixels).astype(np.int16)[None]).ravel()
    np.testing.assert_allclose(found(pixels, foreground.mr_threshold(values))[0], truth(inside), atol=5)


def test_slices_of_noise_alone_have_no_foreground():
    """Nor has a slice of one value."""
    pixels = np.random.default_rng(0).normal(-1000, 60, (3, 512, 512)).astype(np.int16)
    empty = foreground.find(pixels, foreground.CT_THRESHOLD, True)
    assert (empty.fraction < foreground.MIN_FOREGROUND).all()
    nothing = foreground.find(np.full((1, 40, 60), -1000, np.int16), foreground.CT_THRESHOLD, True)
    assert (nothing.fraction[0], nothing.y[0], nothing.x[0]) == (0, 20, 30) and np.isinf(nothing.std_y[0])


def test_reduce_is_the_mean_of_blocks():
    """Those over the edge repeat it."""
    slices = np.random.default_rng(0).integers(-32768, 32768, (2, 300, 257)).astype(np.int16)
    reduced = foreground.reduce(slices)
    assert reduced.shape == (2, 100, 86) and reduced.dtype == np.float32
    padded = np.pad(slices, ((0, 0), (0, 0), (0, 1)), mode="edge").astype(np.float64)
    np.testing.assert_allclose(reduced, padded.reshape(2, 100, 3, 86, 3).mean(axis=(2, 4)), rtol=1e-6, atol=0.01)


def test_slices_of_a_block_do_not_touch_each_other():
    """A slice alone gives the same."""
    block = body((9, 60, 60))
    block[4] = -1000
    together = foreground.find(block, foreground.CT_THRESHOLD, True)
    for z in range(9):
        alone = foreground.find(block[z : z + 1], foreground.CT_THRESHOLD, True)
        for name in ("fraction", "y", "x", "std_y", "std_x"):
            assert getattr(alone, name)[0] == getattr(together, name)[z]


@pytest.mark.parametrize(
    "name",
    [
        *("ct/abdomen_ts_512", "ct/chest_lidc0314_z4", "by-sa/spleen2_ct", "mr/brain_tumour_pyrad1"),
        *("mr/cord_t2s", "mr/glioma_a_t2", "mr/brain_t1_studyforrest", "mr/mni152_t1"),
    ],
)
def test_the_reduction_stays_within_two_pixels_of_full_resolution(shared_data, name):
    """Full resolution: the same steps without blocks, every structuring element as wide in millimeters."""
    volume = intensity.settle(nifti.read([shared_data / f"{name}.nii.gz"]))
    stored = intensity.Quantizer.from_volume(volume)(volume.raw[:: max(1, len(volume.raw) // 12)])
    reduced = foreground.reduce(stored)
    ct = volume.modality == "CT"
    threshold = foreground.CT_THRESHOLD if ct else foreground.mr_threshold(reduced.ravel())
    quick = foreground.find(stored, threshold, ct)
    k = -(-max(stored.shape[1:]) // 128)
    square, errors = np.ones((3 * k | 1, 3 * k | 1)), []
    for z in np.flatnonzero(quick.fraction >= foreground.MIN_FOREGROUND):
        mask = ndimage.uniform_filter(stored[z].astype(np.float32), k) > threshold  # averages as much noise as a block
        mask = ndimage.binary_opening(mask, square) if ct else mask
        labels, _ = ndimage.label(mask)
        area = np.bincount(labels.ravel())[1:]
        mask = np.isin(labels, 1 + np.flatnonzero(area >= 0.04 * area.max()))
        mask = ndimage.binary_fill_holes(mask | ndimage.binary_closing(mask, square))
        moments = np.array([quick.y[z], quick.x[z], quick.std_y[z], quick.std_x[z]])
        errors.append(np.abs(moments - truth(mask)).max())
    assert len(errors) >= 8 and np.quantile(errors, 0.9) <= 2 and max(errors) <= 2.5, np.round(errors, 1)


@pytest.mark.parametrize(("value", "is_body"), [(-400, True), (-600, False)])
def test_the_threshold_of_ct_lies_between_fat_and_lung(value, is_body):
    """A disk of that many HU in air, 60 pixels wide."""
    y, x = np.mgrid[:128, :128]
    disk = (y - 60) ** 2 + (x - 70) ** 2 < 30**2
    _, fraction = found(np.where(disk, value, -1000.0))
    assert fraction == pytest.approx(disk.mean() if is_body else 0.0, abs=0.02)
