"""Labelled synthetic CT and MR torsos: any number, deterministic, no download.

This is no clinical simulation: no organ, intensity or noise level is measured from a patient, and a score on these
studies says nothing about a score on patients. They exist so that the whole program can be run, tested and compared
where no scan may be taken. What was chosen, and why:

* **Anatomy is ordered.** Bladder, bowel, kidneys, liver, stomach, spleen, heart and lungs follow each other along z,
  on their usual sides, inside a body with subcutaneous fat, muscle wall, spine, ribs and pelvis (all unlabelled, so
  that the background is not a class). The torso is shortened to 24-32 slices of 8-10 mm; in-plane it has the size of
  an adult.
* **Patients differ.** Size, waist, fat, place and extent of every organ, a smooth deformation of everything, the
  covered range and the place in the field of view are drawn for every study: place alone is evidence, not an answer.
* **Mean and spread do not give the organ away.** All soft organs draw their mean from one range (20-80 HU; in MR
  35-75 % of the brightest tissue, times an arbitrary scanner gain), and the spread of their texture from another one.
  Every study draws them anew, as contrast phases and sequences do. Lungs are darker than the rest, as in life.
* **Texture is the organ's own**, up to its sign and strength: vessels (lung, liver), chambers (heart), bands as in
  arterial phase (spleen), cortex and pyramids (kidneys), folds and a fluid level (stomach), loops with gas (bowel),
  layered urine (bladder), fibres (psoas), wall and lumen (aorta). 18-40 HU is what contrast medium makes of such
  structures.
* **Acquisition.** A point spread of about half a pixel mixes tissues at borders. CT noise is the sum of white noise
  and of noise correlated over about a pixel, as reconstruction kernels leave it; MR magnitude noise is Rician, because
  it is the length of a complex number, on top of the smooth multiplicative bias field of a receive coil. CT has a
  table under the patient, sometimes arms, sometimes a metal implant with streaks.
* **Nothing leaks.** A file name is a number, and neither the noise nor the stored orientation depends on the labels.
"""

import json
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from scipy import ndimage

from curia2_jax.errors import UserError

LABELS = {
    1: "lung_right", 2: "lung_left", 3: "heart", 4: "aorta", 5: "liver", 6: "spleen", 7: "kidney_right",
    8: "kidney_left", 9: "stomach", 10: "bowel", 11: "bladder", 12: "psoas",
}  # fmt: skip
_Masks = dict[str, np.ndarray]  # (X, Y, Z) bool by tissue
_Values = dict[str, np.ndarray]  # (voxels of the organ,) float32 by organ
_INDEX = {name: index for index, name in LABELS.items()}

# Center and radii in body units: right, anterior (1 = skin), and height in the torso (0 = pelvic floor, 1 = lung apex).
# Painted in this order; what comes later lies in front.
_ORGANS = [
    ("lung_right", (0.42, 0.02, 0.82), (0.33, 0.62, 0.21)),
    ("lung_left", (-0.42, 0.00, 0.82), (0.31, 0.62, 0.21)),
    ("psoas", (0.28, -0.33, 0.27), (0.13, 0.17, 0.17)),
    ("psoas", (-0.28, -0.33, 0.27), (0.13, 0.17, 0.17)),
    ("bowel", (0.00, 0.32, 0.28), (0.62, 0.44, 0.13)),
    ("liver", (0.42, 0.12, 0.57), (0.42, 0.55, 0.12)),
    ("liver", (-0.02, 0.42, 0.60), (0.34, 0.24, 0.06)),
    ("stomach", (-0.36, 0.32, 0.56), (0.26, 0.29, 0.09)),
    ("spleen", (-0.60, -0.22, 0.58), (0.17, 0.32, 0.08)),
    ("kidney_right", (0.43, -0.36, 0.43), (0.16, 0.20, 0.09)),
    ("kidney_left", (-0.43, -0.36, 0.46), (0.16, 0.20, 0.09)),
    ("bladder", (0.00, 0.28, 0.09), (0.27, 0.28, 0.08)),
    ("heart", (-0.13, 0.28, 0.74), (0.31, 0.31, 0.10)),
    ("aorta", (-0.09, -0.20, 0.60), (0.085, 0.115, 0.32)),
]


