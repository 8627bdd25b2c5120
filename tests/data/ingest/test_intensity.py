"""What numbers mean, and how they become int16."""

import numpy as np
import pytest

from curia2_jax.data.ingest import intensity
from curia2_jax.data.readers import nifti
from curia2_jax.data.readers.volume import Refusal, Volume
from tests.data.small_studies import body

CT = ("abdomen_pelvis_ts_3mm", "abdomen_ts_sm", "abdomen_ts_512", "heart_aorta_ts_1p5mm", "head_phantom_philips_5mm")
MR = ("abdomen_ts_sm", "brain_tumour_pyrad1", "colin27_t1_bet", "cord_t1", "cord_t2", "cord_t2s", "glioma_a_flair",
      "glioma_a_t1", "glioma_a_t1c", "glioma_a_t2", "mni152_t1")  # fmt: skip


def volume(raw, **fields) -> Volume:
    return Volume(np.asarray(raw), np.eye(4), **fields)


@pytest.mark.parametrize("name", CT)
def test_real_ct_is_recognised_also_without_its_sign(shared_data, name):
    """From the histogram alone."""
    scan = nifti.read([shared_data / "ct" / f"{name}.nii.gz"])
    settled = intensity.settle(scan)
    assert settled.modality == "CT" and settled.intercept == scan.intercept
    if name.startswith("head_phantom"):
        return  # plastic: it has no fat and no muscle to tell an offset by
    unsigned = volume(np.clip(scan.voxels + 1024, 0, None).astype(np.uint16))
    settled = intensity.settle(unsigned)
    assert settled.modality == "CT" and settled.intercept == -1024
    assert ("ct_offset", "1024 taken from values stored without a sign") in settled.notes


@pytest.mark.parametrize("name", MR)
def test_real_mr_is_never_taken_for_ct(shared_data, name):
    """Nor when it is scaled so that its tissue lies where an unsigned CT has soft tissue."""
    scan = nifti.read([shared_data / "mr" / f"{name}.nii.gz"])
    assert intensity.settle(scan).modality == "MR"
    values = np.maximum(scan.voxels, 0)
    bright = values[values > np.percentile(values, 60)]
    some = values[:: max(1, len(values) // 24), ::2, ::2]
    for peak in (800, 900, 1000, 1050, 1100, 1200):
        for middle in np.percentile(bright, [30, 50, 75]):
            scaled = np.round(some * (peak / middle)).astype(np.int32)
            assert intensity.settle(volume(scaled)).modality == "MR", (peak, middle)


@pytest.mark.parametrize("shift", [1024, 1000])
@pytest.mark.parametrize("name", [name for name in CT if not name.startswith("head_phantom")])
def test_the_offset_of_unsigned_ct_is_found(shared_data, name, shift):
    """1,000 and 1,024 lie 24 HU apart, which fat and air tell."""
    scan = nifti.read([shared_data / "ct" / f"{name}.nii.gz"])
    unsigned = volume(np.clip(scan.voxels + shift, 0, None).astype(np.uint16))
    assert intensity.settle(unsigned).intercept == -shift


@pytest.mark.parametrize("name", CT)
def test_an_offset_applied_twice_is_taken_back(shared_data, name):
    """By an exporter that left the tag behind; and said."""
    scan = nifti.read([shared_data / "ct" / f"{name}.nii.gz"])
    twice = volume(scan.voxels.astype(np.int16), modality="CT", intercept=-1024.0)
    if name.startswith("head_phantom"):
        with pytest.raises(Refusal):
            intensity.settle(twice)
        return
    settled = intensity.settle(twice)
    assert settled.intercept == 0 and settled.notes[0][0] == "ct_offset"


def test_nobody_guesses_what_the_numbers_do_not_say():
    """Phases, field maps, CT without air."""
    rng = np.random.default_rng(0)
    for values in (
        rng.integers(-4096, 4096, (8, 40, 40)),
        rng.normal(0, 90, (8, 40, 40)),
        rng.integers(-150, 500, (8, 40, 40)),
    ):
        with pytest.raises(Refusal, match=r"unknown_modality: .*--modality"):
            intensity.settle(volume(values))
        assert intensity.settle(volume(values), "MR").modality == "MR"


def test_what_is_windowed_or_clipped_is_no_ct():
    """Eight bits hold no Hounsfield units, nor does a window of soft tissue."""
    scan = body().astype(float)
    for raw, intercept in (
        (np.clip((scan + 160) / 220 * 255, 0, 255).astype(np.uint8), 0.0),
        (np.clip((scan + 160) / 220 * 255, 0, 255).astype(np.uint8), -1024.0),
        (np.clip((scan + 160) / 220 * 255, 0, 255).astype(np.int16), 0.0),
        (np.clip(scan, -160, 240), 0.0),
    ):
        with pytest.raises(Refusal, match="not_hounsfield"):
            intensity.settle(volume(raw, modality="CT", intercept=intercept))


def test_one_voxel_does_not_take_all_the_steps():
    """It is clipped, and counted."""
    raw = np.abs(np.random.default_rng(0).normal(300, 100, (8, 40, 40))).astype(np.float32)
    raw[4, 20, 20] = 3e6
    quantize = intensity.Quantizer.from_volume(volume(raw, modality="MR"))
    back = quantize(raw).astype(np.float64) * quantize.slope + quantize.intercept
    assert np.abs(back - raw)[raw < 3e6].max() < 1 and back.max() < 1e5
    assert ("clipped", "1 voxels") in quantize.notes


def test_padding_does_not_hide_a_ct():
    """Which scanners write outside of the field of view."""
    scan = body((8, 40, 40)).astype(np.int32)
    scan[:, :6], scan[:, -6:] = -3024, -2000
    assert intensity.settle(volume(scan)).modality == "CT"


def test_what_the_user_or_the_file_says_wins():
    """Over what the numbers look like."""
    assert intensity.settle(volume(body()), "MR").modality == "MR"
    assert intensity.settle(volume(body(low=0), modality="MR")).modality == "MR"
    with pytest.raises(Refusal, match="not_hounsfield"):
        intensity.settle(volume(np.abs(body(low=0)) * 10), "CT")
    assert intensity.settle(volume(np.full((4, 8, 8), 30), modality="CT")).modality == "CT"  # a brain without air


def test_ct_becomes_hounsfield_units_and_padding_air():
    """And is counted."""
    raw = np.array([[[0, 24, 1024, 1100], [4095, 48, 63536, 1024]]], np.uint16)
    scan = volume(raw, modality="CT", intercept=-1024.0, padding=(63536.0,))
    quantize = intensity.Quantizer.from_volume(scan)
    np.testing.assert_array_equal(quantize(raw), [[[-1024, -1000, 0, 76], [3071, -976, -1000, 0]]])
    assert quantize.notes == [("padding", "1 voxels")] and (quantize.slope, quantize.intercept) == (1, 0)
    values = np.array([[[-3024, -2000, np.nan, np.inf], [-np.inf, -1499.6, 40.4, 40000]]])
    quantize = intensity.Quantizer.from_volume(volume(values, modality="CT"))
    np.testing.assert_array_equal(quantize(values), [[[-1000, -1000, -1000, -1000], [-1000, -1500, 40, 32767]]])
    assert quantize.notes == [("non_finite", "3 voxels"), ("padding", "2 voxels"), ("clipped", "1 voxels")]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.dtype(">i2")])
