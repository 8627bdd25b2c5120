"""DICOM series against SimpleITK and highdicom."""

import copy
import struct

import highdicom
import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from curia2_jax.data.ingest.slicing import planes_of
from curia2_jax.data.readers import dicom
from curia2_jax.data.readers.volume import REASONS, Refusal
from tests.data.small_studies import body, dicom_slices, save_dicom


def reason(paths) -> str:
    with pytest.raises(Refusal) as refusal:
        dicom.read(paths)
    assert refusal.value.reason in REASONS and "\n" not in refusal.value.detail
    return refusal.value.reason


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_slices_in_any_file_order(tmp_path, modality):
    """Places come from the positions alone."""
    voxels = body((6, 8, 9))
    volume = dicom.read(save_dicom(tmp_path, dicom_slices(voxels, modality=modality)))
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.spacing, [2, 1.5, 1])  # not the SliceThickness of 99
    assert (volume.modality, volume.patient, volume.across) == (modality, "p1", 0)


@pytest.mark.parametrize(
    ("orientation", "normal", "plane"),
    [
        ((1, 0, 0, 0, 1, 0), (0, 0, 1), "axial"),
        ((1, 0, 0, 0, 1, 0), (0, 0, -1), "axial"),  # positions run downwards
        ((-1, 0, 0, 0, -1, 0), (0, 0, 1), "axial"),
        ((1, 0, 0, 0, 0, -1), (0, 1, 0), "coronal"),
        ((0, 1, 0, 0, 0, -1), (-1, 0, 0), "sagittal"),
        ((0.96, 0.28, 0, -0.28, 0.96, 0), (0, 0, 1), "axial"),
        ((1, 0, 0, 0, 0.96, 0.28), (0, -0.28, 0.96), "axial"),
    ],
)
def test_orientation_agrees_with_simpleitk(tmp_path, orientation, normal, plane):
    """Axial, coronal, sagittal and oblique series."""
    voxels = body((5, 40, 44), low=0)
    paths = save_dicom(tmp_path, dicom_slices(voxels, (4, 1, 1), "MR", orientation, normal))
    volume = dicom.read(paths)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    expected = sitk.DICOMOrient(reader.Execute(), "LPS")
    np.testing.assert_array_equal(volume.raw, sitk.GetArrayFromImage(expected))
    np.testing.assert_allclose(volume.spacing, expected.GetSpacing()[::-1], rtol=1e-5)
    np.testing.assert_allclose(np.diag([-1, -1, 1]) @ volume.affine[:3, 3], expected.GetOrigin(), atol=1e-4)
    assert planes_of(volume.raw.shape, volume.spacing, ("axial",), volume.across) == (plane,)


def encoded(ds: Dataset, syntax: str) -> Dataset:
    """The slice in another transfer syntax."""
    ds = copy.deepcopy(ds)
    pixels = ds.pixel_array
    if syntax in (uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.RLELossless):
        ds.compress(syntax, generate_instance_uid=False)
        return ds
    streams = {
        uid.JPEGLosslessSV1: lambda: imagecodecs.ljpeg_encode(pixels.astype(np.uint16), bitspersample=16),
        uid.HTJ2KLossless: lambda: imagecodecs.htj2k_encode(pixels.astype(np.uint16), reversible=True),
    }
    if syntax in streams:
        ds.PixelData = encapsulate([streams[syntax]()])
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
    if syntax == uid.ExplicitVRBigEndian:
        ds.PixelData = pixels.astype(f">{pixels.dtype.str[1:]}").tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    return ds


@pytest.mark.parametrize(
    "syntax",
    [
        *(uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.DeflatedExplicitVRLittleEndian, uid.RLELossless),
        *(uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.HTJ2KLossless),
    ],
)
def test_lossless_transfer_syntaxes(tmp_path, syntax):
    """The same voxels, however they are packed."""
    voxels = body((3, 40, 48))
    paths = save_dicom(tmp_path, [encoded(ds, syntax) for ds in dicom_slices(voxels)])
    np.testing.assert_array_equal(dicom.read(paths).voxels, voxels)


def test_rescale_of_each_instance_is_its_own(tmp_path):
    """Where slopes vary the voxels are scaled one by one."""
    voxels = body((4, 8, 9), low=0)
    slices = dicom_slices(voxels, modality="MR")
    for n, ds in enumerate(slices):
        ds.RescaleSlope, ds.RescaleIntercept = 1 + n, 10 * n
    volume = dicom.read(save_dicom(tmp_path, slices))
    expected = voxels * np.arange(1, 5)[:, None, None] + 10 * np.arange(4)[:, None, None]
    np.testing.assert_allclose(volume.voxels, expected)


