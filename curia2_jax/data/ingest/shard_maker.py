"""One entry of the plan -> one finished part. The unit of work that every runner runs and may run again."""

import errno
import json
import pathlib
import time

import numpy as np

from curia2_jax.data.ingest import benchmark, intensity, labels, parts, plan, slicing
from curia2_jax.data.ingest.foreground import MIN_FOREGROUND
from curia2_jax.data.ingest.identity import Keys
from curia2_jax.data.readers import archive
from curia2_jax.data.readers.volume import Refusal, Volume

LOCAL = "local"  # what must not leave the site: paths, reasons that name files, the salt


def make_shard(output: str, number: int) -> int:
    """Make part `number` of the corpus in `output` unless it is finished; returns the slices in it.

    Raises OSError when the disk is full or cannot be written; what is wrong with a scan is reported in the part.
    """
    folder = pathlib.Path(output)
    work = folder / parts.WORK
    if parts.is_finished(work, number):
        return sum(series["records"] for series in parts.report(work, number)["series"])
    options = plan.Options.from_json(json.loads((work / "options.json").read_text()))
    salt = pathlib.Path(options.salt) if options.salt else folder / LOCAL / "salt"
    maker = _Maker(work, number, options, Keys(salt, options.patient_regex, options.patients))
    fatal = set(json.loads((work / "fatal.json").read_text())) if (work / "fatal.json").exists() else set()
    try:
        for scan in plan.read_shard(work, number):
            # Should reading this scan end the process, ingest finds its name here and leaves it out.
            plan.write(now_reading(work, number), scan.series)
            try:
                if scan.series in fatal:
                    raise Refusal("reader_failed", "reading it ended the process, twice")
                for one in archive.each_frame(scan) if options.every_frame else (scan,):
                    maker.add(one)
            except Refusal as refusal:
                maker.report["refused"].append((scan.name, refusal.reason, refusal.detail))
        return maker.part.finish(maker.report | {"seconds": maker.timer.seconds})
    except BaseException:
        maker.part.abandon()
        raise
    finally:
        now_reading(work, number).unlink(missing_ok=True)


def now_reading(work: pathlib.Path, number: int) -> pathlib.Path:
    """File that names the scan which a shard is at."""
    return work / f"now-{number:05d}"


class _Maker:
    """A part while it is made."""

    def __init__(self, work: pathlib.Path, number: int, options: plan.Options, keys: Keys):
        self._work, self._options, self._keys = work, options, keys
        self.part = parts.Part(work, number, options.codec)
        self.timer = slicing.Timer()
        self.report: dict = {"refused": [], "corrected": [], "samples": []}

    def add(self, scan: archive.Scan) -> None:
        """Add the slices of one scan. Raises Refusal when it gives none, OSError when they cannot be written."""
        try:
            self._add(scan)
        except (Refusal, MemoryError, parts.CannotWrite):
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # of the temporary folder
                raise
            raise Refusal("unreadable", error.strerror or str(error)) from error
        except Exception as error:  # a fault of ours or of a library must not stop an archive of millions
            raise Refusal("reader_failed", f"{type(error).__name__}: {error}") from error

    def _add(self, scan: archive.Scan) -> None:
        since = time.process_time()
        volume = archive.read(scan, self._options.orientation)
        if not scan.labels and intensity.looks_like_labels(volume):
            raise Refusal("label_map", "flat regions of whole numbers; name it with --labels if it is one")
        volume = intensity.settle(volume, self._options.modality)
        since = self.timer("read", since)
        patient, assumed = self._keys.patient(scan, volume)
        key = self._keys.key("series", scan.series)
        maps = self._label_maps(scan, volume)
        self.timer("labels", since)
        ids = {
            "study": self._keys.key("study", volume.study or patient),
            "series": key,
            "patient": self._keys.key("patient", patient),
            "label": f"{benchmark.FOLDER}/{key}.npz" if maps else "",
        }
        notes, plane, whole = [*volume.notes, *assumed], "", False
        self.part.begin_series()
        try:
            for pixels, row in slicing.slices(volume, self._options.planes, notes, self.timer):
                since = time.process_time()
                plane = plane or row["plane"]
                self.part.add(pixels, row | ids)
                self.timer("encode and write", since)
            whole = True
        finally:
            if self.part.added:
                self.part.end_series(key, bool(maps), scan.name, broken=not whole)
        if not plane:
            raise Refusal("no_foreground", f"less than {MIN_FOREGROUND:.0%} of every slice")
        since = time.process_time()
        if maps:
            self.report["samples"] += benchmark.set_aside(self._work, volume, maps, ids, plane, patient)
        self.timer("labels", since)
        self.report["corrected"] += [(scan.name, what, detail) for what, detail in notes]

    def _label_maps(self, scan: archive.Scan, volume: Volume) -> list[tuple[str, np.ndarray]]:
        """(kind, label map (S, P, L) uint16) of those label maps that fit the scan; the others are reported."""
        maps = []
        for file, kind in scan.labels:
            try:
                maps.append((kind, labels.read(file, volume)))
            except Refusal as refusal:
                self.report["refused"].append((file, refusal.reason, refusal.detail))
        return maps
