"""Label maps are told from pictures, however many labels they have and however little of them there is."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from curia2_jax.data.ingest.flatness import is_label_map
from curia2_jax.data.readers import nifti
from tests.data.ingest.running import quarantine, run
from tests.data.small_studies import body, write_nifti

SHAPE = (30, 64, 72)


def blobs(labels: int, seed: int = 0) -> np.ndarray:
    """An atlas: the parts of the volume that are nearest to each of so many points."""
    rng = np.random.default_rng(seed)
    seeds = np.zeros(SHAPE, np.int32)
    at = rng.choice(seeds.size, labels, replace=False)
    seeds.ravel()[at] = rng.permutation(labels) + 1
    _, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    atlas = seeds[tuple(nearest)]
    atlas[:, :8] = atlas[:, -8:] = 0
    return atlas


def sheet(slices: slice, value: int = 1, dtype=np.uint8) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype)
    mask[slices, 20:34, 20:40] = value
    return mask


def vessel(labels: int) -> np.ndarray:
    """Tubes two voxels wide that run along the slices, each with a label of its own."""
    mask = np.zeros(SHAPE, np.uint8)
    for n in range(labels):
        mask[:, 10 + 4 * (n % 10), 10 + 6 * (n // 10)] = mask[:, 10 + 4 * (n % 10), 11 + 6 * (n // 10)] = n + 1
    return mask


def picture(levels: int) -> np.ndarray:
    """A scan with so few gray levels."""
    values = np.maximum(body(SHAPE, low=0), 0).astype(float)
    return np.rint(values / values.max() * (levels - 1)).astype(np.int16)


def larger(volume: np.ndarray, noise: int = 0) -> np.ndarray:
    """The first slices with four times the pixels along each side, of which the detector looks at a sample first."""
    out = volume[:8].repeat(4, axis=1).repeat(4, axis=2).astype(np.int16)
    return out + np.random.default_rng(0).integers(-noise, noise + 1, out.shape, np.int16)


def windowed() -> np.ndarray:
    """A scan cut off at both ends, so that two values fill most of it."""
    return np.clip(body(SHAPE), 20, 60)


MAPS = {
    "atlas of 1105 labels": blobs(1105),
    "atlas of 300 labels as float": blobs(300).astype(np.float32) + np.float32(1e-5),
    "large atlas": larger(blobs(300)),
    "large atlas of 17 labels in one half": larger(blobs(17) * (np.arange(72) < 36)),
    "atlas with high numbers": blobs(40) * 301,
    "mask in one slice": sheet(slice(13, 14)),
    "mask in three slices of thirty": sheet(slice(13, 16)),
    "mask in the first slice": sheet(slice(0, 1)),
    "mask of 255": sheet(slice(4, 20), 255),
    "mask of a half": sheet(slice(4, 20), 1, np.float32) / 2,
    "mask with nothing outside": np.where(sheet(slice(4, 20)) > 0, 1.0, np.nan),
    "one voxel": (np.arange(np.prod(SHAPE)).reshape(SHAPE) == 70_000).astype(np.uint8),
    "two vessels": vessel(2),
    "thirteen vessels": vessel(13),
    "skeleton": (blobs(60) != np.roll(blobs(60), 1, 0)).astype(np.uint8),
}
PICTURES = {
    "scan": body(SHAPE),
    "scan with 12 gray levels": picture(12),
    "scan with 200 gray levels": picture(200),
    "scan of whole numbers as float": body(SHAPE).astype(np.float64),
    "windowed scan": windowed(),
    "scan with slices twice": np.repeat(body((15, 64, 72)), 2, axis=0),
    "scan with pixels twice": np.repeat(np.repeat(body((30, 32, 36)), 2, axis=1), 2, axis=2),
    "probabilities": ndimage.gaussian_filter(sheet(slice(4, 20), 1, np.float32), 3),
    "probabilities as bytes": np.rint(255 * ndimage.gaussian_filter(sheet(slice(4, 20), 1, np.float32), 3)).astype(
        "u1"
    ),
    "large scan": larger(body(SHAPE), 12),
    "large scan with pixels four times": larger(body(SHAPE))[:, ::2, ::2],
    "constant": np.zeros(SHAPE, np.int16),
    "nothing that is finite": np.full(SHAPE, np.nan),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps(name):
    """Of every kind."""
    assert is_label_map(MAPS[name])


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name):
    """Of every kind."""
    assert not is_label_map(PICTURES[name])


def test_a_map_without_a_name_is_no_scan(tmp_path):
    """Whatever it is called; it is listed."""
    write_nifti(tmp_path / "in" / "good.nii.gz", body(SHAPE))
    for name in ("atlas of 1105 labels", "mask in three slices of thirty"):
        write_nifti(tmp_path / "in" / f"{name}.nii.gz", MAPS[name].astype(np.int16))
    assert run(tmp_path / "out", tmp_path / "in").contract["series"] == 1
    assert set(quarantine(tmp_path / "out").values()) == {"label_map"}


def test_real_maps_and_pictures(shared_data):
    """Every volume of the data says by its name which of the two it is."""
    told = {}
    for path in sorted((*shared_data.glob("ct/*.nii.gz"), *shared_data.glob("mr/*.nii.gz"))):
        raw = nifti.read([path]).raw if "studyforrest" not in path.name else nib.load(path).dataobj[:, :, ::40].T
        told[path.name] = (is_label_map(raw), path.name.endswith("_seg.nii.gz") or "brodmann" in path.name)
    assert len(told) > 20 and all(found == meant for found, meant in told.values()), told
