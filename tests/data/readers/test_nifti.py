"""NIfTI, NRRD and MetaImage files against nibabel and SimpleITK, and what damaged ones give."""

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curia2_jax.data.readers import itk, nifti
from curia2_jax.data.readers.volume import REASONS, Refusal
from tests.data.small_studies import body, write_nifti


def refused(path) -> str:
    with pytest.raises(Refusal) as refusal:
        nifti.read([path])
    assert refusal.value.reason in REASONS and "\n" not in refusal.value.detail
    return refusal.value.reason


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("suffix", ["a.nii", "a.nii.gz"])
def test_equals_nibabel_and_simpleitk(tmp_path, dtype, suffix):
    """Every data type, in an oblique volume."""
    values = np.random.default_rng(0).integers(0, 100, (7, 6, 5)).astype(dtype)
    angle = np.radians(10)
    affine = np.array(
        [
            [0, -2 * np.cos(angle), np.sin(angle), 5],
            [-1, 0, 0, 6],
            [0, 2 * np.sin(angle), np.cos(angle), 7],
            [0, 0, 0, 1],
        ]
    )
    nib.save(nib.Nifti1Image(values, affine, dtype=dtype), tmp_path / suffix)
    volume = nifti.read([tmp_path / suffix])
    assert volume.raw.dtype == dtype
    loaded = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / suffix)), "LPS")
    np.testing.assert_array_equal(volume.raw, sitk.GetArrayFromImage(loaded))
    np.testing.assert_allclose(volume.spacing, loaded.GetSpacing()[::-1], rtol=1e-6)
    place = np.diag([-1, -1, 1]) @ np.array(loaded.GetOrigin())
    np.testing.assert_allclose(volume.affine[:3, 3], place, atol=1e-5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair])
def test_byte_orders_versions_pairs_and_scaling(tmp_path, kind, order):
    """Voxels in the unit of the scanner."""
    values = np.random.default_rng(0).integers(-500, 500, (5, 6, 7)).astype(np.int16)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    image = kind(values, np.diag([-1, -1, 1, 1]), header)
    image.header.set_slope_inter(0.5, -3)
    image.header["scl_slope"], image.header["scl_inter"] = 0.5, -3
    name = tmp_path / ("a.img" if kind is nib.Nifti1Pair else "a.nii")
    nib.save(image, name)
    volume = nifti.read([name.with_suffix(".hdr") if kind is nib.Nifti1Pair else name])
    loaded = nib.load(name).get_fdata()
    np.testing.assert_allclose(volume.voxels, loaded.transpose(2, 1, 0), rtol=1e-6)


def test_frames(tmp_path):
    """Each of a 4-D file, and none that it does not have."""
    values = np.random.default_rng(0).integers(0, 99, (4, 5, 6, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([-1, -1, 1, 1])), tmp_path / "a.nii.gz")
    for frame in range(3):
        volume = nifti.read([tmp_path / "a.nii.gz"], frame)
        np.testing.assert_array_equal(volume.raw, values[..., frame].transpose(2, 1, 0))
        assert volume.notes == [("frame", f"frame {frame} of 3")]
    with pytest.raises(Refusal, match="no frame 3"):
        nifti.read([tmp_path / "a.nii.gz"], 3)


def test_a_volume_too_large_for_memory_is_read_from_a_temporary_file(tmp_path, monkeypatch):
    """Here more than a thousand bytes."""
    write_nifti(tmp_path / "a.nii.gz", body())
    monkeypatch.setattr(nifti, "IN_MEMORY", 1000)
    np.testing.assert_array_equal(nifti.read([tmp_path / "a.nii.gz"]).raw, body())


def test_one_plain_member_is_read_at_once_and_nothing_else_is(tmp_path):
    """What else a file may be is for the stream to find out."""
    write_nifti(tmp_path / "a.nii", body())
    data = (tmp_path / "a.nii").read_bytes()
    packed = gzip.compress(data)
    for name, content, plain in (
        ("plain", packed, True),
        ("cut", packed[:-1], False),
        ("two members", gzip.compress(data[:500]) + gzip.compress(data[500:]), False),
        ("tail", packed + b"tail" * 4, False),
        ("other checksum", packed[:-8] + b"\0\0\0\0" + packed[-4:], False),
    ):
        (tmp_path / "a.nii.gz").write_bytes(content)
        found = nifti._at_once(tmp_path / "a.nii.gz", len(data))
        assert (found is not None) == plain and (not plain or bytes(found) == data), name
    with gzip.open(tmp_path / "named.nii.gz", "wb") as file:  # writes the name into the head
        file.write(data)
    assert bytes(nifti._at_once(tmp_path / "named.nii.gz", len(data))) == data