def test_twelve_bits_signed_and_padding(tmp_path):
    """Numbers keep their sign; padding is passed on."""
    voxels = np.clip(body((3, 8, 9)), -2048, 2047)
    slices = dicom_slices(voxels, modality="MR")
    for ds in slices:
        ds.BitsStored, ds.HighBit, ds.PixelPaddingValue = 12, 11, -2000
        ds.PixelData = (np.frombuffer(ds.PixelData, "<i2") & 0x0FFF).astype("<u2").tobytes()  # no sign extension
    volume = dicom.read(save_dicom(tmp_path, slices))
    np.testing.assert_array_equal(volume.raw, voxels)
    assert volume.padding == (-2000.0,)


def change(slices, number, **values):
    for name, value in values.items():
        setattr(slices[number], name, value)
    return slices


CASES = {
    "gap": lambda s: s[:3] + s[4:],
    "uneven": lambda s: change(s, 2, ImagePositionPatient=[10, 10, 14.5]),
    "shifted": lambda s: change(s, 2, ImagePositionPatient=[14, 10, 14]),
    "two at one position": lambda s: change(s, 2, ImagePositionPatient=s[1].ImagePositionPatient),
    "mixed orientations": lambda s: change(s, 5, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
    "mixed spacing": lambda s: change(s, 5, PixelSpacing=[1.5, 1.2]),
    "no right angle": lambda s: [change([d], 0, ImageOrientationPatient=[1, 0, 0, 0.2, 0.98, 0])[0] for d in s],
}


@pytest.mark.parametrize("case", CASES)
def test_irregular_series_are_refused_as_highdicom_refuses_them(tmp_path, case):
    """And for the same series."""
    slices = CASES[case](dicom_slices(body((6, 8, 9))))
    assert reason(save_dicom(tmp_path, slices)) == "irregular_geometry"
    with pytest.raises((ValueError, RuntimeError)):
        highdicom.get_volume_from_series(slices)


@pytest.mark.parametrize(("degrees", "refused"), [(0, False), (0.2, False), (2, True), (15, True)])
def test_tilted_gantry(tmp_path, degrees, refused):
    """A grid that is sheared is none."""
    slices = dicom_slices(body((10, 8, 9)), spacing=(5.0, 1.0, 1.0))
    for n, ds in enumerate(slices):
        ds.ImagePositionPatient = [0, round(5 * n * float(np.tan(np.radians(degrees))), 4), 5 * n]
    paths = save_dicom(tmp_path, slices)
    if refused:
        assert reason(paths) == "irregular_geometry"
    else:
        assert dicom.read(paths).raw.shape == (10, 8, 9)


OBJECTS = {
    "localizer": ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
    "screen save": ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "derived_object"),
    "secondary capture": ({"SOPClassUID": uid.SecondaryCaptureImageStorage, "Modality": "CT"}, "derived_object"),
    "structure set": ({"Modality": "RTSTRUCT"}, "derived_object"),
    "ultrasound": ({"Modality": "US"}, "wrong_modality"),
    "lossy by tag": ({"LossyImageCompression": "01"}, "lossy_compression"),
    "color": ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "unsupported_pixel_type"),
    "palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported_pixel_type"),
    "no rows": ({"Rows": None}, "not_an_image"),
    "no position": ({"ImagePositionPatient": None}, "no_geometry"),
    "no spacing": ({"PixelSpacing": None}, "no_geometry"),
    "zero slope": ({"RescaleSlope": 0}, "corrupt"),
    "short pixels": ({"PixelData": b"\0" * 100}, "corrupt"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_what_is_no_plain_image_is_refused(tmp_path, name):
    """Each for its own reason."""
    values, expected = OBJECTS[name]
    (ds,) = dicom_slices(body((1, 8, 9)))
    for tag, value in values.items():
        if value is None:
            del ds[tag]
        else:
            setattr(ds, tag, value)
    ds.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=True)
    assert reason([tmp_path / "a.dcm"]) == expected


def test_lossy_transfer_syntax(tmp_path):
    """Before its pixels are decoded."""
    (ds,) = dicom_slices(body((1, 8, 9)))
    ds.PixelData = encapsulate([b"\xff\xd8 not decoded \xff\xd9"])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    assert reason(save_dicom(tmp_path, [ds])) == "lossy_compression"


