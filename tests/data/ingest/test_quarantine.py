"""What was lost to each reason is counted, shown and named to nobody."""

import base64
import io
import os
import re
import time

import numpy as np
import pytest
from PIL import Image

from curia2_jax.data.ingest import quarantine, shard_maker
from curia2_jax.data.readers.archive import Refused
from tests.data.ingest.running import run
from tests.data.small_studies import body, dicom_slices, save_dicom, write_archive, write_nifti


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An archive with a series that has a gap, a label map that nobody names, and what write_archive makes."""
    folder = tmp_path_factory.mktemp("quarantine")
    write_archive(folder / "in", series=2)
    slices = dicom_slices(body((9, 44, 48), seed=77))
    save_dicom(folder / "in" / "Meier^Anna", slices[:3] + slices[5:])
    mask = np.zeros((9, 40, 48), np.uint8)
    mask[:, 10:30, 10:30] = 1
    write_nifti(folder / "in" / "Schmidt_mask.nii.gz", mask)
    secret = dicom_slices(body((1, 44, 48), seed=78))
    secret[0].SOPClassUID = secret[0].file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    secret[0].Modality = "SC"
    save_dicom(folder / "in" / "Zeiss", secret)
    return folder / "in", folder / "out", run(folder / "out", folder / "in")


def test_files_and_bytes_are_those_of_the_archive(made):
    """Against the sizes that the file system gives; a series counts with all its files."""
    source, _, summary = made
    size = {str(path.relative_to(source)): path.stat().st_size for path in source.rglob("*") if path.is_file()}
    gap = [n for name, n in size.items() if name.startswith("Meier")]
    assert (summary.files, summary.bytes) == (len(size), sum(size.values()))
    assert summary.lost == {
        "corrupt": {"files": 1, "bytes": size["cut.nii.gz"]},
        "derived_object": {"files": 1, "bytes": size["Zeiss/000.dcm"]},
        "duplicate": {"files": 1, "bytes": size["again/copy.nii.gz"]},
        "irregular_geometry": {"files": 7, "bytes": sum(gap)},
        "label_map": {"files": 1, "bytes": size["Schmidt_mask.nii.gz"]},
        "other_file": {"files": 1, "bytes": size["notes.txt"]},
    }
    assert set(summary.refused.values()) == {1}


def test_the_page_shows_cases_and_no_names(made):
    """A picture where pixels can be read, and none of what has names burned in."""
    _, out, summary = made
    page = (out / "local" / "quarantine.html").read_text(encoding="utf-8")
    for word in ("Meier", "Schmidt", "copy", "notes", "Zeiss", "dicom/", "/in/"):
        assert word not in page
    sections = dict(re.findall(r'<h2 id="(\w+)">(.*?)(?=<h2|</body>)', page, re.DOTALL))
    assert set(sections) == set(summary.lost)
    pictures = {name for name, section in sections.items() if "<img" in section}
    assert pictures == {"corrupt", "irregular_geometry", "label_map", "duplicate"}
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', sections["label_map"])
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert picture.shape == (40, 48) and set(np.unique(picture)) == {0, 255}  # small ones are not enlarged
    lines = (out / "local" / "quarantine.csv").read_text().splitlines()
    for name, section in sections.items():
        for line in map(int, re.findall(r"line (\d+)", section)):
            assert f",{name}," in lines[line - 1]


def test_a_page_of_many_cases_is_short(tmp_path):
    """Four of each reason, counts of all."""
    refused = [Refused(f"{n:04}", "corrupt", "cut", 2, 10) for n in range(1000)]
    lost = quarantine.count(refused)
    assert lost == {"corrupt": {"listed": 1000, "files": 2000, "bytes": 10_000}}
    quarantine.write_page(tmp_path / "q.html", refused, lost, 4000, 40_000)
    page = (tmp_path / "q.html").read_text()
    assert page.count("<figure>") == 4 and "25.00%" in page and "2,000" in page


def test_the_slowest_are_named(made, tmp_path):
    """In the summary, and while they are read."""
    _, _, summary = made
    seconds = [second for second, _ in summary.slowest]
    assert len(seconds) == shard_maker.SLOWEST and seconds == sorted(seconds, reverse=True)
    assert shard_maker.longest(tmp_path) == ("", 0.0)
    (tmp_path / "work").mkdir()
    for name, ago in (("now-00001", 5), ("now-00002", 50)):
        (tmp_path / "work" / name).write_bytes(b"M\xfcller" + name.encode())
        os.utime(tmp_path / "work" / name, (time.time() - ago,) * 2)
    name, longest = shard_maker.longest(tmp_path)
    assert name == "M\udcfcllernow-00002" and 49 < longest < 60
