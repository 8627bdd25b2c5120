"""Mosaics against dcm2niix and nibabel, on the real Siemens files that nibabel ships."""

import gzip
import pathlib
import struct
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


def csa_items(data: bytes) -> list[tuple[list, list[tuple[tuple[int, ...], bytes]]]]:
    """Heads and items of the tags of a CSA 2 header."""
    (count,), at, out = struct.unpack_from("<I", data, 8), 16, []
    for _ in range(count):
        head, items, at = struct.unpack_from("<64si4s3i", data, at), [], at + 84
        for _ in range(head[4]):
            numbers = struct.unpack_from("<4i", data, at)
            items.append((numbers, data[at + 16 : at + 16 + numbers[1]]))
            at += 16 + (numbers[1] + 3) // 4 * 4
        out.append((list(head), items))
    return out


def csa(tags: list) -> bytes:
    """The header again."""
    out = b"SV10\4\3\2\1" + struct.pack("<2I", len(tags), 77)
    for head, items in tags:
        out += struct.pack("<64si4s3i", *head)
        for numbers, value in items:
            out += struct.pack("<4i", *numbers) + value + b"\0" * (-len(value) % 4)
    return out


def with_value(tags: list, name: bytes, values: list[bytes]) -> list:
    """The tags with other values of one."""
    out = []
    for head, items in tags:
        if head[0].startswith(name + b"\0"):
            new = [((len(v) + 1, len(v) + 1, 77, len(v) + 1), v + b"\0") for v in values]
            items = new + items[len(new) :]
        out.append((head, items))
    return out


def numbered(ds: pydicom.Dataset) -> pydicom.Dataset:
    """The mosaic with tile k of all values k + 1 and columns that tell left from right."""
    tiles = np.kron(np.arange(1, 50).reshape(7, 7), np.ones((128, 128)))
    ds.PixelData = (tiles * (1 + np.tile(np.arange(896) % 128, (896, 1)))).astype("<u2").tobytes()
    return ds


@pytest.mark.parametrize("kind", ["as it is", "numbered from the other end", "downwards"])
def test_the_order_of_tiles_is_that_of_the_normal(tmp_path, files, kind):
    """As dcm2niix v1.0.20260724 has it: slice k of these tiles lies at the third column of this affine, times k, from
    the first, whichever number the vendor gave to it."""
    ds = numbered(pydicom.dcmread(files[0]))
    tags, sign = csa_items(ds[0x00291010].value), 1
    assert ds[0x00291010].value.startswith(csa(tags))
    if kind == "numbered from the other end":
        ds[0x00291010].value = csa(with_value(tags, b"ProtocolSliceNumber", [b"47"]))
    elif kind == "downwards":
        sign, down = -1, [b"-0.00000000", b"-0.00523632", b"-0.99998629"]
        ds[0x00291010].value = csa(with_value(tags, b"SliceNormalVector", down))
    ds.save_as(tmp_path / "a.dcm")
    volume = dicom.read([tmp_path / "a.dcm"])
    assert volume.raw.shape == (48, 128, 128)
    first = DCM2NIIX @ [3, 127 - 5, 0, 1]
    for k in (0, 1, 47):
        place = first + sign * k * DCM2NIIX[:, 2]
        s, p, left = np.rint(np.linalg.solve(volume.affine, place)[:3]).astype(int)
        np.testing.assert_allclose(volume.affine @ [s, p, left, 1], place, atol=2e-2)
        assert volume.raw[s, p, left] == (k + 1) * 4


def united_imaging(voxels: np.ndarray, down: int = 1) -> pydicom.Dataset:
    """The grid of another vendor: with as many rows as it needs, and the place of each tile in a private sequence."""
    normal = (0, -0.28 * down, 0.96 * down)
    slices = dicom_slices(voxels, (3.0, 1.5, 1.25), "MR", (1, 0, 0, 0, 0.96, 0.28), normal)
    count, (height, width) = len(slices), voxels.shape[1:]
    columns = int(np.ceil(np.sqrt(count)))
    ds, picture = slices[0], np.zeros((-(-count // columns) * height, columns * width), "<i2")
    for k, tile in enumerate(voxels):
        y, x = k // columns * height, k % columns * width
        picture[y : y + height, x : x + width] = tile
    ds.Rows, ds.Columns = picture.shape
    ds.PixelData, ds.ImageType = picture.tobytes(), ["ORIGINAL", "PRIMARY", "M", "ND", "VFRAME"]
    block = ds.private_block(0x65, "Image Private Header", create=True)
    block.add_new(0x50, "DS", str(count))
    items = [pydicom.Dataset() for _ in slices]
    for item, one in zip(items, slices, strict=True):
        item.ImagePositionPatient = one.ImagePositionPatient
    block.add_new(0x51, "SQ", pydicom.Sequence(items))
    return ds


@pytest.mark.parametrize("down", [1, -1])
@pytest.mark.parametrize("above", [True, False])
def test_grids_of_united_imaging(tmp_path, down, above):
    """With and without a position beside the sequence; the affine is that which dcm2niix gives to the same file."""
    voxels = (np.arange(1, 28)[:, None, None] * 100 + np.arange(40)[:, None] + np.arange(44)).astype(np.int16)
    ds = united_imaging(voxels, down)
    if not above:
        del ds.ImagePositionPatient
    paths = save_dicom(tmp_path, [ds])
    assert dicom.look(paths[0]).shape == (44, 40, 27)
    volume = dicom.read(paths)
    np.testing.assert_array_equal(volume.raw, voxels[::down])
    oracle = np.array([[-1.25, 0, 0, -10], [0, 1.44, 0.84, -66.16], [0, -0.42, 2.88, 26.38], [0, 0, 0, 1]])
    oracle[:3, 3] = (-10, -88, -48.5) if down < 0 else oracle[:3, 3]
    np.testing.assert_allclose(oracle @ [3, 39 - 5, 7, 1], volume.affine @ [7, 5, 3, 1], atol=1e-2)


@pytest.mark.parametrize("change", ["position", "places", "count", "none"])
def test_a_grid_of_united_imaging_without_its_geometry_is_refused(tmp_path, change):
    """Or with two that differ."""
    ds = united_imaging(np.arange(27 * 40 * 44).reshape(27, 40, 44).astype(np.int16))
    if change == "position":
        ds.ImagePositionPatient = [-50, -50, -50]
    elif change == "places":
        ds[0x00651051].value = ds[0x00651051].value[:26]
    elif change == "count":
        ds[0x00651050].value = 40
    else:
        del ds[0x00651050], ds[0x00651051]
    with pytest.raises(Refusal, match=r"irregular_geometry: .*mosaic"):
        dicom.read(save_dicom(tmp_path, [ds]))


@pytest.mark.parametrize("change", ["normal", "distance", "count", "damaged", "older"])
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
    elif change == "older":  # CSA 1 has no magic number
        ds[0x00291010].value = csa[8:]
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
