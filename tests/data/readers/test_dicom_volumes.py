"""Series that hold more than one volume, and slices that share nothing but a volume."""

import functools

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from curia2_jax.data.ingest.catalog import Catalog
from curia2_jax.data.ingest.slicing import most_slices
from curia2_jax.data.readers import archive, dicom
from curia2_jax.data.readers.series import Found
from curia2_jax.data.readers.volume import Refusal, is_regular
from tests.data.readers.test_dicom import enhanced
from tests.data.small_studies import body, dicom_slices, save_dicom


def scans_of(found, folder):
    """The scans that a plan makes of these files."""
    (folder / "catalog").unlink(missing_ok=True)
    with Catalog(folder / "catalog") as catalog:
        catalog.add(found)
        return [scan for items in catalog.series() for scan in archive.scans(items, [folder / "in"], every_frame=False)]


def volumes(count: int, apart: float = 0.0, **tags) -> tuple[list[np.ndarray], list[Dataset]]:
    """`count` volumes of one series, `apart` mm along z, whose elements have the n-th of the given values."""
    voxels = [body((4, 8, 9), seed, 0) for seed in range(count)]
    out: list[Dataset] = []
    for n, spl in enumerate(voxels):
        slices = dicom_slices(spl, modality="MR")
        for k, ds in enumerate(slices):
            first = out[0] if out else slices[0]
            ds.SeriesInstanceUID, ds.StudyInstanceUID = first.SeriesInstanceUID, first.StudyInstanceUID
            ds.ImagePositionPatient = [10, 10, 10 + 2 * k + apart * n]
            ds.InstanceNumber = n * len(slices) + k + 1
            for name, values in tags.items():
                setattr(ds, name, values[n])
        out += slices
    return voxels, out


@pytest.mark.parametrize(
    "tags",
    [
        {"EchoTime": [5.0, 10.5]},
        {"ImageType": [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "I"]]},
        {"DiffusionBValue": [0.0, 1000.0]},
        {"AcquisitionNumber": [1, 2]},
        {"StackID": ["1", "2"]},
        {"TemporalPositionIdentifier": [1, 2]},
        {"TriggerTime": [0.0, 400.0]},
        {"FrameOfReferenceUID": ["1.2.3", "1.2.4"]},
        {"ConvolutionKernel": ["B30", "B70"]},
    ],
    ids=lambda tags: next(iter(tags)),
)
@pytest.mark.parametrize("apart", [0.0, 1.0, 0.7])
def test_volumes_are_never_interleaved(tmp_path, tags, apart):
    """Nor where their slices lie between each other, which would halve the distance."""
    voxels, slices = volumes(2, apart, **tags)
    paths = save_dicom(tmp_path, slices)
    assert dicom.count_frames(paths) == 2
    for n in range(2):
        volume = dicom.read(paths, n)
        np.testing.assert_array_equal(volume.voxels, voxels[n])
        assert volume.spacing[0] == pytest.approx(2) and any(what == "frame" for what, _ in volume.notes)


def test_two_elements_together_tell_four_volumes_apart(tmp_path):
    """Two echoes, magnitude and phase."""
    kinds = [["ORIGINAL", "PRIMARY", kind] for kind in "MPMP"]
    voxels, slices = volumes(4, EchoTime=[5, 5, 10, 10], ImageType=kinds)
    paths = save_dicom(tmp_path, slices)
    for n in range(4):
        np.testing.assert_array_equal(dicom.read(paths, n).voxels, voxels[n])


@pytest.mark.parametrize("by_slice", [False, True])
def test_a_time_series_that_only_its_numbers_tell(tmp_path, by_slice):
    """As classic fMRI, DTI and perfusion are stored, volume by volume or slice by slice."""
    voxels, slices = volumes(5)
    if by_slice:
        for n, ds in enumerate(slices):
            ds.InstanceNumber = n % 4 * 5 + n // 4 + 1
    paths = save_dicom(tmp_path, slices)
    assert dicom.count_frames(paths) == 5
    for n in range(5):
        np.testing.assert_array_equal(dicom.read(paths, n).voxels, voxels[n])


