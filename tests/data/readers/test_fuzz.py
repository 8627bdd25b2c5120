"""Damaged files: bits flipped, ends cut, headers edited. None may crash a reader, hang it, fill the memory, or give
other voxels than a checksum allows."""

import functools
import gzip
import multiprocessing
import pathlib
import resource
import zipfile

import imagecodecs
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import uid

from curia2_jax.data import readers
from curia2_jax.data.ingest import intensity
from curia2_jax.data.ingest.slicing import most_slices
from curia2_jax.data.readers import archive
from curia2_jax.data.readers.volume import REASONS, Refusal
from tests.data.readers.test_dicom import encoded, enhanced
from tests.data.readers.test_dicom_pixels import packed
from tests.data.small_studies import body, dicom_slices, save_dicom, write_nifti

VOXELS = body((6, 40, 44))
_SECONDS = 20  # for one file of some ten kilobytes
_MEMORY = 1 << 20  # KiB above the start
DICOM = {
    "explicit": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "big": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "rle": uid.RLELossless,
    "jpeg": uid.JPEGLosslessSV1,
    "jpegls": uid.JPEGLSLossless,
    "j2k": uid.JPEG2000Lossless,
    "htj2k": uid.HTJ2KLossless,
}
# How the stream begins whose checksum covers every voxel.
CHECKED = {
    **{"a.nii.gz": b"\x1f\x8b", "packed.nrrd": b"\x1f\x8b", "packed.mha": b"\n\x78"},
    **dict.fromkeys(("a.zip", "stored.zip"), b""),
}


