"""CSV tables of users are read as they meant them, and those for people run nothing."""

import csv
import io

import pytest

from curia2_jax.data.ingest import tables
from curia2_jax.errors import UserError


@pytest.mark.parametrize(
    "data",
    [
        b"file,patient\na.nii,one\n",
        b"\xef\xbb\xbffile,patient\r\na.nii,one\r\n",  # a byte order mark, as Excel writes it
        b"File , PATIENT,more\na.nii , one,x\n\n",
        b"patient,file\none,a.nii\n,\n",
        b"file;patient\r\na.nii;one\r\n",  # as Excel writes it in most of Europe
        b'\xef\xbb\xbf"File";"Patient";"dose"\r\n"a.nii";"one";"1,5"\r\n',
        b"file;dose;patient\na.nii;1,5;one\n",
        b"file\tpatient\na.nii\tone\n",
        b"sep=;\r\nfile;patient\r\na.nii;one\r\n",
        b"sep=,\nfile,patient\na.nii,one\n",
        b"file,patient,more\na.nii,one\n",  # what is left out is not asked for
    ],
)
def test_rows_are_read(tmp_path, data):
    """Whatever the order, the case and the spaces."""
    (tmp_path / "t.csv").write_bytes(data)
    (row,) = tables.read(tmp_path / "t.csv", "--patients", ("file", "patient"))
    assert (row["file"], row["patient"]) == ("a.nii", "one")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found no rows"),
        (b"\xef\xbb\xbf", "found no rows"),
        (b"image;label\na;b\n", "no column 'file', found image;label"),
        (b"\xff\xfef\0i\0l\0e\0", "no column 'file'"),
        (b"file,patient\na.nii\n", "line 2 has no patient"),
        (b"file,patient\na.nii,one\nb.nii,\n", "line 3 has no patient"),
        (b"file,patient\na,b.nii,one\n", "line 2 has 3 cells, the first has 2; write cells with a comma"),
        (b"file;patient\na;b.nii;one\n", "line 2 has 3 cells, the first has 2; write cells with a semicolon"),
        (b"file;patient\na.nii\n", "line 2 has no patient"),
        (b"sep=;\n", "found no rows"),
        (b"sep=;\nfile,patient\na,b\n", "no column 'file'"),
        (b'file,patient\n"' + b"a" * 200_000, "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_line(tmp_path, data, message):
    """With the number of the line and what to write."""
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(UserError, match=message) as told:
        tables.read(tmp_path / "t.csv", "--patients", ("file", "patient"))
    assert "\n" not in str(told.value) and "; write" in str(told.value)


def test_commas_in_a_table_with_semicolons_are_of_the_cell(tmp_path):
    """A file name, a decimal number; and the other way around, in quotation marks."""
    for data in (b"file;patient;dose\na,b.nii;one;1,5\n", b'file,patient,dose\n"a,b.nii",one,"1,5"\n'):
        (tmp_path / "t.csv").write_bytes(data)
        (row,) = tables.read(tmp_path / "t.csv", "--x", ("file", "patient"))
        assert row == {"file": "a,b.nii", "patient": "one", "dose": "1,5"}


def test_a_table_that_is_a_folder(tmp_path):
    """Is told like one that is not there."""
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match="cannot be read"):
            tables.read(path, "--labels", ("image", "label"))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\tx", "\rx", '=HYPERLINK("http:x")'])
def test_no_cell_is_a_formula(tmp_path, text):
    """And reading gives back what was written."""
    tables.write(tmp_path / "t.csv", ("file", "patient"), [(text, "x")])
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        (_, (cell, _)) = csv.reader(file)
    assert cell == f"'{text}"
    if text.strip() == text:
        assert tables.read(tmp_path / "t.csv", "--x", ("file", "patient"))[0]["file"] == text


def test_any_bytes_of_a_name_are_shown(tmp_path):
    """As UTF-8 that every program reads; and read back from a user's table as the bytes that they are."""
    tables.write(tmp_path / "t.csv", ("a", "b"), [("M\udcfcller", "Mü\nller")])
    rows = list(csv.reader(io.StringIO((tmp_path / "t.csv").read_bytes().decode("utf-8"))))
    assert rows == [["a", "b"], ["M\\xfcller", "Mü\nller"]]
    (tmp_path / "u.csv").write_bytes(b"file,patient\nM\xfcller,1\n")
    assert tables.read(tmp_path / "u.csv", "--x", ("file", "patient"))[0]["file"] == "M\udcfcller"
