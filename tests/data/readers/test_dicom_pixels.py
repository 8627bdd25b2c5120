"""What the stored numbers of DICOM mean, and what their codestreams say of a loss."""

import copy

import imagecodecs
import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from curia2_jax.data.ingest import intensity
from curia2_jax.data.readers import codestreams, dicom, dicom_file
from curia2_jax.data.readers.volume import Refusal
from tests.data.readers.test_dicom import encoded, enhanced
from tests.data.small_studies import body, dicom_slices, save_dicom


def packed(ds: Dataset, stream: bytes, syntax: str) -> Dataset:
    ds = copy.deepcopy(ds)
    ds.PixelData = encapsulate([stream])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


SMOOTH = np.add.outer(np.arange(40), np.arange(48)).astype(np.uint16) * 20
LOSSY = {
    "JPEG 2000 9/7": (imagecodecs.jpeg2k_encode(SMOOTH, level=40, reversible=False), uid.JPEG2000Lossless),
    "HTJ2K 9/7": (imagecodecs.htj2k_encode(SMOOTH, level=0.01, reversible=False), uid.HTJ2KLossless),
    "JPEG-LS near": (imagecodecs.jpegls_encode(SMOOTH, level=3), uid.JPEGLSLossless),
    "sequential JPEG": (imagecodecs.jpeg8_encode((SMOOTH >> 4).astype(np.uint8)), uid.JPEGLosslessSV1),
}
LOSSLESS = {
    "JPEG 2000 5/3": (imagecodecs.jpeg2k_encode(SMOOTH, level=0, reversible=True), uid.JPEG2000),
    "HTJ2K 5/3": (imagecodecs.htj2k_encode(SMOOTH, reversible=True), uid.HTJ2K),
    "JPEG-LS": (imagecodecs.jpegls_encode(SMOOTH), uid.JPEGLSLossless),
    "lossless JPEG": (imagecodecs.ljpeg_encode(SMOOTH, bitspersample=16), uid.JPEGLosslessSV1),
}


@pytest.mark.parametrize("name", LOSSY)
def test_loss_is_read_from_the_codestream(tmp_path, name):
    """Whatever the transfer syntax claims."""
    (ds,) = dicom_slices(body((1, 40, 48)))
    ds.SliceThickness = 2
    with pytest.raises(Refusal, match="lossy_compression"):
        dicom.read(save_dicom(tmp_path, [packed(ds, *LOSSY[name])]))


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_codestreams_pass_and_cut_ones_do_not(tmp_path, name):
    """At any place, before a decoder sees them: one of them may never return."""
    stream, syntax = LOSSLESS[name]
    (ds,) = dicom_slices(body((1, 40, 48)))
    ds.SliceThickness = 2
    volume = dicom.read(save_dicom(tmp_path, [packed(ds, stream, syntax)]))
    np.testing.assert_array_equal(volume.raw[0], SMOOTH)
    codestreams.check(stream + b"\0", (40, 48))
    for length in range(8, len(stream) - 1, 11):
        with pytest.raises(Refusal, match="corrupt"):
            codestreams.check(stream[:length], (40, 48))
    with pytest.raises(Refusal, match="corrupt: a codestream of 40 x 48 pixels, the header says 40 x 4000"):
        codestreams.check(stream, (40, 4000))


