"""What of a corpus must not leave the site: what was refused and corrected, and where each series is from."""

import collections
import collections.abc
import hashlib
import itertools
import json
import pathlib

import pyarrow.parquet as pq

from curia2_jax import files
from curia2_jax.data.corpus import layout
from curia2_jax.data.ingest import parts, quarantine, tables
from curia2_jax.data.ingest.catalog import Catalog
from curia2_jax.data.readers import archive
from curia2_jax.data.readers.archive import Refused

Reports = collections.abc.Callable[[], collections.abc.Iterator[dict]]
Lost = dict[str, dict[str, int]]  # as quarantine.count has it


def withdrawn(folder: pathlib.Path) -> frozenset[str]:
    """Fingerprints of what was taken out of the corpus in `folder` because a patient withdrew."""
    path = folder / layout.LOCAL / layout.FORGOTTEN
    return frozenset(json.loads(path.read_text())) if path.exists() else frozenset()


def whole(report: dict) -> collections.abc.Iterator[parts.Series]:
    """The series of a part that did not break off."""
    return (parts.Series(**series) for series in report["series"] if not series["broken"])


def write(
    target: pathlib.Path,
    work: pathlib.Path,
    reports: Reports,
    drop: dict[str, tuple[str, str]],
    earlier: pathlib.Path | None = None,
) -> tuple[Lost, collections.Counter]:
    """Write the tables into `target`, one in memory at a time, and those that are long from the disk; returns what was
    lost to each reason, and how often each correction occurs.

    Args:
      target: folder to write to.
      work: of the ingest.
      reports: of its parts.
      drop: key of each series that is not kept -> reason and detail.
      earlier: the local folder of the corpus that is added to, whose rows come along.
    """
    made = json.loads((work / layout.PLAN).read_text())
    (work / layout.SORTED).unlink(missing_ok=True)
    with Catalog(work / layout.SORTED) as rows, Catalog(work / layout.CATALOG) as found:
        rows.insert("refused", _refused(made, found, reports, drop))
        if earlier is not None:
            old = tables.read_own(earlier / layout.QUARANTINE)
            rows.insert("refused", (Refused(row["file"], row["reason"], row["detail"], 0, 0) for row in old))
        tables.write(target / layout.QUARANTINE, ("file", "reason", "detail"), (one[:3] for one in rows.refused()))
        lost = quarantine.count(rows.refused())
        total, size = made["files"], made["bytes"]
        if earlier is not None:
            before = json.loads((earlier / layout.SUMMARY).read_text())
            here = {reason: of for reason, of in before.get("lost", {}).items() if reason in lost}  # rows may have gone
            for reason, of in here.items():
                for name, count in of.items():
                    lost[reason][name] += count
            total, size = total + before.get("files", 0), size + before.get("bytes", 0)
        quarantine.write_page(target / layout.QUARANTINE_PAGE, rows.refused(), lost, total, size)
        with files.whole_file(target / layout.SEEN) as partial, Catalog(partial) as seen:
            if earlier is not None and (earlier / layout.SEEN).exists():
                with Catalog(earlier / layout.SEEN) as known:
                    seen.insert("files", ((name,) for name in known.files))
            seen.insert("files", ((fingerprint(name),) for name in found.files))
            seen.insert("files", ((fingerprint(one.name),) for one in found.refused()))  # folders among them
    _write_corrections(target, reports, earlier)
    _write_series(target, reports, drop, earlier)
    return lost, collections.Counter(what for report in reports() for _, what, _ in report["corrected"])


def fingerprint(name: str) -> str:
    """What is kept of the name of a file that was looked at: enough to know it again, too little to tell it."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _refused(
    made: dict, found: Catalog, reports: Reports, drop: dict[str, tuple[str, str]]
) -> collections.abc.Iterator[Refused]:
    roots = [pathlib.Path(root) for root in made["roots"]]
    listed = (Refused(*row) for report in itertools.chain([made], reports()) for row in report.get("refused", ()))
    for one in itertools.chain(found.refused(), listed):
        yield one._replace(name=archive.relative(one.name, roots))
    for report in reports():
        yield from (one.refused(*drop[one.key]) for one in whole(report) if one.key in drop)


def _write_corrections(target: pathlib.Path, reports: Reports, earlier: pathlib.Path | None) -> None:
    head = ("file", "what", "detail")
    rows = [tuple(row) for report in reports() for row in report["corrected"]]
    if earlier is not None:
        rows += [tuple(row[name] for name in head) for row in tables.read_own(earlier / layout.CORRECTIONS)]
    tables.write(target / layout.CORRECTIONS, head, sorted(rows))


def _write_series(
    target: pathlib.Path, reports: Reports, drop: dict[str, tuple[str, str]], earlier: pathlib.Path | None
) -> None:
    rows = [(one.key, one.source) for report in reports() for one in whole(report) if one.key not in drop]
    if earlier is not None:
        rows += [(row["series"], row["file"]) for row in tables.read_own(earlier / layout.SOURCES)]
    tables.write(target / layout.SOURCES, ("series", "file"), sorted(rows))
    del rows
    with (
        files.whole_file(target / layout.SERIES) as partial,
        pq.ParquetWriter(partial, parts.SERIES, compression="zstd") as known,
    ):
        if earlier is not None:
            known.write_table(pq.read_table(earlier / layout.SERIES))
        for report in reports():
            known.write_table(parts.series_table(one for one in whole(report) if one.key not in drop))
