"""Which files are label maps, whose they are, and whether they fit."""

import pathlib
import zipfile

import numpy as np
import pytest

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import labels
from curia2_jax.data.ingest.labels import Pair
from curia2_jax.data.readers import archive, nifti
from curia2_jax.data.readers.volume import Refusal, Volume
from curia2_jax.errors import UserError
from tests.data.ingest.running import run
from tests.data.readers.test_archive import scans_of
from tests.data.small_studies import body, dicom_slices, save_dicom, write_nifti


def test_globs_find_label_maps_and_their_images(tmp_path):
    """In the layouts that data sets have."""
    for name in (
        *("a/x.nii.gz", "a/x_seg.nii.gz", "b/images/y.nii.gz", "b/labels/y.nii.gz", "c/z.nii.gz", "c/labels/z.nii.gz"),
        *("d/imagesTr/w.nii.gz", "d/labelsTr/w.nii.gz", "lone_seg.nii.gz"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    files = sorted(str(path) for path in tmp_path.rglob("*.nii.gz"))
    found = {
        archive.relative(pair.label, [tmp_path]): archive.relative(pair.image, [tmp_path]) if pair.image else ""
        for pair in labels.pairs(f"{labels.DEFAULT},labelsTr/*", [tmp_path], files)
    }
    assert found == {
        "a/x_seg.nii.gz": "a/x.nii.gz",
        "b/labels/y.nii.gz": "b/images/y.nii.gz",
        "c/labels/z.nii.gz": "c/z.nii.gz",
        "d/labelsTr/w.nii.gz": "d/imagesTr/w.nii.gz",
        "lone_seg.nii.gz": "",
    }


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("x.nii.gz", "x_seg.nii"), ("x.nii.gz", "x-seg.nii.gz"), ("x.nii", "x_Label.nii.gz"), ("x.mha", "x_gt.mha"),
        ("x.nrrd", "x.seg.nrrd"), ("x.nrrd", "x-label.nrrd"), ("x.mhd", "x_mask.mhd"), ("x.nii.gz", "x_lesion.nii.gz"),
        ("x-t1c.nii.gz", "x-seg.nii.gz"), ("x_flair.nii.gz", "x_mask.nii.gz"),
    ],
)  # fmt: skip
def test_a_label_map_beside_its_image(image, label):
    """Is known by both of their names, not by its own alone."""
    found = labels.pairs("", [pathlib.Path("/in")], [f"/in/{image}", f"/in/{label}"])
    assert found == [Pair(f"/in/{label}", f"/in/{image}", "segmentation")]
    assert labels.pairs("", [pathlib.Path("/in")], [f"/in/{label}", "/in/y.nii.gz", f"/in/a/{image}"]) == []


