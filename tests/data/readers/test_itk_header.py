"""NRRD and MetaImage headers: streams, sizes, units and places, against SimpleITK's files."""

import gzip
import pathlib
import resource
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from curia2_jax.data.readers import itk, nifti
from curia2_jax.data.readers.volume import Refusal
from tests.data.readers.test_nifti import with_header
from tests.data.small_studies import body, write_nifti

VOXELS = body((6, 40, 44))


def image() -> sitk.Image:
    out = sitk.GetImageFromArray(VOXELS)
    out.SetSpacing((1.0, 1.5, 2.0))
    return out


def nrrd(path: pathlib.Path, packed: bytes | None = None, **changes) -> pathlib.Path:
    """A NRRD file with fields changed, or left out where they are None."""
    fields = {
        "type": "int16",
        "dimension": "3",
        "space": "left-posterior-superior",
        "space dimension": None,
        "sizes": "44 40 6",
        "space directions": "(1,0,0) (0,1.5,0) (0,0,2)",
        "space origin": "(0,0,0)",
        "endian": "little",
        "encoding": "gzip",
    } | {name.replace("_", " "): value for name, value in changes.items()}
    text = "NRRD0004\n" + "".join(f"{name}: {value}\n" for name, value in fields.items() if value is not None)
    data = gzip.compress(VOXELS.astype("<i2").tobytes()) if packed is None else packed
    path.write_bytes(text.encode() + b"\n" + (b"" if "data file" in fields else data))
    return path


def reason(path: pathlib.Path, read=itk.read) -> str:
    with pytest.raises(Refusal) as refusal:
        read([path])
    assert "\n" not in refusal.value.detail
    return refusal.value.reason


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_byte_of_a_stream_counts(tmp_path, suffix, packed):
    """As SimpleITK writes it: whole it is read, cut or with a flipped bit it is not."""
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image(), str(path), useCompression=packed)
    np.testing.assert_array_equal(itk.read([path]).voxels, VOXELS)
    data = next((p for p in tmp_path.iterdir() if p.suffix in (".raw", ".zraw", ".gz")), path)
    whole = data.read_bytes()
    for cut in (1, 5, len(whole) // 2):
        data.write_bytes(whole[:-cut])
        assert reason(path) == "corrupt"
    if packed:
        for at in np.random.default_rng(0).integers(len(whole) - len(whole) // 2, len(whole), 40):
            flipped = bytearray(whole)
            flipped[at] ^= 16
            data.write_bytes(flipped)
            assert reason(path) == "corrupt"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"space": None, "space_directions": None, "space_origin": None}, "no_geometry"),
        ({"space": None, "space_directions": None, "space_origin": None, "spacings": "1 1.5 2"}, "no_geometry"),
        ({"space": None, "space_dimension": "3"}, "no_geometry"),
        ({"space": "scanner-xyz"}, "no_geometry"),
        ({"space_units": '"inch" "inch" "inch"'}, "no_geometry"),
        ({"sizes": "44 40 60000"}, "corrupt"),
        ({"sizes": "44 40 7"}, "corrupt"),
        ({"sizes": "44 40 -6"}, "corrupt"),
        ({"type": "block"}, "unsupported_pixel_type"),
        ({"encoding": "zip"}, "wrong_format"),
        ({"data_file": "/etc/hostname"}, "unsafe_archive"),
        ({"data_file": "../a.raw.gz"}, "unsafe_archive"),
        ({"data_file": "C:\\a.raw.gz"}, "unsafe_archive"),
        ({"data_file": "link.raw.gz"}, "unsafe_archive"),
        ({"data_file": "none.raw.gz"}, "corrupt"),
        ({"data_file": "a%03d.raw 1 6 1"}, "unsupported_dimensions"),
        ({"data_file": "LIST"}, "unsupported_dimensions"),
    ],
    ids=str,
)
def test_headers_of_nrrd_that_are_refused(tmp_path, changes, expected):
    """Each for its reason."""
    (tmp_path / "target.raw.gz").write_bytes(gzip.compress(VOXELS.tobytes()))
    (tmp_path / "link.raw.gz").symlink_to(tmp_path / "target.raw.gz")
    assert reason(nrrd(tmp_path / "a.nrrd", **changes)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"space_units": '"mm" "mm" "mm"'},
        {"space_units": '"microns" "microns" "microns"', "space_directions": "(1000,0,0) (0,1500,0) (0,0,2000)"},
        {"space_units": '"m" "m" "m"', "space_directions": "(0.001,0,0) (0,0.0015,0) (0,0,0.002)"},
        {"type": "short"},
        {"space": "LPS"},
    ],
    ids=str,
)
def test_headers_of_nrrd_that_are_read(tmp_path, changes):
    """In millimeters."""
    volume = itk.read([nrrd(tmp_path / "a.nrrd", **changes)])
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    np.testing.assert_allclose(volume.spacing, [2, 1.5, 1])