class Study(NamedTuple):
    """One synthetic series in RAS+ axes.

    voxels: (X, Y, Z) int16, Hounsfield units or MR scanner units; labels: (X, Y, Z) uint8, 0 = none, else a key of
    `LABELS`; spacing: (3,) float64 mm; modality: "CT" or "MR"; orientation: the axis codes in which it is to be stored.
    """

    voxels: np.ndarray
    labels: np.ndarray
    spacing: np.ndarray
    modality: str
    orientation: str


def make_study(seed: int, number: int, size: int = 128) -> Study:
    """Draws study `number` of the series of studies `seed`: even numbers are CT, odd ones MR.

    A study depends on (seed, number, size) alone, not on how many are made. `size` is the number of columns.
    """
    rng = np.random.default_rng([seed, number])
    modality = "CT" if number % 2 == 0 else "MR"
    spacing = np.array([384 / size * rng.uniform(0.92, 1.06)] * 2 + [rng.uniform(8.0, 10.0)])
    shape = (size, round(size * rng.uniform(0.82, 1.0)), int(rng.integers(24, 33)))
    body = _body_coordinates(rng, shape, spacing)
    labels, radius = _paint_organs(rng, body)
    tissues = _tissues(rng, body, labels)
    texture = {name: _texture(rng, name, labels == index, radius, body) for index, name in LABELS.items()}
    if modality == "CT":
        values = _computed_tomography(rng, body, labels, tissues, texture)
    else:
        values = _magnetic_resonance(rng, labels, tissues, texture)
    orientation = str(rng.choice(["RAS", "LAS", "LPS"]))
    return Study(np.rint(values).astype(np.int16), labels, spacing, modality, orientation)


def write_studies(folder: str | Path, num_studies: int, seed: int, size: int = 128) -> list[Path]:
    """Writes studies 0..num_studies-1 as `study_NNNN.nii.gz` with `study_NNNN_seg.nii.gz`, and `label_names.json`.

    Returns the image files.

    Raises:
      UserError: `num_studies` is not positive.
    """
    if num_studies < 1:
        raise UserError(f"num_studies: found {num_studies}, write a number of at least 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(num_studies):
        study = make_study(seed, number, size)
        center = study.spacing * (np.array(study.voxels.shape) - 1) / 2
        affine = nibabel.affines.from_matvec(np.diag(study.spacing), -center)
        stored = nibabel.orientations.axcodes2ornt(study.orientation)
        for array, suffix in ((study.voxels, ""), (study.labels, "_seg")):
            image = nibabel.Nifti1Image(array, affine).as_reoriented(stored)
            image.header.set_xyzt_units("mm")
            nibabel.save(image, folder / f"study_{number:04d}{suffix}.nii.gz")
        paths.append(folder / f"study_{number:04d}.nii.gz")
    names = {str(index): name for index, name in LABELS.items()}
    (folder / "label_names.json").write_text(json.dumps(names, indent=1) + "\n")
    return paths


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: tuple[float, ...] | float) -> np.ndarray:
    """Gaussian field of zero mean and unit spread; `sigma` is its correlation length in voxels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=3)
    return (field - field.mean()) / field.std()


def _wave(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Field of zero mean and unit spread that varies over about a fifth of the volume."""
    coarse = rng.standard_normal((6, 6, 6))
    field = ndimage.zoom(coarse, [n / 6 for n in shape], order=3, mode="nearest", grid_mode=True).astype(np.float32)
    return (field - field.mean()) / field.std()


