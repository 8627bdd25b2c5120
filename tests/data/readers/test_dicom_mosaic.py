"""Mosaics against dcm2niix and nibabel, on the real Siemens files that nibabel ships."""

import gzip
import pathlib
import warnings

import nibabel
import numpy as np
import pydicom
import pytest

from curia2_jax.data.readers import dicom
from curia2_jax.data.readers.volume import Refusal
from tests.data.small_studies import body, dicom_slices, save_dicom

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nibabel says that its DICOM part is experimental
    from nibabel.nicom import dicomwrappers

FOLDER = pathlib.Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
# What dcm2niix v1.0.20260724 makes of the two files: 128 x 128 x 48 x 2 and this affine.
DCM2NIIX = np.array(
    [
        [-1.796875, 0.0, 0.0, 115.0],
        [0.0, 1.79685044, -0.0157080051, -93.1714783],
        [0.0, 0.00940844044, 2.99995899, -79.9053497],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


@pytest.fixture
def files(tmp_path) -> list[pathlib.Path]:
    """The two volumes of a diffusion series, b = 0 and b = 1000."""
    out = []
    for b in (0, 1000):
        source = FOLDER / f"siemens_dwi_{b}.dcm.gz"
        if not source.exists():
            pytest.skip("nibabel without its test data")
        out.append(tmp_path / f"{b}.dcm")
        out[-1].write_bytes(gzip.decompress(source.read_bytes()))
    return out


def test_mosaics_equal_nibabel_and_dcm2niix(files):
    """Voxels and affine."""
    assert dicom.count_frames(files) == 2 and dicom.look(files[0]).shape == (128, 128, 48)
    for frame, path in enumerate(files):
        volume = dicom.read(files, frame)
        wrapper = dicomwrappers.wrapper_from_file(path)
        lps = np.diag([-1, -1, 1, 1]) @ wrapper.affine  # nibabel's voxels are (row, column, slice)
        expected = np.asarray(wrapper.get_unscaled_data()).transpose(2, 0, 1)
        np.testing.assert_array_equal(volume.raw, expected)
        turned = lps[:, [2, 0, 1, 3]]
        np.testing.assert_allclose(volume.affine, turned, atol=1e-3)
        # dcm2niix stores rows from behind to the front.
        rows = volume.raw.shape[1] - 1
        np.testing.assert_allclose(DCM2NIIX @ [3, rows - 5, 7, 1], volume.affine @ [7, 5, 3, 1], atol=2e-3)
        assert ("mosaic", "cut into 48 slices") in volume.notes


@pytest.mark.parametrize("change", ["normal", "distance", "count", "damaged"])
def test_a_mosaic_without_its_geometry_is_refused(tmp_path, files, change):
    """It would be one huge slice."""
    ds = pydicom.dcmread(files[0])
    csa = ds[0x00291010].value
    if change == "distance":
        del ds.SpacingBetweenSlices
    elif change == "normal":
        ds[0x00291010].value = csa.replace(b"SliceNormalVector", b"SliceNormalVectoR")
    elif change == "count":
        ds.Rows = 900
    else:
        ds[0x00291010].value = csa[:400]
    ds.save_as(tmp_path / "a.dcm")
    with pytest.raises(Refusal, match=r"irregular_geometry|corrupt"):
        dicom.read([tmp_path / "a.dcm"])


def test_the_word_alone(tmp_path):
    """A picture of which nothing else is known is refused; slices that kept the word are slices."""
    voxels = body((4, 40, 44), low=0)
    slices = dicom_slices(voxels, modality="MR")
    for ds in slices:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        ds.SliceThickness = 3
    np.testing.assert_array_equal(dicom.read(save_dicom(tmp_path / "slices", slices)).voxels, voxels)
    with pytest.raises(Refusal, match="irregular_geometry: a mosaic"):
        dicom.read(save_dicom(tmp_path / "one", slices[:1]))
    slices[0].AcquisitionMatrix = [44, 0, 0, 40]
    np.testing.assert_array_equal(dicom.read(save_dicom(tmp_path / "known", slices[:1])).voxels, voxels[:1])