def test_an_orientation_for_what_has_none(tmp_path):
    """The spacings of the file, the axes of the user."""
    path = nrrd(tmp_path / "a.nrrd", space=None, space_directions=None, space_origin=None, spacings="1 1.5 2")
    volume = itk.read([path], orientation="LPS")
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    np.testing.assert_allclose(volume.spacing, [2, 1.5, 1])
    sitk.WriteImage(image(), str(tmp_path / "a.mha"))
    text, _, data = (tmp_path / "a.mha").read_bytes().partition(b"ElementDataFile")
    lines = [line for line in text.splitlines(True) if b"Matrix" not in line and b"Anatomical" not in line]
    (tmp_path / "b.mha").write_bytes(b"".join(lines) + b"ElementDataFile" + data)
    assert reason(tmp_path / "b.mha") == "no_geometry"
    np.testing.assert_array_equal(itk.read([tmp_path / "b.mha"], orientation="LPS").voxels, VOXELS)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"ElementDataFile = a.zraw", b"ElementDataFile = /etc/hostname", "unsafe_archive"),
        (b"ElementDataFile = a.zraw", b"ElementDataFile = ../a.zraw", "unsafe_archive"),
        (b"ElementDataFile = a.zraw", b"ElementDataFile = LIST", "unsupported_dimensions"),
        (b"DimSize = 44 40 6", b"DimSize = 44 40 60000", "corrupt"),
        (b"DimSize = 44 40 6", b"DimSize = 44 40 7", "corrupt"),
        (b"NDims = 3", b"NDims = 9999", "corrupt"),
        (b"NDims = 3", b"NDims = 2", "corrupt"),
        (b"ElementType = MET_SHORT", b"ElementType = MET_OTHER", "unsupported_pixel_type"),
        (b"ElementDataFile = a.zraw", b"", "wrong_format"),
    ],
)
def test_headers_of_metaimage_that_are_refused(tmp_path, old, new, expected):
    """Each for its reason."""
    path = tmp_path / "a.mhd"
    sitk.WriteImage(image(), str(path), useCompression=True)
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    assert reason(path) == expected


def test_what_a_small_file_promises_is_bounded(tmp_path):
    """Before there is room for it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    zeros = gzip.compress(bytes(1 << 20))
    assert reason(nrrd(tmp_path / "a.nrrd", zeros, sizes="2048 2048 700")) == "corrupt"
    assert reason(nrrd(tmp_path / "b.nrrd", zeros, sizes="1024 1024 200", encoding="raw")) == "corrupt"
    text = "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nDimSize = 2048 2048 700\n"
    text += "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "c.mha").write_bytes(text.encode() + zlib.compress(bytes(1 << 20)))
    assert reason(tmp_path / "c.mha") == "corrupt"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"xyzt_units": 1, "scale": 1e-3}, None),
        ({"xyzt_units": 2}, None),
        ({"xyzt_units": 3, "scale": 1e3}, None),
        ({"xyzt_units": 1}, "no_geometry"),
        ({"xyzt_units": 3}, "no_geometry"),
        ({"xyzt_units": 5}, "no_geometry"),
        ({"scl_slope": 2.0, "scl_inter": np.nan}, "corrupt"),
        ({"scl_slope": np.nan, "scl_inter": np.nan}, None),
        ({"dim": [4, 44, 40, 1, 6, 1, 1, 1]}, "unsupported_dimensions"),
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "corrupt"),
        ({"srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4, "qform_code": 1}, None),
    ],
    ids=str,
)
def test_headers_of_nifti(tmp_path, fields, expected):
    """Units, scales without an intercept, slices as times, promises that no file keeps, an sform of zeros."""
    fields = dict(fields)
    scale = fields.pop("scale", 1.0)
    write_nifti(tmp_path / "a.nii", VOXELS)
    if scale != 1:
        fields |= {"srow_x": [-scale, 0, 0, 0], "srow_y": [0, -1.5 * scale, 0, 0], "srow_z": [0, 0, 2 * scale, 0]}
    with_header(tmp_path / "a.nii", **fields)
    if expected:
        assert reason(tmp_path / "a.nii", nifti.read) == expected
        if "dim" in fields:
            with pytest.raises(Refusal, match=expected):
                nifti.look(tmp_path / "a.nii")
        return
    volume = nifti.read([tmp_path / "a.nii"])
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    np.testing.assert_allclose(volume.spacing, [2, 1.5, 1], rtol=1e-6)