def test_small_integers_of_mr_are_kept_as_they_are(dtype):
    """With slope and intercept in the index."""
    raw = np.arange(-100 if np.dtype(dtype).kind == "i" else 0, 100).astype(dtype).reshape(1, 10, -1)
    quantize = intensity.Quantizer.from_volume(volume(raw, modality="MR", slope=0.3, intercept=5.0))
    np.testing.assert_array_equal(quantize(raw), raw)
    assert (quantize.slope, quantize.intercept) == (0.3, 5.0) and quantize.notes == []


@pytest.mark.parametrize(
    "raw",
    [
        np.array([[[0, 65535, 7, 40000]]], np.uint16),
        np.array([[[100_000, 100_500, 165_535]]], np.int32),
        np.array([[[-3.0, 500.0, 32767.0]]], np.float64),
    ],
)
def test_whole_numbers_of_mr_are_kept_exactly(raw):
    """Where their range fits 16 bits."""
    quantize = intensity.Quantizer.from_volume(volume(raw, modality="MR", slope=2.0, intercept=-1.0))
    np.testing.assert_array_equal(quantize(raw) * quantize.slope + quantize.intercept, raw * 2.0 - 1)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_other_mr_is_quantized_with_the_stated_error(scale):
    """Half of range / 65535."""
    raw = np.random.default_rng(0).normal(0, scale, (4, 20, 20))
    raw[0, 0, :3] = np.nan, np.inf, -np.inf
    quantize = intensity.Quantizer.from_volume(volume(raw, modality="MR"))
    back = quantize(raw).astype(np.float64) * quantize.slope + quantize.intercept
    finite = np.isfinite(raw)
    bound = np.ptp(raw[finite]) / 65535 / 2
    assert np.abs(back - raw)[finite].max() <= bound * (1 + 1e-6)
    np.testing.assert_allclose(back[~finite], raw[finite].min(), atol=bound)
    assert quantize.notes[0] == ("non_finite", "3 voxels")
