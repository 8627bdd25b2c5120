"""Any orientation of a volume becomes one."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from curia2_jax.data.readers import dicom
from curia2_jax.data.readers.volume import REASONS, Refusal, from_xyz
from tests.data.small_studies import dicom_slices, save_dicom

ORIENTATIONS = [
    "".join(axes) for order in itertools.permutations(("RL", "AP", "SI")) for axes in itertools.product(*order)
]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_all_48_orientations_give_the_same_slices(orientation):
    """Voxel by voxel."""
    ras = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) @ nib.orientations.inv_ornt_aff(turn, ras.shape)
    volume = from_xyz(nib.apply_orientation(ras, turn), affine)
    expected = np.empty((5, 4, 3))
    for s, p, left in np.ndindex(5, 4, 3):
        expected[s, p, left] = ras[2 - left, 3 - p, s]  # towards Superior, Posterior, Left
    np.testing.assert_array_equal(volume.raw, expected)
    np.testing.assert_allclose(volume.spacing, [3, 2, 1])


def test_agrees_with_simpleitk_on_an_oblique_volume():
    """Axes nearest to those of the patient."""
    rng = np.random.default_rng(0)
    image = sitk.GetImageFromArray(rng.normal(size=(5, 6, 7)).astype(np.float32))
    angle = np.radians(20)
    turn = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]]) @ np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    image.SetDirection(turn.ravel().tolist())
    image.SetSpacing((0.7, 0.8, 2.0))
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ turn @ np.diag([0.7, 0.8, 2.0])
    volume = from_xyz(sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine)
    expected = sitk.DICOMOrient(image, "LPS")
    np.testing.assert_array_equal(volume.raw, sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(volume.spacing, expected.GetSpacing()[::-1])
    assert abs(volume.obliquity - 20) < 1e-6


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (np.diag([0.0, 1, 1, 1]), "no_geometry"),
        (np.diag([np.nan, 1, 1, 1]), "no_geometry"),
        (np.array([[1, 0, 0.1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "irregular_geometry"),
    ],
)
def test_refuses_affines_that_are_no_grid(affine, reason):
    """Flat, not finite or sheared."""
    with pytest.raises(Refusal) as refusal:
        from_xyz(np.zeros((2, 2, 2)), affine)
    assert refusal.value.reason == reason in REASONS


def test_a_refusal_has_one_of_the_reasons():
    """Tables of quarantine count on the list."""
    assert Refusal("corrupt", "cut off").reason in REASONS
    with pytest.raises(KeyError, match="no reason"):
        Refusal("broken", "cut off")


def test_a_refusal_is_one_line_of_text(tmp_path):
    """Whatever bytes a damaged file has where its modality should be."""
    (ds,) = dicom_slices(np.zeros((1, 8, 9), np.int16))
    ds.Modality = "CT"
    (path,) = save_dicom(tmp_path, [ds])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CS\x02\0CT", b"CS\x02\0\n\x07"))
    with pytest.raises(Refusal) as refusal:
        dicom.look(path)
    assert refusal.value.detail.isprintable() and len(Refusal("corrupt", "x" * 10_000).detail) == 500
    assert Refusal("corrupt", "grün\r\nM\udcfcller\0").detail == "grün M\udcfcller "
