"""A plan remembers on the disk: memory does not grow with the archive."""

import errno
import json
import pathlib
import subprocess
import sys

import pytest

from curia2_jax.data.ingest import catalog as catalogs
from curia2_jax.data.ingest.catalog import Catalog
from curia2_jax.data.readers.archive import Found, Refused

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_rows_come_back_in_order_as_they_were(tmp_path, monkeypatch):
    """Names of any bytes, series over pages, and every name once."""
    monkeypatch.setattr(catalogs, "_PAGE", 3)
    names = [f"{n:02}\udcfc" for n in range(10)]
    found = [Found(f"f{n}", "dicom", f"s{n % 3}", 1, 2, size=n) for n in range(10)]
    with Catalog(tmp_path / "c.sqlite") as catalog:
        catalog.insert("files", [(name,) for name in reversed(names + names)])
        assert list(catalog.files) == names and len(catalog.files) == 10
        assert names[3] in catalog.files and "03" not in catalog.files
        catalog.add([*found, Refused("b\udcff", "corrupt", "x"), Refused("a", "corrupt", "ü", 2, 3, "e")])
        assert list(catalog.series()) == [[f for f in found if f.group == s] for s in ("s0", "s1", "s2")]
        assert list(catalog.refused()) == [Refused("a", "corrupt", "ü", 2, 3, "e"), Refused("b\udcff", "corrupt", "x")]


def test_files_can_be_noted_while_they_are_gone_through(tmp_path, monkeypatch):
    """As a plan does."""
    monkeypatch.setattr(catalogs, "_PAGE", 3)
    with Catalog(tmp_path / "c.sqlite") as catalog:
        catalog.insert("files", [(f"{n:02}",) for n in range(10)])
        for name in catalog.files:
            catalog.add([Found(name, "nifti", name, 1, 1)])
        for series in catalog.series():
            catalog.insert("scans", [(series[0].file, "s", 0, 1, "{}")])
        assert [name for (name,) in catalog.rows("SELECT name FROM scans")] == [f"{n:02}" for n in range(10)]


def test_a_full_disk_is_an_error_of_the_disk(tmp_path):
    """And a folder that is none as well."""
    with pytest.raises(OSError) as told:
        Catalog(tmp_path / "none" / "c.sqlite")
    assert told.value.errno == errno.EIO and told.value.filename
    with Catalog(tmp_path / "c.sqlite") as catalog:
        catalog._db.execute("PRAGMA max_page_count=20")
        with pytest.raises(OSError) as told:
            catalog.insert("files", [(f"{n:0200}",) for n in range(10_000)])
    assert told.value.errno == errno.ENOSPC


PLAN = """
import os, pathlib, sys
from curia2_jax.data.ingest import plan
from curia2_jax.data.readers import archive
work, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
def walk(root):
    for n in range(count):
        yield f"{root}/patient{n // 500:07}/study/series/IM{n:09}.dcm"
def look(file, count):
    series = "1.2.826.0.1.3680043.8.498." + str(int(file[-13:-4]) // 100)
    return [archive.Found(file, "dicom", series, 1, 1, size=500_000)]
archive.walk, archive.look = walk, look
def peak():  # of this program; what getrusage tells is that of the one which started it as well
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
before = peak()
plan.make(work, plan.Options((str(work),)), 0, lambda *_: None)
print(peak() - before)
"""


@pytest.mark.parametrize(("few", "many"), [(4_000, 40_000), pytest.param(20_000, 200_000, marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_archive(tmp_path, few, many):
    """Ten times the single slices take 25 MiB more at most; 200,000 in lists took 100 more."""
    grown = {}
    for count in (few, many):
        work = tmp_path / str(count)
        work.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", PLAN, work, str(count)], capture_output=True, text=True, cwd=ROOT, check=True
        )
        grown[count] = float(done.stdout)
        plan = json.loads((work / "plan.json").read_text())
        assert (plan["files"], plan["bytes"]) == (count, 500_000 * count)
        scans = [scan for path in sorted(work.glob("plan-*")) for scan in json.loads(path.read_text())]
        assert [len(scan["files"]) for scan in scans] == [100] * (count // 100)
    assert grown[few] > 0 and grown[many] - grown[few] < 25, grown
