"""Who the patient of a scan is, and the salted keys that stand for patients, studies and series in a corpus."""

import hmac
import os
import pathlib
import re

from curia2_jax.data.ingest import tables
from curia2_jax.data.readers.archive import Scan
from curia2_jax.data.readers.volume import Volume

ASSUMED_PATIENT = "patient_assumed"
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

    def patient(self, scan: Scan, volume: Volume) -> tuple[str, list[Note]]:
        """Identifier of the patient: the CSV's, the regular expression's, the file's, or one assumed; and a note of
        the assumption."""
        for file in scan.files:
            if file in self._known:
                return self._known[file], []
        match = self._regex.search(scan.name) if self._regex else None
        if match:
            return match.group(1) if match.groups() else match.group(), []
        if volume.patient:
            return volume.patient, []
        if scan.gathered:
            return volume.study or scan.series, [(ASSUMED_PATIENT, "no PatientID: one patient a study")]
        return pathlib.PurePath(scan.name).name.split(".")[0], [(ASSUMED_PATIENT, "the name of the file")]


def read_patients(path: str) -> dict[str, str]:
    """Patients by absolute path, from a CSV with the columns file,patient; paths relative to it.

    Raises:
      UserError: the file cannot be read, or lacks a column or a cell.
    """
    base = pathlib.Path(path).parent.resolve()
    rows = tables.read(path, "--patients", ("file", "patient"))
    return {os.path.normpath(base / row["file"]): row["patient"] for row in rows}