def test_an_instance_stored_twice_counts_once(tmp_path):
    """And is noted."""
    voxels = body((4, 8, 9))
    slices = dicom_slices(voxels)
    volume = dicom.read(save_dicom(tmp_path, [*slices, slices[1], slices[2]]))
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert ("repeated_instances", "2 more files with the same SOPInstanceUID") in volume.notes


def test_echoes_at_the_same_positions_are_frames(tmp_path):
    """In the order of their tag."""
    first, second = (
        dicom_slices(body((4, 8, 9), 1, 0), modality="MR"),
        dicom_slices(body((4, 8, 9), 2, 0), modality="MR"),
    )
    for ds in first:
        ds.EchoTime = 90.5
    for ds in second:
        ds.EchoTime = 9.5
        ds.SeriesInstanceUID, ds.StudyInstanceUID = first[0].SeriesInstanceUID, first[0].StudyInstanceUID
    paths = save_dicom(tmp_path, [*first, *second])
    assert dicom.count_frames(paths) == 2
    np.testing.assert_array_equal(dicom.read(paths, 0).voxels, body((4, 8, 9), 2, 0))
    np.testing.assert_array_equal(dicom.read(paths, 1).voxels, body((4, 8, 9), 1, 0))
    with pytest.raises(Refusal, match="no frame 2"):
        dicom.read(paths, 2)


def enhanced(voxels: np.ndarray) -> Dataset:
    """Enhanced MR object, its frames in no order, orientation shared and position a frame."""
    (ds,) = dicom_slices(voxels[:1], modality="MR")
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.EnhancedMRImageStorage
    order = np.random.default_rng(0).permutation(len(voxels))
    ds.NumberOfFrames = len(voxels)
    ds.PixelData = np.ascontiguousarray(voxels[order], "<i2").tobytes()
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del ds[tag]
    shared, measures, axes = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 1.0], 9
    axes.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([axes])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in order.tolist():
        frame, place, scale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2.0 * k]
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 2, -1, "US"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Sequence([place]), Sequence([scale])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return ds


def test_enhanced_multi_frame(tmp_path):
    """Positions from the functional groups."""
    voxels = body((5, 8, 9), low=0)
    volume = dicom.read(save_dicom(tmp_path, [enhanced(voxels)]))
    np.testing.assert_allclose(volume.voxels, voxels * 2.0 - 1)
    np.testing.assert_allclose(volume.spacing, [2, 1.5, 1])


def test_is_dicom_by_content_or_name(tmp_path):
    """But an index of a folder is none."""
    (path,) = save_dicom(tmp_path, dicom_slices(body((1, 8, 9))))
    assert dicom.claims(path) and dicom.claims(path.rename(tmp_path / "IM0001"))
    (tmp_path / "x.txt").write_bytes(b"a" * 200)
    assert not dicom.claims(tmp_path / "x.txt")
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "IM0001").read_bytes())
    assert not dicom.claims(tmp_path / "DICOMDIR")


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    (path,) = save_dicom(tmp_path_factory.mktemp("dicom"), dicom_slices(body((1, 8, 9))))
    return path.read_bytes()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), kind=st.sampled_from(["bare", "preamble", "spliced"]), at=st.floats(0, 1))
def test_random_bytes_never_crash(tmp_path, one_file, data, kind, at):
    """They are refused."""
    path = tmp_path / "a.dcm"
    if kind == "bare":
        path.write_bytes(data)
    elif kind == "preamble":
        path.write_bytes(b"\0" * 128 + b"DICM" + data)
    else:
        start = 132 + int(at * (len(one_file) - 132))
        path.write_bytes(one_file[:start] + data[:40] + one_file[start + len(data[:40]) :])
    try:
        volume = dicom.read([path])
    except Refusal as refusal:
        assert refusal.reason in REASONS
    else:
        assert kind == "spliced" and volume.raw.ndim == 3 and np.isfinite(volume.affine).all()


def test_a_file_cut_anywhere_is_refused(tmp_path, one_file):
    """In the header or in the pixels."""
    for length in range(0, len(one_file), 37):
        (tmp_path / "a.dcm").write_bytes(one_file[:length])
        assert reason([tmp_path / "a.dcm"]) in ("corrupt", "not_an_image", "no_geometry"), length
    assert struct.unpack("<I", one_file[-148:-144])[0] == 144  # the pixels are what comes last, so the cuts reach them
    assert pydicom.dcmread(tmp_path / "a.dcm", force=True) is not None