class _Body(NamedTuple):
    right: np.ndarray  # (X, Y, Z) float32; right, front and up are warped body units (see _ORGANS)
    front: np.ndarray
    up: np.ndarray
    depth: np.ndarray  # distance from the body's axis, 1 = skin; not warped
    flat: tuple[np.ndarray, np.ndarray, np.ndarray]  # not warped: right, front, up


def _body_coordinates(rng: np.random.Generator, shape: tuple[int, int, int], spacing: np.ndarray) -> _Body:
    x, y = (((np.arange(n) - (n - 1) / 2) * d).astype(np.float32) for n, d in zip(shape[:2], spacing[:2], strict=True))
    up = np.linspace(rng.uniform(-0.04, 0.10), rng.uniform(0.88, 1.04), shape[2], dtype=np.float32)
    waist = 1 - rng.uniform(0.02, 0.12) * np.exp(-(((up - 0.40) / 0.15) ** 2)) - 0.5 * np.clip(up - 0.85, 0, None)
    right = (x[:, None, None] - rng.uniform(-12, 12)) / (rng.uniform(142, 172) * waist)
    front = (y[None, :, None] - rng.uniform(-10, 10)) / (rng.uniform(95, 122) * waist)
    right, front, up = np.broadcast_arrays(right, front, up[None, None, :])
    # A superellipse: a torso is flatter in front and behind than an ellipse.
    depth = (np.abs(right) ** 2.4 + np.abs(front) ** 2.4) ** (1 / 2.4)
    warp = [_wave(rng, shape) for _ in range(3)]
    return _Body(right + 0.045 * warp[0], front + 0.045 * warp[1], up + 0.012 * warp[2], depth, (right, front, up))


def _paint_organs(rng: np.random.Generator, body: _Body) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels (X, Y, Z) uint8 and each voxel's distance from the center of its organ (1 = surface)."""
    labels = np.zeros(body.right.shape, np.uint8)
    radius = np.ones(body.right.shape, np.float32)
    bumps = _noise(rng, labels.shape, (7, 7, 1.5))
    loops = _noise(rng, labels.shape, (3.5, 3.5, 0.8))
    stretch = rng.uniform(0.93, 1.07)
    for name, center, radii in _ORGANS:
        place = np.array(center) * (1, 1, stretch) + rng.normal(size=3) * (0.035, 0.035, 0.015)
        reach = np.array(radii) * rng.uniform(0.85, 1.18, size=3)
        tilt = rng.normal(scale=0.15)
        dx, dy = body.right - place[0], body.front - place[1]
        dx, dy = dx * np.cos(tilt) - dy * np.sin(tilt), dx * np.sin(tilt) + dy * np.cos(tilt)
        power = 6 if name == "aorta" else 2  # the aorta keeps its width along z
        flat = (dx / reach[0]) ** 2 + (dy / reach[1]) ** 2
        distance = np.sqrt(flat + np.abs((body.up - place[2]) / reach[2]) ** power)
        if name not in ("aorta", "bladder"):
            distance = distance + 0.09 * bumps
        inside = (distance < 1) & (body.depth < 0.80)
        if name == "bowel":
            inside &= loops > -0.35
        labels[inside], radius[inside] = _INDEX[name], distance[inside]
    return labels, radius


