"""Small studies on disk, made by other libraries than the readers under test wherever that is possible."""

import pathlib

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid


def body(shape: tuple[int, int, int] = (12, 40, 48), seed: int = 0, low: int = -1000) -> np.ndarray:
    """(S, P, L) int16: an off-center ellipsoid of noisy tissue in air; every voxel of it is a little different."""
    rng = np.random.default_rng(seed)
    s, p, left = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    inside = (0.2 * s) ** 2 + ((p - 0.1) / 0.8) ** 2 + ((left + 0.15) / 0.7) ** 2 < 1
    values = np.where(inside, 40 + 30 * p + 60 * left + 20 * s, low)
    return np.maximum(np.round(values + rng.normal(0, 12, shape)), -1024).astype(np.int16)


def write_nifti(path: pathlib.Path, spl: np.ndarray, spacing=(2.0, 1.5, 1.0), origin=(0.0, 0.0, 0.0), **header) -> None:
    """(S, P, L) voxels as NIfTI in LPS+ storage order: x towards left and y towards posterior."""
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    affine[:3, 3] = origin
    image = nib.Nifti1Image(spl.transpose(2, 1, 0), affine)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def dicom_slices(
    spl: np.ndarray, spacing=(2.0, 1.5, 1.0), modality: str = "CT", orientation=(1, 0, 0, 0, 1, 0), normal=(0, 0, 1)
) -> list[Dataset]:
    """One dataset a slice of (slice, row, column) voxels. In DICOM's coordinates x grows towards left, y towards
    posterior, so with the default orientation slices, rows and columns are those of (S, P, L)."""
    series, study, out = generate_uid(), generate_uid(), []
    for k, pixels in enumerate(spl):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        ds = Dataset()
        ds.file_meta = meta
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.PatientID, ds.Modality = series, study, "p1", modality
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Rows, ds.Columns = pixels.shape
        ds.PixelSpacing = [spacing[1], spacing[2]]
        ds.ImageOrientationPatient = list(orientation)
        ds.ImagePositionPatient = [round(float(10 + k * spacing[0] * n), 6) for n in normal]
        ds.SliceThickness, ds.InstanceNumber = 99.0, len(spl) - k
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
        if modality == "CT":
            ds.PixelRepresentation, ds.RescaleSlope, ds.RescaleIntercept = 0, 1, -1024
            ds.PixelData = (pixels.astype(np.int32) + 1024).astype("<u2").tobytes()
        else:
            ds.PixelRepresentation = 1
            ds.PixelData = np.ascontiguousarray(pixels, "<i2").tobytes()
        out.append(ds)
    return out


def save_dicom(folder: pathlib.Path, datasets: list[Dataset], shuffle: bool = True) -> list[pathlib.Path]:
    """Files with names that say nothing about the order."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(1).permutation(len(datasets)) if shuffle else range(len(datasets))
    paths = []
    for name, index in enumerate(order):
        paths.append(folder / f"{name:03d}.dcm")
        pydicom.dcmwrite(paths[-1], datasets[index], enforce_file_format=True)
    return paths


def write_archive(folder: pathlib.Path, series: int = 6, slices: int = 10) -> None:
    """A mixed archive: CT and MR NIfTI, a DICOM series, a duplicate, a label map, and things that are refused."""
    for n in range(series):
        voxels = body((slices, 40 + 2 * n, 48), seed=n, low=-1000 if n % 2 == 0 else 0)
        voxels = voxels if n % 2 == 0 else np.abs(voxels)
        write_nifti(folder / f"patient{n // 2}" / f"scan{n}.nii.gz", voxels, spacing=(3.0, 1.0, 1.0))
    label = np.zeros((slices, 40, 48), np.uint8)
    label[2:8, 10:20, 10:20], label[2:8, 22:32, 22:32] = 1, 2
    write_nifti(folder / "patient0" / "scan0_seg.nii.gz", label, spacing=(3.0, 1.0, 1.0))
    save_dicom(folder / "dicom" / "a", dicom_slices(body((slices, 44, 48), seed=50)))
    write_nifti(folder / "again" / "copy.nii.gz", body((slices, 40, 48), seed=0), spacing=(3.0, 1.0, 1.0))
    (folder / "notes.txt").write_text("not an image")
    (folder / "cut.nii.gz").write_bytes((folder / "patient0" / "scan0.nii.gz").read_bytes()[:-9])
