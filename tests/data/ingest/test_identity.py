"""Who is a patient, by the identifiers that archives have."""

import pytest

from curia2_jax.data.ingest.identity import ASSUMED_PATIENT, NOBODY
from tests.data.ingest.running import corrections, run
from tests.data.small_studies import body, dicom_slices, save_dicom


@pytest.mark.parametrize(
    ("identifiers", "patients", "noted"),
    [
        (["P1", " P1", "P1  ", "p1"], 1, None),
        (["P 1", "P  1"], 1, None),
        (["P1", "P2"], 2, None),
        (["007", "7"], 2, None),  # digits are the name
        (["", " ", None], 3, ASSUMED_PATIENT),
        (["ANONYMOUS", "Anonymous"], 1, NOBODY),
        (["anonymized^patient", "anonymized^patient"], 1, NOBODY),
        (["0000", "0000"], 1, NOBODY),
        (["Anonymous-0012", "Anonymous-0013"], 2, None),
        (["test17", "none3"], 2, None),
    ],
)
def test_identifiers_are_compared_without_case_and_padding(tmp_path, identifiers, patients, noted):
    """And those that stand for nobody are warned of."""
    for number, identifier in enumerate(identifiers):
        slices = dicom_slices(body((4, 40, 44), seed=number))
        for ds in slices:
            ds.PatientID = identifier
        save_dicom(tmp_path / "in" / str(number), slices)
    summary = run(tmp_path / "out", tmp_path / "in")
    assert summary.contract["patients"] == patients
    assert {what for _, what in corrections(tmp_path / "out")} & {ASSUMED_PATIENT, NOBODY} == ({noted} - {None})
    assert len(summary.warnings) == (noted is not None)
