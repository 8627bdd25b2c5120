"""Phantoms are what their docstring says."""

import json

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from curia2_jax.data.readers import phantom
from curia2_jax.errors import UserError

INDEX = {name: index for index, name in phantom.LABELS.items()}


@pytest.fixture(scope="module")
def studies():
    return [phantom.make_study(11, number, size=64) for number in range(16)]


def test_files_hold_the_study_whatever_the_number_of_studies_and_the_orientation(tmp_path):
    """Read by nibabel."""
    paths = phantom.write_studies(tmp_path, 3, seed=4, size=48)
    assert [path.name for path in paths] == ["study_0000.nii.gz", "study_0001.nii.gz", "study_0002.nii.gz"]
    assert json.loads((tmp_path / "label_names.json").read_text())["5"] == "liver"
    for number, path in enumerate(paths):
        study = phantom.make_study(4, number, size=48)
        image, seg = nibabel.load(path), nibabel.load(str(path).replace(".nii.gz", "_seg.nii.gz"))
        assert "".join(nibabel.aff2axcodes(image.affine)) == study.orientation
        np.testing.assert_array_equal(image.affine, seg.affine)
        assert image.get_data_dtype() == np.int16
        assert seg.get_data_dtype() == np.uint8
        canonical = nibabel.as_closest_canonical(image)
        np.testing.assert_array_equal(np.asarray(canonical.dataobj), study.voxels)
        np.testing.assert_array_equal(np.asarray(nibabel.as_closest_canonical(seg).dataobj), study.labels)
        np.testing.assert_allclose(canonical.header.get_zooms(), study.spacing, rtol=1e-6)


def test_writing_twice_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    """No time and no name gets into the files."""
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        phantom.write_studies(tmp_path / folder, 1, seed=seed, size=32)
    read = {folder: (tmp_path / folder / "study_0000.nii.gz").read_bytes() for folder in "abc"}
    assert read["a"] == read["b"] != read["c"]


def test_modalities_alternate_and_sizes_are_those_of_a_torso(studies):
    """In millimeters."""
    assert [study.modality for study in studies[:4]] == ["CT", "MR", "CT", "MR"]
    for study in studies:
        assert 24 <= study.voxels.shape[2] <= 32
        assert 8 <= study.spacing[2] <= 10
        assert 340 < study.voxels.shape[0] * study.spacing[0] < 420
        assert study.labels.max() == len(phantom.LABELS)
    assert len({study.orientation for study in studies}) > 1
    assert len({study.voxels.shape for study in studies}) > 4


def test_organs_follow_each_other_along_z_and_lie_on_their_side(studies):
    """In every study."""

    def centers(study):
        return {name: np.argwhere(study.labels == index).mean(0) for name, index in INDEX.items()}

    for study in studies:
        c = centers(study)
        order = ["bladder", "bowel", "kidney_left", "liver", "heart", "lung_left"]
        heights = [c[name][2] for name in order]
        assert heights == sorted(heights)
        assert c["lung_right"][0] > c["lung_left"][0]  # RAS+: the first axis grows towards the patient's right hand
        assert c["liver"][0] > c["spleen"][0]
        assert c["heart"][1] > c["aorta"][1]  # the second one to the front


def test_mean_and_spread_do_not_name_the_organ_but_place_does(studies):
    """A linear classifier tells."""
    pixels, place, organ, patient = [], [], [], []
    for number, study in enumerate(studies):
        for index, name in phantom.LABELS.items():
            mask = study.labels == index
            for z in np.flatnonzero(mask.sum((0, 1)) >= 12):
                if not name.startswith("lung"):
                    values = study.voxels[:, :, z][mask[:, :, z]]
                    pixels.append([values.mean(), values.std()])
                    center = np.array([*np.argwhere(mask[:, :, z]).mean(0), z])
                    place.append(center / study.voxels.shape)
                    organ.append(index)
                    patient.append(number)
    train = np.array(patient) < 10
    organ = np.array(organ)
    for modality in (0, 1):
        this = np.array(patient) % 2 == modality
        score = {}
        for name, features in (("pixels", np.array(pixels)), ("place", np.array(place))):
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            model.fit(features[train & this], organ[train & this])
            score[name] = model.score(features[~train & this], organ[~train & this])
        assert score["pixels"] < 0.45 < 0.75 < score["place"], score


def test_background_noise_of_mr_is_rayleigh(studies):
    """Its mean over its spread is that of the law."""
    for study in studies[1::2]:
        corner = study.voxels[:4, :4].astype(float)
        # Mean over spread of a Rayleigh variable; a Gaussian clipped at zero has 0.68, |Gaussian| has 1.32.
        assert corner.mean() / corner.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.12)
        assert study.voxels.min() >= 0


def test_soft_organs_of_ct_share_one_range_and_air_is_air(studies):
    """In Hounsfield units."""
    means = []
    for study in studies[::2]:
        assert study.voxels.min() >= -1024
        assert np.median(study.voxels[:, -4:]) == pytest.approx(-1000, abs=15)
        lung = study.voxels[ndimage.binary_erosion(study.labels == INDEX["lung_left"], iterations=1)]
        assert -900 < np.median(lung) < -650
        for name in ("liver", "spleen", "bladder", "heart"):
            means.append(np.median(study.voxels[study.labels == INDEX[name]]))
    assert min(means) > -10
    assert max(means) < 110


def test_number_of_studies_must_be_positive(tmp_path):
    """Told in one line."""
    with pytest.raises(UserError, match="num_studies: found 0"):
        phantom.write_studies(tmp_path, 0, seed=0)
