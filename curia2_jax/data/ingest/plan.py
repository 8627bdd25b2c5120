"""The plan of an ingest: which series go to which shard. A function of the files and the options alone."""

import collections.abc
import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import re
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from curia2_jax import files
from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.planes import PLANES
from curia2_jax.data.corpus.records import CODECS
from curia2_jax.data.corpus.shards import MAX_RECORDS
from curia2_jax.data.ingest import benchmark, identity, labels, local
from curia2_jax.data.ingest.catalog import Catalog
from curia2_jax.data.ingest.runners import Pool
from curia2_jax.data.ingest.slicing import most_slices
from curia2_jax.data.readers import archive, zips
from curia2_jax.errors import UserError

Progress = collections.abc.Callable[[str, int, int, int], None]  # stage, done, total, slices
_FILES_PER_TASK = 64  # files that a worker looks at between two reports
_SCANS_AT_ONCE = 64  # that are put together between two writes


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that decides what a corpus holds. `input` are folders or files."""

    input: tuple[str, ...]
    planes: tuple[str, ...] = ("axial",)
    modality: str | None = None
    orientation: str | None = None
    every_frame: bool = False
    labels: str = labels.DEFAULT
    label_names: str | None = None
    patient_regex: str | None = None
    patients: str | None = None
    salt: str | None = None
    codec: str = "htj2k"

    def check(self) -> None:
        """That every value makes sense.

        Raises:
          UserError: one does not.
        """
        for path in self.input:
            if not pathlib.Path(path).exists():
                raise UserError(f"--input {path}: does not exist; write a folder or a file of studies")
        if not self.planes or not set(self.planes) <= set(PLANES):
            raise UserError(f"--planes: found {','.join(self.planes)}; write some of {','.join(PLANES)}")
        if self.modality not in (None, "CT", "MR"):
            raise UserError(f"--modality: found {self.modality}; write CT or MR")
        if self.orientation and not re.fullmatch("(?=.*[LR])(?=.*[AP])(?=.*[SI])[LRAPSI]{3}", self.orientation):
            raise UserError(f"--orientation: found {self.orientation}; write three letters such as RAS or LPS")
        if self.patient_regex is not None:
            try:
                re.compile(self.patient_regex)
            except re.error as error:
                raise UserError(f"--patient-regex: {error}; write a regular expression for paths") from None
        if self.codec not in CODECS:
            raise UserError(f"--codec: found {self.codec}; write {' or '.join(CODECS)}")
        if self.label_names:
            benchmark.read_names(self.label_names)
        if self.patients:
            identity.read_patients(self.patients)

    def to_json(self) -> dict:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Options":
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in fields.items()}
        return cls(**values)


def make(
    work: pathlib.Path, options: Options, workers: int, progress: Progress, seen: pathlib.Path | None = None
) -> None:
    """Look at every file once and write the plan into `work`, its summary last. Files whose fingerprints are in the
    catalog `seen` are left out.

    Memory: a page of files, the label maps, and one series at a time; the rest is in the catalog.

    Raises:
      UserError: there is no file.
      MachineFault: the machine cannot read on.
      OSError: the plan cannot be written.
    """
    roots = [pathlib.Path(path).resolve() for path in options.input]
    (work / layout.CATALOG).unlink(missing_ok=True)  # of a plan that was cut off
    with Catalog(work / layout.CATALOG) as catalog:
        if not _walk(catalog, roots, seen):
            raise UserError(f"--input {', '.join(options.input)}: no file in it; write a folder of studies")
        strangers = _strangers(options.patients, catalog) if options.patients and seen is None else []
        maps = labels.pairs(options.labels, roots, catalog.files)
        if seen is not None:  # a table names those of before as well
            maps = [pair for pair in maps if (zips.split(pair.label) or (pair.label,))[0] in catalog.files]
        known = labels.all_files(maps)
        images = (file for file in catalog.files if file not in known)
        for items in _look_at(images, options.planes, workers, len(catalog.files) - len(known), progress):
            catalog.add(items)
        maps += labels.pairs_in_archives(options.labels, roots, catalog.members)
        known = labels.all_files(maps)
        inside, bytes_inside = catalog.take_out(known)
        beside = [labels.refused(label, "", "") for label in known if label in catalog.files]
        _scans(catalog, maps, roots, options.every_frame)
        count = _deal(work, catalog)
        ((files_found, bytes_found),) = catalog.rows("SELECT COUNT(*), TOTAL(size) FROM found")
        ((files_refused, bytes_refused),) = catalog.rows(
            # The others are among what was found, or among the label maps.
            "SELECT TOTAL(files), TOTAL(size) FROM refused WHERE reason NOT IN (?, ?)",
            "too_large",
            "label_unpaired",
        )
    summary = {
        "shards": count,
        "roots": [str(r) for r in roots],
        "label_maps": len(known),
        "strangers": strangers,
        "files": int(files_found + files_refused) + inside + len(beside),
        "bytes": int(bytes_found + bytes_refused) + bytes_inside + sum(one.size for one in beside),
    }
    files.write_text(work / layout.PLAN, json.dumps(summary))


def _walk(catalog: Catalog, roots: list[pathlib.Path], seen: pathlib.Path | None) -> bool:
    """Notes every file that is not in the catalog `seen`; returns whether there is anything, or was before."""
    refused: list[archive.Refused] = []

    def names() -> collections.abc.Iterator[tuple[str]]:
        for root in roots:
            for item in archive.walk(root):
                name = item if isinstance(item, str) else item.name
                if known is not None and local.fingerprint(name) in known.files:
                    continue
                if isinstance(item, str):
                    yield (item,)
                else:
                    refused.append(item)

    with contextlib.ExitStack() as stack:
        known = stack.enter_context(Catalog(seen)) if seen is not None else None
        catalog.insert("files", names())
    catalog.add(refused)
    return known is not None or bool(refused) or any(True for _ in catalog.files)


def _strangers(patients: str, catalog: Catalog) -> list[str]:
    """Files that the table of patients names and the archive does not have."""
    named = identity.read_patients(patients)
    return [file for file in named if (zips.split(file) or (file,))[0] not in catalog.files]


def _scans(catalog: Catalog, maps: list[labels.Pair], roots: list[pathlib.Path], every_frame: bool) -> None:
    """Puts the files of each series together, with its label maps."""
    lost: list[labels.Pair] = []
    found = (scan for series in catalog.series() for scan in archive.scans(series, roots, every_frame))
    for page in _pages(labels.attach(maps, found, lost), _SCANS_AT_ONCE):
        fit = [scan for scan in page if scan.slices <= MAX_RECORDS]
        catalog.insert("scans", [(s.name, s.series, s.frame, s.slices, json.dumps(dataclasses.asdict(s))) for s in fit])
        catalog.add(
            scan.refused("too_large", f"{scan.slices} slices, a shard holds {MAX_RECORDS}")
            for scan in page
            if scan.slices > MAX_RECORDS
        )
    catalog.add(labels.refused(pair.label, "label_unpaired", f"image {pair.image or 'not found'}") for pair in lost)


def _pages(items: collections.abc.Iterable, size: int) -> collections.abc.Iterator[list]:
    """The items in lists of `size`."""
    rest = iter(items)
    return iter(lambda: list(itertools.islice(rest, size)), [])


def read_shard(work: pathlib.Path, number: int) -> list[archive.Scan]:
    """Scans of one shard."""
    entries = json.loads((work / layout.part_plan(number)).read_text())
    return [archive.Scan(**entry | {"labels": [tuple(pair) for pair in entry["labels"]]}) for entry in entries]


def _look_at(
    images: collections.abc.Iterable[str], planes: tuple[str, ...], workers: int, total: int, progress: Progress
) -> collections.abc.Iterator[list[archive.Found | archive.Refused]]:
    """What each file is, in any order. A file whose header takes the process down with it is refused."""
    chunks, done = _pages(images, _FILES_PER_TASK), 0
    under_way: dict[int, list[str]] = {}

    def tasks() -> collections.abc.Iterator[tuple]:
        for number, chunk in enumerate(chunks):
            under_way[number] = chunk
            yield chunk, planes

    broken = True
    while broken:
        broken = False
        try:
            with Pool(workers) as pool:
                for number, items in pool.each(_look, tasks()):
                    done += len(under_way.pop(number))
                    yield items
                    progress("looking at files", done, total, 0)
        except BrokenProcessPool:
            broken = True
            for file in itertools.chain.from_iterable(under_way.values()):
                yield _look_alone(file, planes)
                done += 1
                progress("looking at files", done, total, 0)
            under_way.clear()


def _look_alone(file: str, planes: tuple[str, ...]) -> list[archive.Found | archive.Refused]:
    try:
        with Pool(1) as pool:
            return next(items for _, items in pool.each(_look, [([file], planes)]))
    except BrokenProcessPool:
        return [archive.Refused(file, "reader_failed", "looking at it ended the process, twice")]


def _look(paths: list[str], planes: tuple[str, ...]) -> list[archive.Found | archive.Refused]:
    count = functools.partial(most_slices, planes=planes)
    return [item for path in paths for item in archive.look(path, count)]


def _deal(work: pathlib.Path, catalog: Catalog) -> int:
    """Writes which scans go to which shard, whole series in order: about 64 shards for a small archive, full ones for a
    large one. Returns the number of shards."""
    ((slices,),) = catalog.rows("SELECT TOTAL(slices) FROM scans")
    target = min(MAX_RECORDS, max(512, -(-int(slices) // 64)))
    shard: list[dict] = []
    count = room = 0
    for slices, scan in catalog.rows("SELECT slices, scan FROM scans ORDER BY name, series, frame"):
        if not shard or room < slices:
            count += _write_shard(work, count, shard)
            shard, room = [], max(target, slices)
        shard.append(json.loads(scan))
        room -= slices
    return count + _write_shard(work, count, shard)


def _write_shard(work: pathlib.Path, number: int, shard: list[dict]) -> int:
    """Writes the scans of a shard, if there are any; returns the number of shards that these are."""
    if shard:
        files.write_text(work / layout.part_plan(number), json.dumps(shard))
    return 1 if shard else 0
