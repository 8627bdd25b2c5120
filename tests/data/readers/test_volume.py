import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from curia2_jax.data.readers.volume import PLANES, REASONS, Refusal, from_xyz, in_plane, plane_affine, planes_of

ORIENTATIONS = [
    "".join(axes) for order in itertools.permutations(("RL", "AP", "SI")) for axes in itertools.product(*order)
]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_all_48_orientations_give_the_same_slices(orientation):
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


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.floats(0.2, 9)] * 3),
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.floats(-0.4, 0.4)] * 3),
    st.tuples(*[st.floats(-200, 200)] * 3),
)
def test_every_voxel_keeps_its_place_in_the_patient(shape, spacing, orientation, angles, origin):
    rotation = nib.eulerangles.euler2mat(*angles)
    turn = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(orientation), (1, 1, 1))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ turn @ np.diag(spacing)
    affine[:3, 3] = origin
    raw = np.arange(np.prod(shape)).reshape(shape)
    volume = from_xyz(raw, affine)
    place = {int(raw[i]): affine[:3, :3] @ i + affine[:3, 3] for i in np.ndindex(*shape)}
    for plane in PLANES:
        view, to_world = in_plane(volume.raw, plane), plane_affine(volume, plane)
        for i in np.ndindex(*view.shape):
            np.testing.assert_allclose(to_world[:3, :3] @ i + to_world[:3, 3], place[int(view[i])], atol=1e-6)
    assert volume.raw.base is not None  # nothing was copied


@pytest.mark.parametrize(
    ("plane", "rows", "columns"), [("axial", "P", "L"), ("coronal", "I", "L"), ("sagittal", "I", "P")]
)
def test_rows_and_columns_point_where_curiabench_wants_them(plane, rows, columns):
    volume = from_xyz(np.zeros((3, 4, 5)), np.diag([1.0, 1.0, 1.0, 1.0]))
    to_world = plane_affine(volume, plane)[:3, :3]
    towards = {"P": (0, -1, 0), "L": (-1, 0, 0), "I": (0, 0, -1)}  # in RAS+ millimetres
    np.testing.assert_allclose(to_world[:, 1], towards[rows])
    np.testing.assert_allclose(to_world[:, 2], towards[columns])


def test_agrees_with_simpleitk_on_an_oblique_volume():
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
    with pytest.raises(Refusal) as refusal:
        from_xyz(np.zeros((2, 2, 2)), affine)
    assert refusal.value.reason == reason in REASONS


ALL = ("axial", "coronal", "sagittal")


@pytest.mark.parametrize(
    ("shape", "spacing", "asked", "across", "expected"),
    [
        ((40, 50, 60), (1, 1, 1), ALL, None, ALL),
        ((40, 50, 60), (1, 1, 1), ("axial",), None, ("axial",)),
        ((40, 50, 60), (1.5, 1, 1), ALL, None, ALL),
        ((40, 50, 60), (1.6, 1, 1), ALL, None, ("axial",)),  # thick slices: the plane they were acquired in
        ((40, 50, 60), (1, 1, 5), ALL, None, ("sagittal",)),
        ((40, 50, 60), (1, 5, 1), ("axial",), None, ("coronal",)),
        ((40, 50, 60), (0.5, 1, 1), ALL, None, ("axial",)),  # overlapping thin slices
        ((5, 78, 80), (18, 3, 3), ALL, None, ("axial",)),
        ((1, 78, 80), (3, 3, 3), ALL, None, ("axial",)),
        ((80, 78, 20), (3, 3, 3), ALL, None, ("sagittal",)),  # too few to cut other planes from
        ((16, 384, 274), (0.667, 0.667, 0.7), ("axial",), 0, ("axial",)),
        ((384, 384, 16), (1, 1, 1), ("axial",), 2, ("sagittal",)),
        ((4, 40, 44), (2, 1.5, 1), ALL, None, ("axial",)),  # no two axes alike: the shortest is across
        ((31, 20, 40), (1, 1, 1), ALL, None, None),
        ((200, 31, 40), (3, 1, 1), ALL, None, None),
    ],
)
def test_planes(shape, spacing, asked, across, expected):
    if expected is None:
        with pytest.raises(Refusal, match="too_small"):
            planes_of(shape, np.array(spacing), asked, across)
    else:
        assert planes_of(shape, np.array(spacing), asked, across) == expected