@pytest.mark.parametrize("tags", [{"LossyImageCompressionRatio": 8.5}, {"LossyImageCompressionMethod": "ISO_10918_1"}])
def test_a_loss_that_was_unpacked_again(tmp_path, tags):
    """Stays one."""
    (ds,) = dicom_slices(body((1, 8, 9)))
    for name, value in tags.items():
        setattr(ds, name, value)
    with pytest.raises(Refusal, match="lossy_compression"):
        dicom.read(save_dicom(tmp_path, [ds]))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("overlay", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pixels_in_the_upper_bits(tmp_path, signed, overlay, order):
    """HighBit 15 of 12 bits, with or without an overlay in the lower ones."""
    voxels = np.clip(body((3, 8, 9)), -900, 900)
    stored = voxels if signed else voxels + 1024
    slices = dicom_slices(voxels)
    for ds, pixels in zip(slices, stored, strict=True):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 15, int(signed)
        ds.RescaleIntercept = 0 if signed else -1024
        words = (pixels.astype(np.uint16) << 4) | (np.arange(9, dtype=np.uint16) % 2 * overlay)
        ds.PixelData = words.astype(f"{order}u2").tobytes()
        if order == ">":
            ds.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    np.testing.assert_array_equal(dicom.read(save_dicom(tmp_path, slices)).voxels, voxels)


@pytest.mark.parametrize("signed", [False, True])
def test_a_wrong_high_bit_is_not_believed(tmp_path, signed):
    """Where the upper bits hold nothing."""
    voxels = np.clip(body((3, 8, 9)), -900, 900)
    slices = dicom_slices(voxels)
    for ds, pixels in zip(slices, voxels if signed else voxels + 1024, strict=True):
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 15, int(signed)
        ds.RescaleIntercept, ds.PixelData = 0 if signed else -1024, pixels.astype("<i2").tobytes()
    np.testing.assert_array_equal(dicom.read(save_dicom(tmp_path, slices)).voxels, voxels)


def test_monochrome1(tmp_path):
    """MR is turned back; Hounsfield units are what they are."""
    voxels = np.abs(body((3, 8, 9), low=0))
    for modality, expected in (("MR", voxels), ("CT", int(voxels.max()) - voxels)):
        slices = dicom_slices(int(voxels.max()) - voxels + voxels.min(), modality=modality)
        for ds in slices:
            ds.PhotometricInterpretation = "MONOCHROME1"
        volume = dicom.read(save_dicom(tmp_path / modality, slices))
        np.testing.assert_array_equal(volume.voxels, expected + (voxels.min() if modality == "CT" else 0))
        assert any(what == "monochrome1" for what, _ in volume.notes)


@pytest.mark.parametrize("case", ["one", "range", "by file", "wrong sign"])
def test_padding_becomes_air(tmp_path, case):
    """However it is said."""
    voxels = body((3, 40, 44)).astype(np.int32)
    stored = voxels + 1024
    slices = dicom_slices(voxels)
    hole = np.zeros(voxels.shape, bool)
    hole[:, :5] = True
    for n, ds in enumerate(slices):
        value = {"one": 3000, "range": 3000, "by file": 3000 + n, "wrong sign": -2000}[case]
        filled = np.where(hole[n], value + (np.arange(44) % 40 if case == "range" else 0), stored[n])
        ds.PixelData = filled.astype("<u2" if case != "wrong sign" else "<i2").tobytes()
        ds.PixelPaddingValue = value if case != "wrong sign" else 63536
        ds["PixelPaddingValue"].VR = "US"
        if case == "range":
            ds.PixelPaddingRangeLimit = 3049
            ds["PixelPaddingRangeLimit"].VR = "US"
        ds.PixelRepresentation = int(case == "wrong sign")
    volume = intensity.settle(dicom.read(save_dicom(tmp_path, slices)))
    found = intensity.Quantizer.from_volume(volume)(volume.raw)
    np.testing.assert_array_equal(found, np.where(hole, -1000, voxels))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(
    ("value", "signed", "is_filled"),
    [(-32768, True, True), (63536, False, True), (-2000, True, True), (0, True, False)],
)
def test_padding_of_mr_becomes_background(tmp_path, value, signed, is_filled, inverted):
    """Where it is far from what was measured; a padding of 0 is background as it is."""
    voxels = np.abs(body((3, 40, 44), low=0)).astype(np.int32) + 1
    hole = np.zeros(voxels.shape, bool)
    hole[:, :5] = True
    slices = dicom_slices(voxels.astype(np.int16), modality="MR")
    for n, ds in enumerate(slices):
        ds.PixelData = np.where(hole[n], value, voxels[n]).astype("<i2" if signed else "<u2").tobytes()
        ds.PixelRepresentation, ds.PixelPaddingValue = int(signed), value
        ds["PixelPaddingValue"].VR = "SS" if signed else "US"
        ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    volume = dicom.read(save_dicom(tmp_path, slices))
    rest = voxels[~hole]
    background = int(rest.max() if inverted else rest.min()) if is_filled else value
    expected = np.where(hole, background, voxels)
    expected = expected.max() + expected.min() - expected if inverted else expected
    np.testing.assert_array_equal(volume.voxels, expected)
    assert any(what == "padding" for what, _ in volume.notes) == is_filled


def test_a_scale_beside_the_functional_groups(tmp_path):
    """Of an enhanced object counts where these have none."""
    voxels = body((5, 8, 9), low=0)
    ds = enhanced(voxels)
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.PixelValueTransformationSequence
    ds.RescaleSlope, ds.RescaleIntercept = 2.5, 3
    np.testing.assert_allclose(dicom.read(save_dicom(tmp_path, [ds])).voxels, voxels * 2.5 + 3)
    assert isinstance(ds.PerFrameFunctionalGroupsSequence, Sequence)


def test_other_units_than_hounsfield(tmp_path):
    """Electron densities and the like."""
    slices = dicom_slices(body((3, 8, 9)))
    for ds in slices:
        ds.RescaleType = "ED"
    with pytest.raises(Refusal, match="not_hounsfield: RescaleType ED"):
        dicom.read(save_dicom(tmp_path, slices))
    ds = enhanced(body((5, 8, 9)))
    ds.Modality = "CT"
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.PixelValueTransformationSequence[0].RescaleType = "MGML"
    with pytest.raises(Refusal, match="not_hounsfield: RescaleType MGML"):
        dicom.read(save_dicom(tmp_path / "enhanced", [ds]))


def test_a_deflated_file_is_bounded_and_whole(tmp_path, monkeypatch):
    """Cut anywhere it is corrupt, and so it is where it would fill the memory."""
    (ds,) = dicom_slices(body((1, 40, 48)))
    ds.SliceThickness = 2
    (path,) = save_dicom(tmp_path, [encoded(ds, uid.DeflatedExplicitVRLittleEndian)])
    assert dicom.read([path]).raw.shape == (1, 40, 48)
    whole = path.read_bytes()
    for length in range(400, len(whole) - 2, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(Refusal, match="corrupt"):
            dicom.read([path])
    path.write_bytes(whole)
    monkeypatch.setattr(dicom_file, "_MOST_INFLATED", 1000)
    with pytest.raises(Refusal, match="corrupt: a deflated dataset"):
        dicom.look(path)