def test_members_of_a_gzip_file_follow_each_other_and_zeros_pad(tmp_path):
    """Anything but zeros behind them is damage."""
    write_nifti(tmp_path / "a.nii", body())
    data = (tmp_path / "a.nii").read_bytes()
    parts = [gzip.compress(data[i : i + 30_000]) for i in range(0, len(data), 30_000)]
    (tmp_path / "b.nii.gz").write_bytes(b"".join(parts) + b"\0" * 512)
    np.testing.assert_array_equal(nifti.read([tmp_path / "b.nii.gz"]).raw, body())
    (tmp_path / "c.nii.gz").write_bytes(b"".join(parts) + b"junk")
    assert refused(tmp_path / "c.nii.gz") == "corrupt"


@pytest.mark.parametrize("chunk", [1, 7, 100, 4096])
def test_the_stream_is_cut_anywhere(tmp_path, chunk, monkeypatch):
    """Reading it piece by piece gives the same voxels."""
    write_nifti(tmp_path / "a.nii.gz", body((3, 10, 12)))
    monkeypatch.setattr(nifti, "_CHUNK", chunk)
    monkeypatch.setattr(nifti, "_at_once", lambda path, stop: None)
    np.testing.assert_array_equal(nifti.read([tmp_path / "a.nii.gz"]).raw, body((3, 10, 12)))


def edited(path, source, at, value):
    data = bytearray(source.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


def test_reasons(tmp_path):
    """Each kind of damage has its own."""
    good = tmp_path / "good.nii"
    write_nifti(good, body())
    zipped = gzip.compress(good.read_bytes())
    cases = {
        "empty.nii": (b"", "corrupt"),
        "empty.nii.gz": (b"", "corrupt"),
        "text.nii": (b"<html>" * 200, "wrong_format"),
        "text.nii.gz": (gzip.compress(b"<html>" * 200), "wrong_format"),
        "plain.nii.gz": (good.read_bytes(), "wrong_format"),
        "zipped.nii": (zipped, "wrong_format"),
        "cut.nii.gz": (zipped[:-9], "corrupt"),
        "cut_crc.nii.gz": (zipped[:-4], "corrupt"),
        "cut.nii": (good.read_bytes()[:-1], "corrupt"),
        "tiny.nii": (good.read_bytes()[:100], "corrupt"),
        "alone.hdr": (good.read_bytes()[:348], "wrong_format"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        assert refused(tmp_path / name) == reason, name
    assert refused(edited(tmp_path / "rgb.nii", good, 70, (128).to_bytes(2, "little"))) == "unsupported_pixel_type"
    assert refused(edited(tmp_path / "complex.nii", good, 70, (32).to_bytes(2, "little"))) == "unsupported_pixel_type"
    assert refused(edited(tmp_path / "2d.nii", good, 40, (2).to_bytes(2, "little"))) == "unsupported_dimensions"
    assert refused(edited(tmp_path / "huge.nii", good, 42, (30_000).to_bytes(2, "little"))) == "corrupt"
    none = edited(tmp_path / "none.nii", good, 252, b"\0\0\0\0")
    assert refused(none) == "no_geometry"
    volume = nifti.read([none], orientation="LPS")
    np.testing.assert_array_equal(volume.raw, body())
    np.testing.assert_allclose(volume.spacing, [2, 1.5, 1])
    (tmp_path / "pair.hdr").write_bytes(good.read_bytes()[:344] + b"ni1\0")
    assert refused(tmp_path / "pair.hdr") == "corrupt"  # no .img
    (tmp_path / "old.hdr").write_bytes(good.read_bytes()[:344] + b"\0\0\0\0")
    assert refused(tmp_path / "old.hdr") == "no_geometry"


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    path = tmp_path_factory.mktemp("nifti") / "a.nii.gz"
    write_nifti(path, body((4, 16, 20)))
    return path


@pytest.mark.parametrize("streamed", [False, True])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True))
def test_no_flipped_bit_of_a_gzip_file_gives_other_voxels(valid, tmp_path, monkeypatch, streamed, place):
    """At once or as a stream."""
    if streamed:
        monkeypatch.setattr(nifti, "_at_once", lambda path, stop: None)
    data = bytearray(valid.read_bytes())
    bit = int(place * 8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    (tmp_path / "b.nii.gz").write_bytes(data)
    whole = nifti.read([valid])
    try:
        volume = nifti.read([tmp_path / "b.nii.gz"])
    except Refusal as refusal:
        assert refusal.reason in ("corrupt", "wrong_format")
    else:  # a bit of the gzip head that carries nothing, such as the time
        np.testing.assert_array_equal(volume.raw, whole.raw)
        np.testing.assert_array_equal(volume.affine, whole.affine)
        assert (volume.slope, volume.intercept) == (whole.slope, whole.intercept)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=800), zipped=st.booleans(), head=st.booleans())