def test_a_time_series_whose_heart_beats_differ(tmp_path):
    """The order of the trigger times of each position counts."""
    voxels, slices = volumes(3)
    for n, ds in enumerate(slices):
        ds.TriggerTime, ds.InstanceNumber = 30.0 * (n // 4) + n % 4, 7 * n % 12
    paths = save_dicom(tmp_path, slices)
    np.testing.assert_array_equal(dicom.read(paths, 2).voxels, voxels[2])


def test_what_nothing_tells_apart_is_refused(tmp_path):
    """Numbers at random, and a volume that was cut off."""
    _, slices = volumes(3)
    for name, some in (("cut", slices[:-1]), ("random", slices)):
        if name == "random":
            for n, ds in enumerate(np.random.default_rng(0).permutation(12).tolist()):
                slices[n].InstanceNumber = ds
        with pytest.raises(Refusal, match="irregular_geometry: several slices at one position"):
            dicom.read(save_dicom(tmp_path / name, some))


def test_blocks_side_by_side_are_one_volume(tmp_path):
    """As a step-and-shoot CT has them, each with a number of its own."""
    voxels = body((8, 8, 9))
    slices = dicom_slices(voxels)
    for k, ds in enumerate(slices):
        ds.AcquisitionNumber, ds.TriggerTime = k // 2, 100 + k % 3
    volume = dicom.read(save_dicom(tmp_path, slices))
    np.testing.assert_array_equal(volume.voxels, voxels)


@pytest.mark.parametrize(("tag", "value"), [("PatientID", "p2"), ("StudyInstanceUID", "1.2.3")])
def test_patients_and_studies_that_share_a_series(tmp_path, tag, value):
    """Each gets its own; a single slice is refused as mixed."""
    voxels, slices = volumes(2, 1.0)
    for ds in slices[4:]:
        setattr(ds, tag, value)
    save_dicom(tmp_path / "in", slices)
    look = functools.partial(most_slices, planes=("axial",))
    found = [item for path in archive.walk(tmp_path / "in") for item in archive.look(str(path), look)]
    scans = scans_of(found, tmp_path)
    read = sorted((archive.read(scan) for scan in scans), key=lambda volume: volume.affine[2, 3])
    assert len(scans) == 2 and len({scan.series for scan in scans}) == 2
    for volume, expected in zip(read, voxels, strict=True):
        np.testing.assert_array_equal(volume.voxels, expected)
    setattr(slices[4], tag, "3")
    with pytest.raises(Refusal, match="mixed"):
        dicom.read(save_dicom(tmp_path / "one", slices[:5]))


def test_a_slice_that_remains_is_no_volume(tmp_path):
    """Beside a longer one."""
    voxels, slices = volumes(2, ImageType=[["ORIGINAL", "PRIMARY", "M"], ["DERIVED", "SECONDARY", "A"]])
    paths = save_dicom(tmp_path, slices[:5])
    assert dicom.count_frames(paths) == 1
    volume = dicom.read(paths)
    np.testing.assert_array_equal(volume.voxels, voxels[0])
    assert ("left_out", "1 single slices beside the volumes of the series") in volume.notes


def test_one_uid_for_all_slices(tmp_path):
    """As some de-identifiers leave them: repeated only where position and pixels are."""
    voxels = body((4, 8, 9))
    slices = dicom_slices(voxels)
    for ds in slices:
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = slices[0].SOPInstanceUID
    volume = dicom.read(save_dicom(tmp_path / "all", [*slices, slices[2]]))
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert ("repeated_instances", "1 more files with the same SOPInstanceUID") in volume.notes
    slices[1].ImagePositionPatient = slices[0].ImagePositionPatient
    with pytest.raises(Refusal, match="irregular_geometry"):
        dicom.read(save_dicom(tmp_path / "two", slices[:2]))


def test_a_uid_for_each_slice(tmp_path):
    """Put together where they lie on one grid, and only there."""
    voxels = body((5, 40, 44))
    slices = dicom_slices(voxels)
    for n, ds in enumerate(slices):
        ds.SeriesInstanceUID, ds.SeriesNumber = f"1.2.3.{n}", 4
    save_dicom(tmp_path / "in", slices)
    look = functools.partial(most_slices, planes=("axial",))
    found = [item for path in archive.walk(tmp_path / "in") for item in archive.look(str(path), look)]
    (scan,) = scans_of(found, tmp_path)
    np.testing.assert_array_equal(archive.read(scan).voxels, voxels)
    assert len(scans_of(found[:2], tmp_path)) == 2
    assert len(scans_of([*found[:3], _moved(found[4])], tmp_path)) == 4


def _moved(found: Found) -> Found:
    return Found(**vars(found) | {"place": found.place + 0.7})


def test_stacks_and_dimensions_of_enhanced_objects(tmp_path):
    """By StackID, by what DimensionIndexValues count beside the place, or by echo time."""
    voxels = np.concatenate([body((3, 8, 9), 1, 0), body((3, 8, 9), 2, 0)])
    for name in ("StackID", "DimensionIndexValues", "EffectiveEchoTime"):
        ds = enhanced(voxels)
        for frame in ds.PerFrameFunctionalGroupsSequence:
            place = frame.PlanePositionSequence[0]
            k = round(place.ImagePositionPatient[2] / 2)
            place.ImagePositionPatient = [0, 0, 4 * (k % 3) + 2 * (k // 3)]
            content, echo = Dataset(), Dataset()
            if name == "StackID":
                content.StackID = str(k // 3)
            elif name == "DimensionIndexValues":
                content.DimensionIndexValues = [k % 3 + 1, k // 3 + 1]
            else:
                echo.EffectiveEchoTime = 5.0 + k // 3
            frame.FrameContentSequence, frame.MREchoSequence = Sequence([content]), Sequence([echo])
        pointers = [Dataset(), Dataset()]
        pointers[0].DimensionIndexPointer, pointers[1].DimensionIndexPointer = 0x00209057, 0x00200100
        ds.DimensionIndexSequence = Sequence(pointers)
        paths = save_dicom(tmp_path / name, [ds])
        assert dicom.count_frames(paths) == 2, name
        for n in range(2):
            volume = dicom.read(paths, n)
            np.testing.assert_allclose(volume.voxels, voxels[3 * n : 3 * n + 3] * 2.0 - 1)
            assert volume.spacing[0] == pytest.approx(4)


def test_positions_rounded_to_a_tenth(tmp_path):
    """Are even within what rounding explains; a missing slice is not."""
    for spacing in (0.625, 0.75, 1.25):
        places = np.round(-30 + spacing * np.arange(20), 1)
        slices = dicom_slices(body((20, 8, 9)))
        for ds, place in zip(slices, places, strict=True):
            ds.ImagePositionPatient = [10, 10, place]
        volume = dicom.read(save_dicom(tmp_path / str(spacing), slices))
        assert volume.spacing[0] == pytest.approx(spacing, abs=2e-3)
        with pytest.raises(Refusal, match="irregular_geometry: slice distances"):
            dicom.read(save_dicom(tmp_path / f"{spacing} gap", slices[:7] + slices[8:]))
    assert not is_regular(np.array([0, 0.6, 1.2, 1.9, 2.5])) and is_regular(np.array([0, 0.6, 1.2, 1.9, 2.5]), 0.05)


def test_frames_without_a_place_have_no_geometry(tmp_path):
    """Unless they are those of a volume that lost its functional groups."""
    (ds,) = dicom_slices(body((1, 24, 9)))
    ds.Rows, ds.NumberOfFrames = 8, 3
    del ds.ImagePositionPatient
    with pytest.raises(Refusal, match="no_geometry"):
        dicom.read(save_dicom(tmp_path, [ds]))
