"""Entries of a zip's directory that Python's zipfile gives up the whole archive over."""

import struct
import zipfile

import pytest

from curia2_jax.data.readers import zips
from curia2_jax.data.readers.volume import Refusal

EXTRA = struct.pack("<HH4s", 0xCAFE, 4, b"1234")
# name: (bytes of the directory that change, what they become, whether the member can be read all the same)
ODD = {
    "a name that is not UTF-8": (b"\xc3\xbc.txt", b"\xc3!.txt", True),
    "a version from the future": (b"PK\x01\x02\x14\x03\x14\x00", b"PK\x01\x02\x14\x03\xff\x00", True),
    "an extra field that ends outside": (EXTRA, struct.pack("<HH4s", 0xCAFE, 400, b"1234"), False),
    "a size left to a field that is too short": (EXTRA, struct.pack("<HH4s", 1, 4, b"1234"), False),
    "an extra field cut off": (EXTRA, struct.pack("<HH4s", 0, 0, b"\x01\x00\x09\x00"), False),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_entry_does_not_lose_the_others(tmp_path, name):
    """It is read, or refused by itself; zipfile alone loses both."""
    path, (old, new, is_read) = tmp_path / "a.zip", ODD[name]
    with zipfile.ZipFile(path, "w") as out:
        odd = zipfile.ZipInfo("ü.txt")
        odd.extra, odd.create_system = EXTRA, 3
        out.writestr(odd, b"odd")
        out.writestr("good.txt", b"good")
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    at = data.index(old, start)
    data = data[:at] + new + data[at + len(old) :]
    if "not UTF-8" in name:  # in both headers, as a program writes it
        data = data.replace(old, new)
    if "left to" in name:
        data = data[: start + 24] + b"\xff" * 4 + data[start + 28 :]
    path.write_bytes(data)
    with pytest.raises((UnicodeDecodeError, NotImplementedError, zipfile.BadZipFile)):
        zipfile.ZipFile(path)
    with zips.Archive(str(path)) as archive:
        names = list(archive.members)
        assert len(names) == 2 and names[1] == "good.txt"
        assert archive.unpack("good.txt", tmp_path / "good")[0].read_bytes() == b"good"
        found, fault = archive.unpack(names[0], tmp_path / "odd")
        assert (fault is None) == is_read and found.read_bytes() == (b"odd" if is_read else b"")
        assert fault is None or fault.reason == "corrupt"


def test_members_may_begin_like_a_directory(tmp_path):
    """Nothing but the directory is changed."""
    content = b"PK\x01\x02" + bytes([0xFF] * 200)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr("a", content)
    with zips.Archive(str(tmp_path / "a.zip")) as archive:
        path, fault = archive.unpack("a", tmp_path / "out")
        assert fault is None and path.read_bytes() == content


def test_what_is_no_archive_is_refused(tmp_path):
    """As before."""
    for n, data in enumerate((b"", b"PK\x01\x02", b"PK\x01\x02" + bytes(100), b"PK\x05\x06" + bytes(18) + b"rest")):
        (tmp_path / f"{n}.zip").write_bytes(data)
        if n < 3:
            with pytest.raises(Refusal, match="corrupt: zip"):
                zips.Archive(str(tmp_path / f"{n}.zip"))
