"""Which files of folders and zip archives make a series."""

import functools
import os
import pathlib
import stat
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk

from curia2_jax.data.ingest.slicing import most_slices
from curia2_jax.data.readers import archive, zips
from curia2_jax.data.readers.volume import Refusal
from tests.data.small_studies import body, dicom_slices, save_dicom, write_nifti


def scans_of(found: list[archive.Found], folder: pathlib.Path) -> list[archive.Scan]:
    """The scans of all series, by name."""
    series = {(item.format, item.group): [] for item in found}
    for item in found:
        series[item.format, item.group].append(item)
    scans = [scan for items in series.values() for scan in archive.scans(items, [folder], False)]
    return sorted(scans, key=lambda scan: scan.name)


def look(folder: pathlib.Path, planes=("axial",)):
    count = functools.partial(most_slices, planes=planes)
    items = []
    for item in archive.walk(folder):
        items += archive.look(item, count) if isinstance(item, str) else [item]
    found = [item for item in items if isinstance(item, archive.Found)]
    refused = {os.path.basename(item[0]): item[1] for item in items if not isinstance(item, archive.Found)}
    return scans_of(found, folder), refused


def test_series_are_put_together_wherever_their_files_lie(tmp_path):
    """By the name of the series alone."""
    slices = dicom_slices(body((6, 40, 44)))
    for n, ds in enumerate(slices):
        save_dicom(tmp_path / "deep" / f"folder{n % 3}", [ds])[0].rename(
            tmp_path / "deep" / f"folder{n % 3}" / f"IM{n}"
        )
    save_dicom(tmp_path / "other", dicom_slices(body((4, 40, 44), seed=2)))
    scans, refused = look(tmp_path)
    assert [len(scan.files) for scan in scans] == [6, 4] and not refused
    np.testing.assert_array_equal(archive.read(scans[0]).voxels, body((6, 40, 44)))


def test_series_without_a_uid_are_what_lies_in_one_folder(tmp_path):
    """Two folders are two series."""
    for folder in ("a", "b"):
        slices = dicom_slices(body((4, 40, 44)))
        for ds in slices:
            ds.SeriesInstanceUID = ""
        save_dicom(tmp_path / folder, slices)
    assert [(scan.name, len(scan.files)) for scan in look(tmp_path)[0]] == [("a", 4), ("b", 4)]


def test_slices_are_counted_from_headers(tmp_path):
    """In the planes asked for."""
    write_nifti(tmp_path / "thick.nii.gz", body((10, 40, 44)), spacing=(5, 1, 1))
    write_nifti(tmp_path / "thin.nii.gz", body((36, 40, 44)), spacing=(1, 1, 1))
    count = {scan.name: scan.slices for scan in look(tmp_path)[0]}
    assert count == {"thick.nii.gz": 10, "thin.nii.gz": 36}
    count = {scan.name: scan.slices for scan in look(tmp_path, ("axial", "coronal", "sagittal"))[0]}
    assert count == {"thick.nii.gz": 10, "thin.nii.gz": 36 + 40 + 44}


def test_pairs_are_one_study_and_other_files_are_listed(tmp_path):
    """The header stands for both files."""
    write_nifti(tmp_path / "pair.img", body((4, 40, 44)))
    (tmp_path / "readme.md").write_text("text")
    (tmp_path / "alone.img").write_bytes(b"x" * 500)
    scans, refused = look(tmp_path)
    assert [scan.name for scan in scans] == ["pair.hdr"]
    assert refused == {"readme.md": "other_file", "alone.img": "other_file"}
    assert [str(p) for p in archive.walk(tmp_path / "pair.img")] == [str(tmp_path / "pair.hdr")]