def _tissues(rng: np.random.Generator, body: _Body, labels: np.ndarray) -> _Masks:
    """Masks (X, Y, Z) of what has no label; they do not overlap each other or an organ."""
    right, front, up = body.right, body.front, body.up
    free = labels == 0
    fat = rng.uniform(0.86, 0.93)
    inside = (body.depth < 1) & free
    ribs = (body.depth > 0.81) & (body.depth < 0.87) & (up > 0.45)
    ribs &= np.cos(2 * np.pi * (rng.uniform(8, 11) * (body.flat[2] + 0.10 * body.flat[1]) + rng.uniform())) > 0.1
    pelvis = (body.depth > 0.60) & (body.depth < 0.74) & (up < 0.24) & (front < 0.25)
    column = np.hypot(right / 0.17, (front + 0.55) / 0.20)
    discs = np.cos(2 * np.pi * (rng.uniform(10, 13) * up + rng.uniform())) > 0.75
    bone = (ribs | pelvis | (column < 1)) & inside
    wall = (body.depth > 0.80) & (body.depth < fat)
    back = (np.hypot((np.abs(right) - 0.30) / 0.22, (front + 0.66) / 0.17) < 1) | (column < 1)
    muscle = (wall | back) & inside & ~bone
    lumps = _noise(rng, labels.shape, (2.5, 2.5, 0.7)) > rng.uniform(1.0, 1.5)  # vessels, nodes, pancreas ...
    return {
        "marrow": bone & (column < 0.85) & ~discs,
        "cortex": bone & ~(column < 0.85),
        "muscle": muscle | (bone & (column < 0.85) & discs),
        "soft": inside & ~bone & ~muscle & lumps & (body.depth < 0.80),
        "fat": inside & ~bone & ~muscle & ~(lumps & (body.depth < 0.80)),
    }


def _texture(rng: np.random.Generator, name: str, mask: np.ndarray, radius: np.ndarray, body: _Body) -> np.ndarray:
    """The pattern of one organ at its own voxels, in row-major order: zero mean, unit spread, (mask.sum(),) float32."""
    if not mask.any():
        return np.zeros(0, np.float32)
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inner, shape = mask[box], mask[box].shape
    edge, right, front = radius[box], body.right[box], body.front[box]
    angle = np.arctan2(front - front[inner].mean(), right - right[inner].mean())
    match name:
        case "lung_right" | "lung_left":
            field = np.exp(-((_noise(rng, shape, (1.6, 1.6, 0.8)) / 0.35) ** 2))
        case "liver":
            field = np.exp(-((_noise(rng, shape, (3.2, 3.2, 1.0)) / 0.25) ** 2)) + 0.15 * _noise(rng, shape, 0.6)
        case "heart":
            field = np.tanh(4 * _noise(rng, shape, (4.5, 4.5, 1.5))) * (edge < 0.8)
        case "spleen":
            field = np.sin(4.5 * _noise(rng, shape, (5, 5, 1.2)) + rng.uniform(0, 6))
        case "kidney_right" | "kidney_left":
            field = np.where(edge > 0.62, 1.0, np.cos(rng.integers(5, 8) * angle + rng.uniform(0, 6)))
            field = np.where(edge < 0.3, -1.6, field)
        case "stomach":
            folds = np.sin(rng.integers(9, 14) * angle + 2 * _noise(rng, shape, (4, 4, 1)))
            field = np.where(edge > 0.7, 1.3 * folds, np.where(front > np.median(front[inner]), 0.8, -0.8))
        case "bowel":
            field = np.cos(3.2 * _noise(rng, shape, (2.4, 2.4, 0.8)) + rng.uniform(0, 6))
        case "bladder":
            field = front + 0.02 * _noise(rng, shape, 2)
        case "psoas":
            field = _noise(rng, shape, (0.5, 3.0, 1.5))
        case "aorta":
            field = (edge > 0.75) + 0.2 * _noise(rng, shape, 1.0)
    values = field[inner].astype(np.float32)
    return (values - values.mean()) / max(float(values.std()), 1e-3)


def _fill(
    rng: np.random.Generator,
    values: np.ndarray,
    labels: np.ndarray,
    texture: _Values,
    mean: tuple[float, float],
    spread: tuple[float, float],
) -> None:
    """Gives every soft organ a mean and a spread from the same two ranges, and its texture an arbitrary sign."""
    for index, name in LABELS.items():
        if not name.startswith("lung"):
            sign = rng.choice([-1, 1])
            values[labels == index] = rng.uniform(*mean) + sign * rng.uniform(*spread) * texture[name]


