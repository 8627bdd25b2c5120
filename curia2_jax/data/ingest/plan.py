"""The plan of an ingest: which series go to which shard. A function of the files and the options alone."""

import collections.abc
import dataclasses
import functools
import json
import pathlib
import re
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from curia2_jax import files
from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.records import CODECS
from curia2_jax.data.corpus.shards import MAX_RECORDS
from curia2_jax.data.ingest import benchmark, identity, labels
from curia2_jax.data.ingest.runners import Pool
from curia2_jax.data.ingest.slicing import PLANES, most_slices
from curia2_jax.data.readers import archive
from curia2_jax.errors import UserError

Progress = collections.abc.Callable[[str, int, int, int], None]  # stage, done, total, slices
_FILES_PER_TASK = 64  # files that a worker looks at between two reports


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


def make(work: pathlib.Path, options: Options, workers: int, progress: Progress) -> None:
    """Look at every file once and write the plan into `work`, its summary last.

    Raises:
      UserError: there is no file.
      MachineFault: the machine cannot read on.
    """
    roots = [pathlib.Path(path).resolve() for path in options.input]
    walked = [item for root in roots for item in archive.walk(root)]
    paths = [item for item in walked if isinstance(item, str)]
    if not walked:
        raise UserError(f"--input {', '.join(options.input)}: no file in it; write a folder of studies")
    maps = labels.pairs(options.labels, roots, paths)
    known = labels.all_files(maps)
    images = [file for file in dict.fromkeys(paths) if file not in known]
    found: list[archive.Found] = []
    refused = [item for item in walked if not isinstance(item, str)]
    for item in _look_at(images, options.planes, workers, progress):
        if isinstance(item, archive.Found):
            found.append(item)
        else:
            refused.append(item)
    scans = archive.scans(found, roots, options.every_frame)
    lost = labels.attach(maps, scans)
    refused += [labels.refused(pair.label, "label_unpaired", f"image {pair.image or 'not found'}") for pair in lost]
    refused += [
        scan.refused("too_large", f"{scan.slices} slices, a shard holds {MAX_RECORDS}")
        for scan in scans
        if scan.slices > MAX_RECORDS
    ]
    scans = [scan for scan in scans if scan.slices <= MAX_RECORDS]
    shards = _deal(scans)
    for number, mine in enumerate(shards):
        files.write_text(work / layout.part_plan(number), json.dumps([dataclasses.asdict(scan) for scan in mine]))
    plan = {
        "shards": len(shards),
        "roots": [str(r) for r in roots],
        "label_maps": len(known),
        "files": len(found) + sum(item.files for item in refused) + len(known),
        "bytes": sum(item.size for item in (*found, *refused)) + sum(labels.refused(one, "", "").size for one in known),
        "refused": sorted(refused),
    }
    files.write_text(work / layout.PLAN, json.dumps(plan))


def read_shard(work: pathlib.Path, number: int) -> list[archive.Scan]:
    """Scans of one shard."""
    entries = json.loads((work / layout.part_plan(number)).read_text())
    return [archive.Scan(**entry | {"labels": [tuple(pair) for pair in entry["labels"]]}) for entry in entries]


def _look_at(
    images: list[str], planes: tuple[str, ...], workers: int, progress: Progress
) -> collections.abc.Iterator[archive.Found | archive.Refused]:
    """What each file is, in any order. A file whose header takes the process down with it is refused."""
    chunks = [images[i : i + _FILES_PER_TASK] for i in range(0, len(images), _FILES_PER_TASK)]
    left, done = set(range(len(chunks))), 0
    try:
        with Pool(workers) as pool:
            for number, items in pool.each(_look, [(chunk, planes) for chunk in chunks]):
                left.remove(number)
                done += len(chunks[number])
                yield from items
                progress("looking at files", done, len(images), 0)
    except BrokenProcessPool:
        for file in (file for number in sorted(left) for file in chunks[number]):
            yield from _look_alone(file, planes)
            done += 1
            progress("looking at files", done, len(images), 0)


def _look_alone(file: str, planes: tuple[str, ...]) -> list[archive.Found | archive.Refused]:
    try:
        with Pool(1, own_process=True) as pool:
            return next(items for _, items in pool.each(_look, [([file], planes)]))
    except BrokenProcessPool:
        return [archive.Refused(file, "reader_failed", "looking at it ended the process, twice")]


def _look(paths: list[str], planes: tuple[str, ...]) -> list[archive.Found | archive.Refused]:
    count = functools.partial(most_slices, planes=planes)
    return [item for path in paths for item in archive.look(path, count)]


def _deal(scans: list[archive.Scan]) -> list[list[archive.Scan]]:
    """Whole series to shards, in order: about 64 shards for a small archive, full ones for a large one."""
    target = min(MAX_RECORDS, max(512, -(-sum(scan.slices for scan in scans) // 64)))
    out: list[list[archive.Scan]] = []
    room = 0
    for scan in scans:
        if not out or room < scan.slices:
            out.append([])
            room = max(target, scan.slices)
        out[-1].append(scan)
        room -= scan.slices
    return out