def make_zip(path: pathlib.Path, folder: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                zipped.write(file, file.relative_to(folder))


def test_archives_are_read_like_folders(tmp_path):
    """And leave nothing unpacked."""
    inner = tmp_path / "inner"
    write_nifti(inner / "a" / "scan.nii.gz", body((4, 40, 44)))
    write_nifti(inner / "a" / "pair.img", body((4, 40, 44), seed=1))
    save_dicom(inner / "b", dicom_slices(body((5, 40, 44), seed=2)))
    (inner / "notes.txt").write_text("x")
    (tmp_path / "outer").mkdir()
    make_zip(tmp_path / "outer" / "study.zip", inner)
    before = set(tmp_path.rglob("*"))
    scans, refused = look(tmp_path / "outer")
    voxels = {scan.name: archive.read(scan).voxels for scan in scans}
    assert sorted(voxels) == ["study.zip!a/pair.hdr", "study.zip!a/scan.nii.gz", "study.zip!b"]
    np.testing.assert_array_equal(voxels["study.zip!a/pair.hdr"], body((4, 40, 44), seed=1))
    np.testing.assert_array_equal(voxels["study.zip!b"], body((5, 40, 44), seed=2))
    assert refused == {"study.zip!notes.txt": "other_file"}
    assert set(tmp_path.rglob("*")) == before  # nothing is unpacked beside the archive


def test_series_without_a_uid_in_two_archives_are_two(tmp_path):
    """As in two folders; each is named after its archive."""
    (tmp_path / "outer").mkdir()
    for n, name in enumerate(("a", "b")):
        slices = dicom_slices(body((4, 40, 44), seed=n))
        for ds in slices:
            ds.SeriesInstanceUID = ""
        save_dicom(tmp_path / name, slices)
        make_zip(tmp_path / "outer" / f"{name}.zip", tmp_path / name)
    scans, refused = look(tmp_path / "outer")
    assert [(scan.name, len(scan.files)) for scan in scans] == [("a.zip", 4), ("b.zip", 4)] and not refused


@pytest.mark.parametrize(
    "name", ["../../evil.nii", "/tmp/evil.nii", "a/../../evil.nii", "..\\evil.nii", "C:\\evil.nii"]
)
def test_members_that_leave_their_folder_are_refused(tmp_path, name):
    """Absolute paths, parents, and those of Windows; the others are read."""
    write_nifti(tmp_path / "inner" / "scan.nii.gz", body((4, 40, 44)))
    (tmp_path / "outer").mkdir()
    make_zip(tmp_path / "outer" / "a.zip", tmp_path / "inner")
    with zipfile.ZipFile(tmp_path / "outer" / "a.zip", "a") as zipped:
        zipped.writestr(name, b"x")
    scans, refused = look(tmp_path / "outer")
    assert [scan.name for scan in scans] == ["a.zip!scan.nii.gz"]
    assert list(refused.values()) == ["unsafe_archive"]


def test_archives_with_links_bombs_or_damage_are_refused(tmp_path, monkeypatch):
    """Each for its own reason."""
    link = zipfile.ZipInfo("link.nii")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as zipped:
        zipped.writestr(link, "/etc/passwd")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a.nii", b"\0" * 2_000_000)
    (tmp_path / "text.zip").write_text("no archive")
    write_nifti(tmp_path / "inner" / "scan.nii.gz", body((4, 40, 44)))
    make_zip(tmp_path / "flipped.zip", tmp_path / "inner")
    data = bytearray((tmp_path / "flipped.zip").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.zip").write_bytes(data)
    make_zip(tmp_path / "inner.zip", tmp_path / "inner")
    (tmp_path / "nested").mkdir()
    (tmp_path / "inner.zip").rename(tmp_path / "nested" / "inner.zip")
    make_zip(tmp_path / "nested.zip", tmp_path / "nested")
    monkeypatch.setattr(zips, "_BOMB_BYTES", 1_000_000)
    found = {name: look(tmp_path / f"{name}.zip")[1] for name in ("link", "bomb", "text", "flipped", "nested")}
    assert found == {
        "link": {"link.zip!link.nii": "unsafe_archive"},
        "bomb": {"bomb.zip": "unsafe_archive"},
        "text": {"text.zip": "corrupt"},
        "flipped": {"flipped.zip!scan.nii.gz": "corrupt"},
        "nested": {"nested.zip!inner.zip": "other_file"},
    }


def test_relative_names_the_root_where_there_are_several(tmp_path):
    """Else the path below it is enough."""
    a, b = tmp_path / "a", tmp_path / "b"
    assert archive.relative(str(a / "x" / "y"), [a]) == "x/y"
    assert archive.relative(str(b / "x"), [a, b]) == "b/x"
    assert archive.relative(str(a / "f.nii"), [a / "f.nii"]) == "f.nii"
    assert archive.relative("/elsewhere/f", [a]) == "/elsewhere/f"


def test_links_to_folders_are_not_followed_and_missing_files_are_told(tmp_path):
    """A loop of links ends."""
    write_nifti(tmp_path / "a" / "scan.nii.gz", body((4, 40, 44)))
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.nii").symlink_to(tmp_path / "nothing")
    scans, refused = look(tmp_path)
    assert len(scans) == 1 and refused["gone.nii"] == "unreadable"
    with pytest.raises(Refusal, match="unreadable"):
        archive.read_any(tmp_path / "a" / "x.txt")


@pytest.mark.parametrize(
    ("header", "data"), [("a.mhd", "voxels.raw"), ("a.nhdr", "other name.raw"), ("b/a.mhd", "v.bin")]
)
def test_a_header_in_an_archive_may_name_any_file_in_its_folder(tmp_path, header, data):
    """As on a disk; not one elsewhere in the archive."""
    image = sitk.GetImageFromArray(body((4, 40, 44)))
    own = tmp_path / header.rpartition("/")[2]
    sitk.WriteImage(image, str(own))
    (stored,) = (path for path in tmp_path.iterdir() if path != own)
    text = own.read_bytes().replace(stored.name.encode(), data.encode())
    folder = header.rpartition("/")[0]
    for place in (folder, "elsewhere"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
            out.writestr(header, text)
            out.writestr(f"{place}/{data}" if place else data, stored.read_bytes())
        items = archive.look(str(tmp_path / "a.zip"), functools.partial(most_slices, planes=("axial",)))
        if place == "elsewhere":
            assert {item.reason for item in items if isinstance(item, archive.Refused)} == {"corrupt", "other_file"}
            continue
        (scan,) = scans_of([item for item in items if isinstance(item, archive.Found)], tmp_path)
        np.testing.assert_array_equal(archive.read(scan).raw, body((4, 40, 44)))