@pytest.mark.parametrize(
    ("image", "label", "options"),
    [
        ("a/x.nii.gz", "a/x_seg.nii.gz", {}),
        ("x.nii.gz", "x-label.nii.gz", {}),
        ("imagesTr/x_0000.nii.gz", "labelsTr/x.nii.gz", {}),
        ("images/x.nii.gz", "labels/x.nii.gz", {}),
        ("sub-1/anat/sub-1_T1w.nii.gz", "derivatives/s/sub-1/anat/sub-1_dseg.nii.gz", {}),
        ("b/ct.nii.gz", "c/map.nii.gz", {"labels": "l.csv"}),
    ],
)
def test_label_maps_in_an_archive(tmp_path, image, label, options):
    """Are found by the same names as in a folder, and are no images that were refused."""
    mask = np.zeros((4, 40, 44), np.uint8)
    mask[1:3, 10:20, 10:20], mask[1:3, 20:30, 20:30] = 1, 2
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        for name, voxels in ((image, body((4, 40, 44))), (label, mask)):
            write_nifti(tmp_path / "x" / "one.nii.gz", voxels)
            out.write(tmp_path / "x" / "one.nii.gz", name)
    (tmp_path / "l.csv").write_text(f"image,label\nin/a.zip!{image},in/a.zip!{label}\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "a.zip").rename(tmp_path / "in" / "a.zip")
    summary = run(tmp_path / "c", tmp_path / "in", **{key: str(tmp_path / name) for key, name in options.items()})
    assert (summary.label_maps, summary.files, summary.refused) == (1, 2, {})
    (series,) = set(Corpus(tmp_path / "c").column("series"))
    assert len(list((tmp_path / "c").rglob(f"{series}*.npz"))) == 1


def test_a_csv_names_pairs_relative_to_itself(tmp_path):
    """A bad one is told in one line."""
    (tmp_path / "l.csv").write_text('image,label,kind\na.nii,b.nii,"organs, all"\nd,e.nii,\n')
    assert labels.pairs(str(tmp_path / "l.csv"), [], []) == [
        Pair(str(tmp_path / "b.nii"), str(tmp_path / "a.nii"), "organs, all"),
        Pair(str(tmp_path / "e.nii"), str(tmp_path / "d"), "segmentation"),
    ]
    for text, message in (("a,b\n1,2\n", "found a,b"), ("", "no rows")):
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            labels.pairs(str(tmp_path / "l.csv"), [], [])
    with pytest.raises(UserError, match="cannot be read"):
        labels.pairs(str(tmp_path / "none.csv"), [], [])


def test_pairs_go_to_scans_by_file_or_folder(tmp_path):
    """What belongs to none is returned."""
    write_nifti(tmp_path / "a.nii", body((4, 40, 44)))
    paths = save_dicom(tmp_path / "series", dicom_slices(body((4, 40, 44))))
    found = [
        item
        for path in (tmp_path / "a.nii", *paths)
        for item in archive.look(str(path), lambda header: header.shape[2])
    ]
    scans = scans_of(found, tmp_path)
    pairs = [
        Pair("l1", str(tmp_path / "a.nii"), "k"),
        Pair("l2", str(tmp_path / "series"), "k"),
        Pair("l3", str(tmp_path / "series"), "m"),
        Pair("l4", str(tmp_path / "gone.nii"), "k"),
    ]
    lost: list[Pair] = []
    scans = list(labels.attach(pairs, scans, lost))
    assert [pair.label for pair in lost] == ["l4"]
    assert {scan.name: scan.labels for scan in scans} == {"a.nii": [("l1", "k")], "series": [("l2", "k"), ("l3", "m")]}


def test_a_label_map_is_turned_with_its_image(tmp_path):
    """And refused on a grid that is turned the other way."""
    label = np.zeros((6, 40, 44), np.uint8)
    label[2, 3:9, 4:7] = 5
    write_nifti(tmp_path / "image.nii", body((6, 40, 44)))
    write_nifti(tmp_path / "label.nii.gz", label)
    volume = nifti.read([tmp_path / "image.nii"])
    found = labels.read(str(tmp_path / "label.nii.gz"), volume)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, label)
    turned = Volume(volume.raw[::-1], volume.affine)  # another grid in the same place
    turned.affine = volume.affine @ np.array([[-1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    with pytest.raises(Refusal, match="label_geometry"):
        labels.read(str(tmp_path / "label.nii.gz"), turned)


def test_label_maps_that_do_not_fit_are_refused(tmp_path):
    """Another grid, or values that are no labels."""
    label = np.zeros((6, 40, 44), np.uint8)
    write_nifti(tmp_path / "image.nii", body((6, 40, 44)))
    volume = nifti.read([tmp_path / "image.nii"])
    write_nifti(tmp_path / "small.nii", label[:5])
    write_nifti(tmp_path / "beside.nii", label, origin=(0.6, 0, 0))
    write_nifti(tmp_path / "negative.nii", label.astype(np.int16) - 1)
    write_nifti(tmp_path / "half.nii", label.astype(np.float32) + 0.5)
    reasons = {}
    for name in ("small", "beside", "negative", "half"):
        with pytest.raises(Refusal) as refusal:
            labels.read(str(tmp_path / f"{name}.nii"), volume)
        reasons[name] = refusal.value.reason
    assert reasons == {
        "small": "label_geometry", "beside": "label_geometry", "negative": "label_values", "half": "label_values",
    }  # fmt: skip
    ramp = np.broadcast_to(np.arange(44, dtype=np.uint8), label.shape)
    write_nifti(tmp_path / "ramp.nii", ramp)
    with pytest.raises(Refusal, match="a probability map"):
        labels.read(str(tmp_path / "ramp.nii"), volume)


def test_real_label_maps_are_told_from_probabilities(shared_data):
    """Tissue probabilities are refused, an atlas of 41 areas is read."""
    brain = nifti.read([shared_data / "mr" / "mni152_t1.nii.gz"])
    with pytest.raises(Refusal, match="a probability map"):
        labels.read(str(shared_data / "mr" / "mni152_gm.nii.gz"), brain)
    atlas = nifti.read([shared_data / "mr" / "colin27_t1_bet.nii.gz"])
    assert len(np.unique(labels.read(str(shared_data / "mr" / "colin27_brodmann.nii.gz"), atlas))) == 42
