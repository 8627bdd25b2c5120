"""Makers of what archives hold beside scans, and what an ingest must say of it. Each is made beside one good scan."""

import os
import pathlib
import socket
import stat
import zipfile
from collections.abc import Callable

import pydicom
import SimpleITK as sitk

from tests.data.small_studies import body, dicom_slices, save_dicom, write_nifti

SCAN = body((4, 40, 44))


def good(path: pathlib.Path, seed: int = 7) -> None:
    """A scan that is accepted; another one for each seed."""
    write_nifti(path, body((4, 40, 44), seed=seed))


def in_zip(path: pathlib.Path, members: dict[str, bytes], links: tuple[str, ...] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if name in links else 0
            archive.writestr(info, data)


def scan_bytes(folder: pathlib.Path, seed: int) -> bytes:
    path = folder.parent / f"made{seed}.nii.gz"
    good(path, seed)
    data = path.read_bytes()
    path.unlink()
    return data


def named(name: bytes, seed: int | None = None) -> Callable[[pathlib.Path], None]:
    """A scan, or with no seed an empty text, with any bytes as its name."""

    def make(folder: pathlib.Path) -> None:
        path = pathlib.Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        if seed is None:
            path.write_text("")
        else:
            good(path.parent / "plain.nii.gz", seed)
            (path.parent / "plain.nii.gz").rename(path)

    return make


def meta_image(folder: pathlib.Path) -> None:
    """A NRRD and a MetaImage file."""
    for name, seed in (("a.nrrd", 4), ("a.mha", 5)):
        image = sitk.GetImageFromArray(body((4, 40, 44), seed=seed))
        sitk.WriteImage(image, str(folder / name), useCompression=False)
        os.rename(folder / name, os.fsencode(folder) + b"/M\xfc" + name.encode())


def pipe(name: str) -> Callable[[pathlib.Path], None]:
    return lambda folder: os.mkfifo(folder / name)


def a_socket(folder: pathlib.Path) -> None:
    here = os.getcwd()
    os.chdir(folder)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("s.nii")
    finally:
        os.chdir(here)


def pair_with_a_pipe(folder: pathlib.Path) -> None:
    write_nifti(folder / "pair.img", SCAN)
    (folder / "pair.img").unlink()
    os.mkfifo(folder / "pair.img")


def labels_in_a_pipe(folder: pathlib.Path) -> None:
    os.mkfifo(folder / "good_seg.nii.gz")


def deep(folder: pathlib.Path) -> None:
    """A path of more than 4096 bytes, which no call takes whole."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        for _ in range(22):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        pathlib.Path("deep.nii.gz").write_bytes(b"x")
    finally:
        os.chdir(here)


def many_levels(folder: pathlib.Path) -> None:
    """More folders in each other than Python calls functions."""
    scan, here = scan_bytes(folder, 3), os.getcwd()
    os.chdir(folder)
    try:
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        pathlib.Path("deep.nii.gz").write_bytes(scan)
    finally:
        os.chdir(here)


def link_to_a_folder(folder: pathlib.Path) -> None:
    (folder / "loop").symlink_to(folder)


def odd_members(folder: pathlib.Path) -> None:
    """A member that is a file and a folder, a link, a name that leads out, and one that no disk takes."""
    scan = scan_bytes(folder, 3)
    members = {"x": b"a", "x/y.nii.gz": scan, "link": b"/etc/passwd", "../out.nii": scan, "n" * 400 + ".txt": b"a"}
    in_zip(folder / "a.zip", members, links=("link",))


def damaged_member(folder: pathlib.Path) -> None:
    """Every byte of the one member is wrong, the other is whole."""
    in_zip(folder / "a.zip", {"bad.nii.gz": scan_bytes(folder, 3), "good.nii.gz": scan_bytes(folder, 4)})
    data = bytearray((folder / "a.zip").read_bytes())
    for at in range(60, 400):
        data[at] ^= 0xFF
    (folder / "a.zip").write_bytes(data)


def name_in_another_charset(folder: pathlib.Path) -> None:
    """A member whose name says that it is UTF-8, and is Latin-1, before another one."""
    in_zip(folder / "a.zip", {"Mül.nii.gz": scan_bytes(folder, 3), "good.nii.gz": scan_bytes(folder, 4)})
    data = (folder / "a.zip").read_bytes().replace("Mül".encode(), b"M\xfcll")
    (folder / "a.zip").write_bytes(data)


def locked_member(folder: pathlib.Path) -> None:
    """The flag of a password in both headers of the only member."""
    in_zip(folder / "a.zip", {"scan.nii.gz": scan_bytes(folder, 3)})
    data = bytearray((folder / "a.zip").read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.rindex(mark) + at] |= 1
    (folder / "a.zip").write_bytes(data)


def damaged_slice(folder: pathlib.Path) -> None:
    """A slice of a series whose checksum is wrong, and a whole scan, in one archive."""
    files = save_dicom(folder.parent / "series", dicom_slices(body((4, 40, 44), seed=3)), shuffle=False)
    members = {f"ct/{path.name}": path.read_bytes() for path in files} | {"mr.nii.gz": scan_bytes(folder, 4)}
    in_zip(folder / "a.zip", members)
    data = bytearray((folder / "a.zip").read_bytes())
    for mark, at in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        data[data.index(mark) + at] ^= 1
    (folder / "a.zip").write_bytes(data)


def split_series(folder: pathlib.Path) -> None:
    """A series of which a half lies in an archive."""
    files = save_dicom(folder / "series", dicom_slices(body((4, 40, 44), seed=3)))
    in_zip(folder / "rest.zip", {path.name: path.read_bytes() for path in files[:2]})
    for path in files[:2]:
        path.unlink()


def huge_header(folder: pathlib.Path) -> None:
    """A DICOM file that says it has more pixels than any machine."""
    (first, *_) = save_dicom(folder, dicom_slices(SCAN[:1]))
    ds = pydicom.dcmread(first)
    ds.NumberOfFrames = "2000000000"
    ds.save_as(first)


# name: (maker, {file: reason} of what is refused, series accepted beside the good one)
ODD_INPUTS: dict[str, tuple[Callable[[pathlib.Path], None], dict[str, str], int]] = {
    "Latin-1 name of a text": (named(b"J\xfcrgen.txt"), {r"J\xfcrgen.txt": "other_file"}, 0),
    "Latin-1 name of a scan": (named(b"M\xfcller.nii.gz", 3), {}, 1),
    "Latin-1 name of a folder": (named(b"M\xfcller/scan.nii.gz", 3), {}, 1),
    "Latin-1 names of what SimpleITK reads": (meta_image, {}, 2),
    "name with a line break": (named(b"a\nb.txt"), {"a\nb.txt": "other_file"}, 0),
    "name with an umlaut": (named("Jürgen.txt".encode()), {"Jürgen.txt": "other_file"}, 0),
    "name that is a formula": (named(b"=1+1.txt"), {"'=1+1.txt": "other_file"}, 0),
    "exclamation mark in a folder": (named(b"Export! 2021/a.nii.gz", 3), {}, 1),
    "exclamation mark after .zip": (named(b"a.zip!b/a.nii.gz", 3), {}, 1),
    "pipe": (pipe("x.nii.gz"), {"x.nii.gz": "other_file"}, 0),
    "pipe without a suffix": (pipe("x"), {"x": "other_file"}, 0),
    "pipe named .zip": (pipe("x.zip"), {"x.zip": "other_file"}, 0),
    "pipe named .dcm": (pipe("x.dcm"), {"x.dcm": "other_file"}, 0),
    "pipe as voxels": (pair_with_a_pipe, {"pair.hdr": "other_file", "pair.img": "other_file"}, 0),
    "pipe as a label map": (labels_in_a_pipe, {"good_seg.nii.gz": "other_file"}, 0),
    "socket": (a_socket, {"s.nii": "other_file"}, 0),
    "path over the limit": (deep, {"d" * 200: "unreadable"}, 0),
    "a thousand folders deep": (many_levels, {}, 1),
    "link to a folder": (link_to_a_folder, {"loop": "other_file"}, 0),
    "odd members of a zip": (
        odd_members,
        {"a.zip!x": "other_file", "a.zip!link": "unsafe_archive", "a.zip!../out.nii": "unsafe_archive"}
        | {f"a.zip!{'n' * 400}.txt": "other_file"},
        1,
    ),
    "damaged member of a zip": (damaged_member, {"a.zip!bad.nii.gz": "corrupt"}, 1),
    "member of a zip with a name in Latin-1": (name_in_another_charset, {}, 2),
    "damaged slice in a zip": (damaged_slice, {"a.zip!ct": "corrupt"}, 1),
    "zip with a password": (locked_member, {"a.zip!scan.nii.gz": "corrupt"}, 0),
    "series half in a zip": (split_series, {}, 1),
    "header of a giant": (huge_header, {"000.dcm": "too_large"}, 0),
}
