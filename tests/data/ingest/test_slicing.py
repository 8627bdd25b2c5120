"""Planes, places and pixels of the slices of a volume."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from curia2_jax.data.corpus.planes import PLANES, in_plane
from curia2_jax.data.crops import loader
from curia2_jax.data.ingest import slicing
from curia2_jax.data.ingest.slicing import plane_affine, planes_of
from curia2_jax.data.readers.volume import Refusal, from_xyz
from tests.data.readers.test_volume import ORIENTATIONS
from tests.data.small_studies import body


def cut(raw_xyz, affine, planes=("axial",), modality="CT", across=None):
    notes = []
    volume = from_xyz(raw_xyz, affine, across, modality=modality)
    found = list(slicing.slices(volume, planes, notes, slicing.Timer()))
    return [pixels for pixels, _ in found], [row for _, row in found], dict(notes)


def test_planes_equal_those_of_simpleitk():
    """All three of a near-isotropic volume."""
    voxels = body((36, 40, 44))
    image = sitk.GetImageFromArray(voxels)  # x towards left, y towards posterior, z towards superior
    pixels, rows, _ = cut(voxels.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]), ("axial", "coronal", "sagittal"))
    for plane, target in (("axial", "LPS"), ("coronal", "LIP"), ("sagittal", "PIL")):
        expected = sitk.GetArrayFromImage(sitk.DICOMOrient(image, target))
        mine = [(int(row["position"]), one) for one, row in zip(pixels, rows, strict=True) if row["plane"] == plane]
        assert len(mine) > 20
        for k, one in mine:
            np.testing.assert_array_equal(one, expected[k])


def test_rows_say_where_the_slices_lie():
    """In millimeters along the normal."""
    affine = np.array([[0, 0, -2.0, 7], [1.5, 0, 0, -5], [0, 3.0, 0, 11], [0, 0, 0, 1]])  # stored A, S, L
    voxels = body((40, 40, 40))
    raw = np.ascontiguousarray(voxels.transpose(1, 0, 2)[::-1])  # (A, S, L) from (S, P, L)
    _, rows, _ = cut(raw, affine, across=1)
    assert {row["plane"] for row in rows} == {"axial"}
    for row in rows:
        assert (row["spacing_z"], row["spacing_y"], row["spacing_x"]) == (3.0, 1.5, 2.0)
        assert row["position_mm"] == pytest.approx(11 + 3 * row["position"])
        assert row["modality"] == "CT" and (row["slope"], row["intercept"], row["obliquity"]) == (1, 0, 0)


def test_large_slices_are_reduced_with_antialiasing():
    """To 512 pixels, with the spacing that goes with it."""
    rng = np.random.default_rng(0)
    voxels = np.clip(body((1, 800, 600)) + rng.normal(0, 200, (1, 800, 600)), -1024, 3000).astype(np.int16)
    (pixels,), (row,), notes = cut(voxels.transpose(2, 1, 0), np.diag([-0.5, -0.25, 3, 1.0]))
    assert pixels.shape == (512, 384) and notes["reduced"] == "1 slices"
    assert (row["spacing_y"], row["spacing_x"]) == pytest.approx((0.25 * 800 / 512, 0.5 * 600 / 384))
    inner = voxels[0, 300:500, 200:400].astype(float).std()
    assert pixels[200:310, 130:250].astype(float).std() < 0.75 * inner  # noise is averaged, not sampled
    assert abs(pixels.mean() - voxels.mean()) < 2
    wide = slicing.shrink(np.zeros((3, 2000), np.int16))
    assert wide.shape == (1, 512)
    kept = cut(voxels[:, :512, :512].transpose(2, 1, 0), np.diag([-0.5, -0.25, 3, 1.0]))[0][0]
    np.testing.assert_array_equal(kept, voxels[0, :512, :512])


def test_near_empty_slices_are_left_out():
    """And counted in the notes."""
    voxels = body((10, 40, 40))
    voxels[:3], voxels[9] = -1000, -1000
    pixels, rows, notes = cut(voxels.transpose(2, 1, 0), np.diag([-1.0, -1, 4, 1]))
    assert [row["position"] for row in rows] == [3, 4, 5, 6, 7, 8] and notes["near_empty"] == "4 slices"
    assert all(row["foreground"] > 0.3 for row in rows)
    assert all(0 < row["anatomy_x"] < 40 and 0 < row["anatomy_std_y"] < 20 for row in rows)
    np.testing.assert_array_equal(pixels[0], voxels[3])


def test_a_constant_volume_is_refused_before_its_first_slice():
    """It shows nothing."""
    for value, modality in ((0, "CT"), (7, "MR")):
        with pytest.raises(Refusal, match="no_foreground"):
            cut(np.full((40, 40, 4), value, np.int16), np.diag([-1.0, -1, 4, 1]), modality=modality)


def test_blocks_do_not_show(monkeypatch):
    """A block of one slice gives the same."""
    voxels = body((40, 40, 40)).astype(np.float32) * 0.37
    whole = cut(voxels.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]), modality="MR")
    monkeypatch.setattr(slicing, "_BLOCK", 1)
    single = cut(voxels.transpose(2, 1, 0), np.diag([-1.0, -1, 1, 1]), modality="MR")
    assert whole[1] == single[1] and whole[2] == single[2]
    for a, b in zip(whole[0], single[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_stored_numbers_lead_back_to_the_scanners_unit():
    """By slope and intercept."""
    voxels = np.random.default_rng(0).gamma(2, 37.5, (4, 40, 40))
    pixels, rows, notes = cut(voxels.transpose(2, 1, 0), np.diag([-1.0, -1, 4, 1]), modality="MR")
    for one, row in zip(pixels, rows, strict=True):
        back = one * row["slope"] + row["intercept"]
        np.testing.assert_allclose(back, voxels[int(row["position"])], atol=np.ptp(voxels) / 65535)
    assert notes["quantized"].startswith("step")


def test_rows_hold_the_moments_of_an_off_center_body_row_before_column():
    """Mean and spread of the true mask, in pixels of a slice that is wider than high; also as the crops get them."""
    y, x = np.mgrid[:60, :100] + 0.5
    inside = ((y - 20) / 12) ** 2 + ((x - 70) / 22) ** 2 < 1
    voxels = np.broadcast_to(np.where(inside, 40, -1000).astype(np.int16), (8, 60, 100))
    _, rows, _ = cut(voxels.transpose(2, 1, 0), np.diag([-1.0, -1, 3, 1]))
    names = ("anatomy_y", "anatomy_x", "anatomy_std_y", "anatomy_std_x")
    truth = [y[inside].mean(), x[inside].mean(), y[inside].std(), x[inside].std()]
    assert len(rows) == 8
    for row in rows:
        np.testing.assert_allclose([row[name] for name in names], truth, atol=1)
    fields = (*names, "height", "width", "spacing_y", "spacing_x", "foreground")
    index = np.array(
        [tuple({**row, "height": 60, "width": 100}[name] for name in fields) for row in rows],
        [(name, np.float64) for name in fields],
    )
    geometry = loader.geometry_of(index)
    np.testing.assert_allclose(np.concatenate([geometry.mean, geometry.std], 1), np.tile(truth, (8, 1)), atol=1)
    assert geometry.extent.tolist() == [[60, 100]] * 8


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.floats(0.2, 9)] * 3),
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.floats(-0.4, 0.4)] * 3),
    st.tuples(*[st.floats(-200, 200)] * 3),
)
def test_every_voxel_keeps_its_place_in_the_patient(shape, spacing, orientation, angles, origin):
    """In every plane, and nothing is copied."""
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
    """PL, IL and IP."""
    volume = from_xyz(np.zeros((3, 4, 5)), np.diag([1.0, 1.0, 1.0, 1.0]))
    to_world = plane_affine(volume, plane)[:3, :3]
    towards = {"P": (0, -1, 0), "L": (-1, 0, 0), "I": (0, 0, -1)}  # in RAS+ millimeters
    np.testing.assert_allclose(to_world[:, 1], towards[rows])
    np.testing.assert_allclose(to_world[:, 2], towards[columns])


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
    """Those asked for, or the one of the acquisition."""
    if expected is None:
        with pytest.raises(Refusal, match="too_small"):
            planes_of(shape, np.array(spacing), asked, across)
    else:
        assert planes_of(shape, np.array(spacing), asked, across) == expected
