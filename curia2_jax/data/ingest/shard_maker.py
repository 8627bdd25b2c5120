"""One entry of the plan -> one finished part. The unit of work that every runner runs and may run again."""

import contextlib
import json
import pathlib
import time

import numpy as np

from curia2_jax.data.corpus import layout
from curia2_jax.data.ingest import benchmark, flatness, intensity, labels, local, parts, plan, slicing
from curia2_jax.data.ingest.foreground import MIN_FOREGROUND
from curia2_jax.data.ingest.identity import Keys, Note, fingerprint
from curia2_jax.data.readers import archive
from curia2_jax.data.readers.faults import machine_fault
from curia2_jax.data.readers.volume import Refusal, Volume

SLOWEST = 5  # scans that a report names


def make_shard(output: str, number: int) -> int:
    """Make part `number` of the corpus in `output` unless it is finished; returns the slices in it.

    What is wrong with a scan is reported in the part.

    Raises:
      OSError: the disk or the temporary folder is full or cannot be written.
    """
    folder = pathlib.Path(output)
    work = folder / layout.WORK
    if parts.is_finished(work, number):
        return sum(series["records"] for series in parts.report(work, number)["series"])
    options = plan.Options.from_json(json.loads((work / layout.OPTIONS).read_text()))
    salt = pathlib.Path(options.salt) if options.salt else folder / layout.LOCAL / layout.SALT
    keys = Keys(salt, options.patient_regex, options.patients)
    fatal = set(json.loads((work / layout.FATAL).read_text())) if (work / layout.FATAL).exists() else set()
    now = work / layout.part_now(number)
    try:
        with parts.Part(work, number, options.codec) as part:
            maker = _Maker(work, options, keys, part, local.withdrawn(folder))
            for scan in plan.read_shard(work, number):
                # Should reading this scan end the process, ingest finds its name here and leaves it out.
                begun = time.time()
                now.write_text(scan.series, encoding="utf-8", errors="surrogateescape")
                try:
                    if scan.series in fatal:
                        raise Refusal("reader_failed", "reading it ended the process, twice")
                    for one in archive.each_frame(scan) if options.every_frame else (scan,):
                        maker.add(one)
                except parts.CannotWrite:
                    raise
                except Exception as error:  # a fault of ours or of a library must not stop an archive of millions
                    refusal = refusal_of(error)
                    maker.report["refused"].append(scan.refused(refusal.reason, refusal.detail))
                maker.report["slowest"] = sorted([*maker.report["slowest"], (time.time() - begun, scan.name)])[
                    -SLOWEST:
                ]
            return part.finish(maker.report | {"seconds": maker.timer.seconds})
    finally:
        now.unlink(missing_ok=True)


class _Maker:
    """Adds scans to a part."""

    def __init__(
        self, work: pathlib.Path, options: plan.Options, keys: Keys, part: parts.Part, withdrawn: frozenset[str]
    ):
        self._withdrawn = withdrawn
        self._work, self._options, self._keys, self._part = work, options, keys, part
        self.timer = slicing.Timer()
        self.report: dict = {"refused": [], "corrected": [], "samples": [], "slowest": []}

    def add(self, scan: archive.Scan) -> None:
        """Add the slices of one scan.

        Raises:
          Refusal: it gives none.
          CannotWrite: the corpus cannot be written.
        """
        with self.timer("read"):
            volume = archive.read(scan, self._options.orientation)
            if not scan.labels and flatness.is_label_map(volume.raw):
                raise Refusal("label_map", "flat regions of whole numbers; name it with --labels if it is one")
            volume = intensity.settle(volume, self._options.modality)
        patient, study, assumed = self._keys.patient(scan, volume)
        key = self._keys.key("patient", patient)
        if fingerprint(key) in self._withdrawn:
            raise Refusal("withdrawn", "see --forget")
        with self.timer("labels"):
            maps = self._label_maps(scan, volume)
        series = self._keys.key("series", scan.series)
        ids = {
            "study": self._keys.key("study", volume.study or study or patient),
            "series": series,
            "patient": key,
            "label": layout.label_maps(series) if maps else "",
        }
        notes, plane = self._add_slices(volume, ids, scan)
        with self.timer("labels"):
            if maps:
                try:
                    self.report["samples"] += benchmark.set_aside(self._work, volume, maps, ids, plane, patient)
                except OSError as error:
                    raise parts.CannotWrite(error.errno, error.strerror, error.filename) from error
        self.report["corrected"] += [(scan.name, what, detail) for what, detail in (*volume.notes, *assumed, *notes)]

    def _add_slices(self, volume: Volume, ids: dict[str, str], scan: archive.Scan) -> tuple[list[Note], str]:
        """Adds the slices of a volume; returns what was corrected in them, and the plane of the first."""
        notes: list[Note] = []
        plane, is_whole = "", False
        self._part.begin_series()
        try:
            for pixels, row in slicing.slices(volume, self._options.planes, notes, self.timer):
                plane = plane or row["plane"]
                with self.timer("encode and write"):
                    self._part.add(pixels, row | ids)
            is_whole = True
        finally:
            if self._part.added:
                origin = {"files": len(scan.files), "size": scan.size, "example": scan.files[len(scan.files) // 2]}
                self._part.end_series(ids["series"], bool(ids["label"]), scan.name, broken=not is_whole, **origin)
        if not plane:
            raise Refusal("no_foreground", f"less than {MIN_FOREGROUND:.0%} of every slice")
        return notes, plane

    def _label_maps(self, scan: archive.Scan, volume: Volume) -> list[tuple[str, np.ndarray]]:
        """(label set, label map (S, P, L) uint16) of those label maps that fit the scan; the others are reported."""
        maps = []
        for file, label_set in scan.labels:
            try:
                maps.append((label_set, labels.read(file, volume)))
            except Exception as error:  # a label map that cannot be read leaves its image as it is
                refusal = refusal_of(error)
                self.report["refused"].append(labels.refused(file, refusal.reason, refusal.detail))
        return maps


def longest(output: pathlib.Path) -> tuple[str, float]:
    """The series that has been read for the longest time just now, and the seconds; ("", 0.0) if there is none."""
    found = ("", 0.0)
    for path in (output / layout.WORK).glob(layout.ANY_PART_NOW):
        with contextlib.suppress(OSError):
            seconds = time.time() - path.stat().st_mtime
            if seconds > found[1]:
                found = path.read_text(encoding="utf-8", errors="surrogateescape"), seconds
    return found


def refusal_of(error: Exception) -> Refusal:
    """What a file is refused for, by what reading it raised; raises MachineFault where that is not its fault."""
    if fault := machine_fault(error):
        raise fault from error
    if isinstance(error, Refusal):
        return error
    if isinstance(error, MemoryError):
        return Refusal("too_large", "it takes more memory than there is")
    if isinstance(error, OSError):
        return Refusal("unreadable", error.strerror or str(error))
    return Refusal("reader_failed", f"{type(error).__name__}: {error}")
