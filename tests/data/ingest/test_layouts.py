"""Cases of data sets are known by their names: patients, studies, and which labels are of which images."""

import numpy as np
import pytest

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import layouts
from tests.data.ingest.running import quarantine, run
from tests.data.small_studies import body, write_nifti

SHAPE = (6, 40, 44)
MASK = np.zeros(SHAPE, np.uint8)
MASK[1:5, 10:20, 10:20], MASK[1:5, 24:32, 24:32] = 1, 2

# layout: (images, label maps, studies, patients)
LAYOUTS: dict[str, tuple[list[str], list[str], int, int]] = {
    "nnU-Net": (
        ["imagesTr/liver_001_0000.nii.gz", "imagesTr/liver_002_0000.nii.gz", "imagesTs/liver_003_0000.nii.gz"],
        ["labelsTr/liver_001.nii.gz", "labelsTr/liver_002.nii.gz", "labelsTs/liver_003.nii.gz"],
        3,
        3,
    ),
    "nnU-Net with channels": (
        ["Dataset001/imagesTr/a_0000.nii.gz", "Dataset001/imagesTr/a_0001.nii.gz", "Dataset001/imagesTr/b_0000.nii.gz"],
        ["Dataset001/labelsTr/a.nii.gz"],
        2,
        2,
    ),
    "two data sets of nnU-Net": (
        ["Dataset001/imagesTr/a_0000.nii.gz", "Dataset002/imagesTr/a_0000.nii.gz"],
        ["Dataset001/labelsTr/a.nii.gz", "Dataset002/labelsTr/a.nii.gz"],
        2,
        2,
    ),
    "nnU-Net in NRRD names": (["imagesTr/a_0000.nii"], ["labelsTr/a.nii.gz"], 1, 1),
    "Decathlon": (
        ["Task09_Spleen/imagesTr/spleen_1.nii.gz", "Task09_Spleen/imagesTs/spleen_2.nii.gz"],
        ["Task09_Spleen/labelsTr/spleen_1.nii.gz"],
        2,
        2,
    ),
    "BIDS": (
        ["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"],
        ["derivatives/seg/sub-01/anat/sub-01_dseg.nii.gz", "derivatives/x/sub-02/anat/sub-02_desc-brain_mask.nii.gz"],
        2,
        2,
    ),
    "BIDS with sessions": (
        ["sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"],
        ["derivatives/seg/sub-01/ses-2/anat/sub-01_ses-2_label-GM_dseg.nii.gz"],
        2,
        1,
    ),
    "two data sets of BIDS": (["ds1/sub-01/anat/sub-01_T1w.nii.gz", "ds2/sub-01/anat/sub-01_T1w.nii.gz"], [], 2, 2),
    "channels beside their labels": (
        ["p1/p1_t1.nii.gz", "p1/p1_t1ce.nii.gz", "p1/p1_flair.nii.gz"],
        ["p1/p1_seg.nii.gz"],
        1,
        1,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_paired_by_themselves(tmp_path, name):
    """Every label map goes to all images of its case, with the default of --labels."""
    images, maps, studies, patients = LAYOUTS[name]
    for seed, image in enumerate(images):
        write_nifti(tmp_path / "in" / image, np.abs(body(SHAPE, seed=seed, low=0)))
    for label in maps:
        write_nifti(tmp_path / "in" / label, MASK)
    summary = run(tmp_path / "out", tmp_path / "in")
    assert not quarantine(tmp_path / "out") and summary.label_maps == len(maps)
    contract = summary.contract
    assert (contract["series"], contract["studies"], contract["patients"]) == (len(images), studies, patients)
    corpus = Corpus(tmp_path / "out")
    keys = {layouts.case_of(image).key if layouts.case_of(image) else "p1" for image in maps}
    expected = sum((layouts.case_of(image).key if layouts.case_of(image) else "p1") in keys for image in images)
    labelled = {s for s, label in zip(corpus.column("series"), corpus.column("label"), strict=True) if label}
    assert len(labelled) == expected >= len(maps)


@pytest.mark.parametrize(
    ("name", "patient", "study", "labels"),
    [
        ("sub-01/anat/sub-01_T1w.nii.gz", "/sub-01", "/sub-01", ""),
        (
            "d/derivatives/p/sub-01/ses-a/anat/sub-01_ses-a_space-MNI_dseg.nii",
            "d/sub-01",
            "d/sub-01/ses-a",
            "segmentation",
        ),
        ("sub-01_label-GM_probseg.nii.gz", "/sub-01", "/sub-01", "GM probseg"),
        ("sub-01_acq-x_desc-brain_mask.nii.gz", "/sub-01", "/sub-01", "brain mask"),
        ("a/imagesTr/x_0000.nii.gz", "a/x", "a/x", ""),
        ("a/labelsTr/x_0000.nii.gz", "a/x_0000", "a/x_0000", "segmentation"),
        ("imagesTs/x.mha", "./x", "./x", ""),
        ("images/x_0000.nii.gz", None, None, None),
        ("imagesTr/._x.nii.gz", None, None, None),
        ("imagesTr/readme.txt", None, None, None),
        ("subject-01_T1w.nii.gz", None, None, None),
        ("sub-01.nii.gz", None, None, None),
    ],
)
def test_cases_by_name(name, patient, study, labels):
    """And what is of no layout."""
    case = layouts.case_of(name)
    assert (case and case.patient, case and case.study, case and case.labels) == (patient, study, labels)


def test_probabilities_are_never_a_scan(tmp_path):
    """BIDS says by the name what the values do not."""
    write_nifti(tmp_path / "in" / "sub-01" / "anat" / "sub-01_T1w.nii.gz", np.abs(body(SHAPE, low=0)))
    ramp = np.linspace(0, 1, MASK.size, dtype=np.float32).reshape(SHAPE)
    write_nifti(tmp_path / "in" / "derivatives" / "sub-01_label-GM_probseg.nii.gz", ramp)
    write_nifti(tmp_path / "in" / "derivatives" / "sub-02_label-GM_probseg.nii.gz", ramp)
    assert run(tmp_path / "out", tmp_path / "in").contract["series"] == 1
    assert sorted(quarantine(tmp_path / "out").values()) == ["label_unpaired", "label_values"]
