"""Who the patient of a scan is, and the salted keys that stand for patients, studies and series in a corpus."""

import hashlib
import hmac
import os
import pathlib
import re

from curia2_jax.data.ingest import layouts, tables
from curia2_jax.data.readers.archive import Scan
from curia2_jax.data.readers.volume import Volume

ASSUMED_PATIENT, NOBODY = "patient_assumed", "patient_placeholder"
# What de-identification writes for everybody.
_NOBODY = re.compile(
    r"(anon(ymous|ymized|ymised|ym)?|unknown|none|null|n/?a|no[ _-]?name|patient|test|removed|redacted|de-?identified"
    r"|x+|0+)"
    r"([ _^-]*(anon(ymous|ymized|ymised|ym)?|patient|id))*",
    re.IGNORECASE,
)
Note = tuple[str, str]  # what was corrected or assumed, and the detail


class Keys:
    """Keys under the secret in the file `salt`; `patient_regex` and the CSV `patients` say how to find patients."""

    def __init__(self, salt: pathlib.Path, patient_regex: str | None, patients: str | None):
        self._salt = salt.read_bytes().strip()
        self._regex = re.compile(patient_regex) if patient_regex else None
        self._known = read_patients(patients) if patients else {}

    def key(self, kind: str, identifier: str) -> str:
        """16 hexadecimal digits that lead back to nobody without the secret (HMAC-SHA-256, RFC 2104)."""
        text = f"{kind} {identifier}".encode("utf-8", "surrogateescape")  # the bytes of a file name as they are
        return hmac.new(self._salt, text, "sha256").hexdigest()[:16]

    def patient(self, scan: Scan, volume: Volume) -> tuple[str, str, list[Note]]:
        """Identifier of the patient: the CSV's, the regular expression's, the file's, the layout's, or one assumed; the
        study that the layout names, "" if none; and notes of what was assumed. Identifiers are `same`.
        """
        case = None if scan.gathered else layouts.case_of(scan.name)
        patient, notes = self._patient(scan, volume, case)
        return same(patient), case.study if case else "", notes

    def _patient(self, scan: Scan, volume: Volume, case: layouts.Case | None) -> tuple[str, list[Note]]:
        for file in scan.files:
            if file in self._known:
                return self._known[file], []
        match = self._regex.search(scan.name) if self._regex else None
        if match:
            return match.group(1) if match.groups() else match.group(), []
        if volume.patient.strip(" \0"):
            nobody = [(NOBODY, "a name that stands for nobody")] if _NOBODY.fullmatch(volume.patient.strip()) else []
            return volume.patient, nobody
        if case is not None:
            return case.patient, [] if case.known else [(ASSUMED_PATIENT, "the case of the data set")]
        if scan.gathered:
            return volume.study or scan.series, [(ASSUMED_PATIENT, "no PatientID: one patient a study")]
        base = pathlib.PurePath(scan.name).name.split(".")[0]
        return layouts.without_channel(base), [(ASSUMED_PATIENT, "the name of the file")]


def fingerprint(key: str) -> str:
    """What is kept of the key of a patient who withdrew, and of the hash of the voxels of a series of theirs."""
    return hashlib.sha256(key.encode()).hexdigest()


def same(patient: str) -> str:
    """An identifier without what systems that exchange it do not keep: case and padding."""
    return " ".join(patient.replace("\0", " ").split()).upper()


def read_patients(path: str) -> dict[str, str]:
    """Patients by absolute path, from a CSV with the columns file,patient; paths relative to it.

    Raises:
      UserError: the file cannot be read, or lacks a column or a cell.
    """
    base = pathlib.Path(path).parent.resolve()
    rows = tables.read(path, "--patients", ("file", "patient"))
    return {os.path.normpath(base / row["file"]): row["patient"] for row in rows}