def _computed_tomography(
    rng: np.random.Generator, body: _Body, labels: np.ndarray, tissues: _Masks, texture: _Values
) -> np.ndarray:
    """Hounsfield units, (X, Y, Z) float32, not below -1024."""
    shape = labels.shape
    right, front, up = body.flat
    values = np.full(shape, -1000, np.float32)
    level = {"fat": -105, "muscle": 55, "soft": 45, "marrow": 190, "cortex": 550}
    for name, mask in tissues.items():
        values[mask] = level[name] * rng.uniform(0.85, 1.15)
    _fill(rng, values, labels, texture, mean=(20, 80), spread=(18, 40))
    for name in ("lung_right", "lung_left"):
        values[labels == _INDEX[name]] = rng.uniform(-860, -740) + rng.uniform(50, 90) * texture[name]
    gas = (labels == _INDEX["bowel"]) & (_noise(rng, shape, (2, 2, 0.7)) > rng.uniform(1.5, 2.2))
    values[gas] = -900
    below = -1.14 - 0.05 * right**2
    values[(front < below) & (front > below - 0.09) & (np.abs(right) < 1.1)] = rng.uniform(-300, 100)
    if rng.uniform() < 0.25:  # arms beside the body
        for side in (-1, 1):
            arm = np.hypot((right - side * 1.17) / 0.14, (front + 0.1) / 0.22)
            values[(arm < 1) & (body.depth > 1.01)] = 40
            values[arm < 0.3] = 600
    values = ndimage.gaussian_filter(values, (0.5, 0.5, 0.25))
    if rng.uniform() < 0.2:  # metal: saturated, with streaks that fade with distance, in a few slices
        place = (rng.choice([-1, 1]) * 0.55, -0.25, rng.uniform(0.05, 0.9))
        dx, dy = right - place[0], front - place[1]
        reach = np.hypot(dx, dy)
        slab = np.exp(-(((up - place[2]) / 0.04) ** 2))
        values += slab * 250 * np.cos(9 * np.arctan2(dy, dx)) * np.exp(-reach / 0.4) * (body.depth < 1.2)
        values[(reach < 0.07) & (slab > 0.3)] = 3000
    noise = 0.6 * _noise(rng, shape, 0) + 0.8 * _noise(rng, shape, (0.9, 0.9, 0))
    return np.clip(values + rng.uniform(6, 14) * noise, -1024, 3071)


def _magnetic_resonance(rng: np.random.Generator, labels: np.ndarray, tissues: _Masks, texture: _Values) -> np.ndarray:
    """Magnitude in arbitrary units, (X, Y, Z) float32, never negative."""
    shape = labels.shape
    values = np.zeros(shape, np.float32)
    fat, marrow = float(rng.choice([0.30, 0.95])), rng.uniform(0.4, 0.9)  # with or without fat suppression
    level = {"fat": fat, "muscle": 0.35, "soft": 0.5, "marrow": marrow, "cortex": 0.08}
    for name, mask in tissues.items():
        values[mask] = level[name] * rng.uniform(0.85, 1.15)
    _fill(rng, values, labels, texture, mean=(0.35, 0.75), spread=(0.08, 0.18))
    for name in ("lung_right", "lung_left"):
        values[labels == _INDEX[name]] = rng.uniform(0.05, 0.12) + rng.uniform(0.03, 0.06) * texture[name]
    values[(labels == _INDEX["bowel"]) & (_noise(rng, shape, (2, 2, 0.7)) > rng.uniform(1.5, 2.2))] = 0.03
    values = ndimage.gaussian_filter(np.clip(values, 0, None), (0.5, 0.5, 0.25))
    values *= np.exp(rng.uniform(0.10, 0.30) * _wave(rng, shape))
    sigma = rng.uniform(0.02, 0.06)
    real, imaginary = (sigma * rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
    return np.clip(np.hypot(values + real, imaginary) * rng.uniform(150, 1500), 0, 32767)