def test_random_bytes_are_refused(tmp_path, valid, data, zipped, head):
    """Also behind a valid size of the header."""
    if head:  # behind a valid size of the header, so that the fields are read
        data = (348).to_bytes(4, "little") + data[:340] + b"n+1\0"
    path = tmp_path / ("a.nii.gz" if zipped else "a.nii")
    path.write_bytes(gzip.compress(data) if zipped else data)
    refused(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 347), value=st.binary(min_size=1, max_size=8))
def test_any_header_is_read_or_refused(tmp_path, valid, at, value):
    """Nothing else is raised."""
    data = bytearray(gzip.decompress(valid.read_bytes()))
    data[at : at + len(value)] = value
    (tmp_path / "a.nii").write_bytes(data)
    try:
        volume = nifti.read([tmp_path / "a.nii"])
    except Refusal as refusal:
        assert refusal.reason in REASONS
    else:
        assert np.isfinite(volume.affine).all() and volume.raw.ndim == 3


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_nrrd_and_metaimage_equal_simpleitk(tmp_path, suffix):
    """And are refused when they are empty or nonsense."""
    image = sitk.GetImageFromArray(body((4, 5, 6)))
    image.SetSpacing((1, 1.5, 2))
    image.SetOrigin((3, 4, 5))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), useCompression=True)
    volume = itk.read([tmp_path / f"a{suffix}"])
    expected = sitk.DICOMOrient(image, "LPS")
    np.testing.assert_array_equal(volume.raw, sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(np.diag([-1, -1, 1]) @ volume.affine[:3, 3], expected.GetOrigin(), atol=1e-9)
    for data, reason in ((b"", "corrupt"), (b"nonsense" * 40, "wrong_format")):
        (tmp_path / f"b{suffix}").write_bytes(data)
        with pytest.raises(Refusal, match=reason):
            itk.read([tmp_path / f"b{suffix}"])


def with_header(path, **fields):
    """The same file with other values in its header of 348 bytes."""
    data = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(data)
    return path


def test_a_slope_of_zero_means_no_scaling(tmp_path):
    """NIfTI-1, "if the scl_slope field is nonzero, then each voxel value should be scaled"."""
    write_nifti(tmp_path / "a.nii", body())
    volume = nifti.read([with_header(tmp_path / "a.nii", scl_slope=0, scl_inter=7)])
    np.testing.assert_array_equal(volume.voxels, body())


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 1), (0, 1), (1, 0), (0, 0)])
def test_of_two_matrices_the_sform_counts(tmp_path, sform, qform):
    """As nibabel and every other tool: a registration is written there and the qform left as it was."""
    image = nib.Nifti1Image(body().transpose(2, 1, 0), np.eye(4))
    image.set_qform(np.diag([-2.0, -2, 3, 1]), code=qform)
    image.set_sform(np.array([[-2.0, 0, 0, 40], [0, -2, 0, 50], [0, 0, 3, 60], [0, 0, 0, 1]]), code=sform)
    nib.save(image, tmp_path / "a.nii")
    if not (sform or qform):
        assert refused(tmp_path / "a.nii") == "no_geometry"
        return
    volume = nifti.read([tmp_path / "a.nii"])
    # Ours takes (s, p, l), nibabel's (x, y, z), of which x grows towards the left here, y towards posterior.
    ours = volume.affine[:, [2, 1, 0, 3]]
    np.testing.assert_allclose(np.abs(ours[:3, 3]), np.abs(nib.load(tmp_path / "a.nii").affine[:3, 3]), atol=1e-4)


def test_two_matrices_that_differ_in_the_side_are_noted(tmp_path):
    """The sform counts."""
    for side in (-1.0, 1.0):
        image = nib.Nifti1Image(body().transpose(2, 1, 0), np.diag([-1.0, -1, 2, 1]))
        image.set_sform(np.diag([-1.0, -1, 2, 1]), code=1)
        image.set_qform(np.diag([side, -1, 2, 1]), code=1)
        nib.save(image, tmp_path / "a.nii.gz")
        volume = nifti.read([tmp_path / "a.nii.gz"])
        np.testing.assert_array_equal(volume.voxels, body())
        assert [what for what, _ in volume.notes] == ["mirrored_qform"] * (side > 0)