def make(folder: pathlib.Path) -> dict[str, bytes]:
    """One good file of each kind."""
    write_nifti(folder / "a.nii.gz", VOXELS)
    write_nifti(folder / "a.nii", VOXELS)
    nib.save(nib.Nifti2Image(VOXELS.transpose(2, 1, 0), np.diag([-1, -1, 2, 1])), folder / "two.nii")
    image = sitk.GetImageFromArray(VOXELS)
    for name in ("plain.nrrd", "packed.nrrd", "plain.mha", "packed.mha"):
        sitk.WriteImage(image, str(folder / name), useCompression=name.startswith("packed"))
    (ds,) = dicom_slices(VOXELS[:1])
    ds.SliceThickness = 2
    for name, syntax in DICOM.items():
        (path,) = save_dicom(folder / name, [encoded(ds, syntax) if name != "explicit" else ds])
        path.rename(folder / f"{name}.dcm")
    (path,) = save_dicom(folder / "enhanced", [enhanced(VOXELS)])
    path.rename(folder / "enhanced.dcm")
    (path,) = save_dicom(
        folder / "ten", [packed(ds, imagecodecs.jpegls_encode(VOXELS[0].view(np.uint16)), uid.JPEGLSLossless)]
    )
    path.rename(folder / "other.dcm")
    for name in ("a.zip", "stored.zip"):
        with zipfile.ZipFile(
            folder / name, "w", zipfile.ZIP_STORED if name == "stored.zip" else zipfile.ZIP_DEFLATED
        ) as out:
            out.write(folder / "a.nii", "a/ü.nii")
            out.write(folder / "rle.dcm", "b.dcm")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy."""
    out = bytearray(data)
    head = min(len(out), 1500)
    match rng.integers(6):
        case 0:
            for at in rng.integers(0, len(out), rng.integers(1, 9)):
                out[at] ^= 1 << rng.integers(8)
        case 1:
            out = out[: rng.integers(0, len(out))]
        case 2:
            for at in rng.integers(0, head, rng.integers(1, 4)):
                out[at] ^= 1 << rng.integers(8)
        case 3:
            at = rng.integers(0, head)
            out[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"9999", b"\\-1 "])
        case 4:
            at, size = rng.integers(0, len(out)), rng.integers(1, 64)
            out[at:at] = out[at : at + size]
        case 5:
            at, size = rng.integers(0, len(out)), rng.integers(1, 64)
            del out[at : at + size]
    return bytes(out)


def read_zip(path: pathlib.Path) -> np.ndarray | None:
    """The voxels of all members in a row, those of a refused one as nothing; None where all are."""
    voxels: list[np.ndarray] = []
    for item in archive.look(str(path), functools.partial(most_slices, planes=("axial",))):
        if isinstance(item, archive.Refused):
            assert item.reason in REASONS and item.reason != "reader_failed"
            continue
        try:
            voxels += [intensity.settle(archive.read(scan)).raw for scan in archive.scans([item], [path.parent], False)]
        except Refusal as refusal:
            assert refusal.reason in REASONS and refusal.reason != "reader_failed"
    return np.concatenate([one.ravel() for one in voxels]) if voxels else None


def read(path: pathlib.Path) -> np.ndarray | None:
    """The voxels as an ingest would read them; None where they are refused."""
    if path.suffix == ".zip":
        return read_zip(path)
    reader = readers.reader_for(path)
    if reader is None:
        return None
    try:
        most_slices(reader.look(path), ("axial",))
        return intensity.settle(reader.read([path])).raw
    except Refusal as refusal:
        assert refusal.reason in REASONS and refusal.reason != "reader_failed" and "\n" not in refusal.detail
        return None


def fuzz(folder: pathlib.Path, count: int, seed: int, told) -> None:
    """Read `count` damaged files; tells (number, name) before each, at last what was accepted or what went wrong."""
    (folder / "good").mkdir()
    good = make(folder / "good")
    expected = {}
    for name, data in good.items():
        (folder / name).write_bytes(data)
        expected[name] = read(folder / name)
    wrong = [name for name, voxels in expected.items() if voxels is None]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted, names = 0, sorted(good)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        name = names[number % len(names)]
        data = damage(good[name], rng)
        (folder / name).write_bytes(data)
        told.send((number, name))
        try:
            voxels = read(folder / name)
        except Exception as error:
            wrong.append(f"{name}, seed {seed}, number {number}: {type(error).__name__} {error}")
            continue
        accepted += voxels is not None
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > _MEMORY:
            wrong.append(f"{name}, seed {seed}, number {number}: memory")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = good[name].find(CHECKED[name]) if name in CHECKED else len(data)
        # What lies in front of the stream has no checksum.
        checked = voxels is not None and start < len(data) and data[:start] == good[name][:start]
        parts = [expected[name]]
        if checked and name.endswith(".zip"):  # one member may be refused, and their order in the archive may change
            first, second = np.split(expected[name], [VOXELS.size])
            parts += [first, second, np.concatenate([second, first])]
        if checked and not any(np.array_equal(voxels, part) for part in parts):
            wrong.append(f"{name}, seed {seed}, number {number}: other voxels")
    told.send((accepted, wrong))


def run(folder: pathlib.Path, count: int, seed: int) -> int:
    """`fuzz` in a process of its own, which is ended when a file takes too long; returns how many were accepted."""
    context = multiprocessing.get_context("spawn")
    hear, told = context.Pipe(duplex=False)
    process = context.Process(target=fuzz, args=(folder, count, seed, told))
    process.start()
    told.close()
    last: tuple = (-1, "the good files")
    try:
        while isinstance(last[1], str):
            assert hear.poll(60 if last[0] < 0 else _SECONDS), f"seed {seed}: {last} hung"
            assert process.is_alive() or hear.poll(), f"seed {seed}: {last} ended the process"
            last = hear.recv()
    except EOFError:
        raise AssertionError(f"seed {seed}: {last} ended the process") from None
    finally:
        process.kill()
        process.join()
    assert not last[1], last[1]
    return last[0]


def test_damaged_files_are_read_or_refused(tmp_path):
    """A sample for every day."""
    assert 0 < run(tmp_path, 500, 0) < 400


@pytest.mark.soak
def test_very_many_damaged_files_are_read_or_refused(tmp_path):
    """For a release."""
    assert 0 < run(tmp_path, 10_000, 1) < 8000


def test_the_checksum_of_gzip_is_that_of_its_content(tmp_path):
    """No flipped bit behind the header of a gzip stream passes, whatever format is in it."""
    write_nifti(tmp_path / "a.nii.gz", VOXELS)
    data = (tmp_path / "a.nii.gz").read_bytes()
    for at in np.random.default_rng(0).integers(20, len(data), 60).tolist():
        flipped = bytearray(data)
        flipped[at] ^= 4
        (tmp_path / "a.nii.gz").write_bytes(flipped)
        assert read(tmp_path / "a.nii.gz") is None
    assert gzip.decompress(data)
