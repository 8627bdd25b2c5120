"""Pairs of synthetic volumes with a known warp between them, as a task on disk."""

import json
from pathlib import Path

import numpy as np
from scipy import ndimage

SHAPE = (16, 40, 40)  # slices, rows, columns
SPACING = np.array([2.0, 1.0, 1.0])
MARKS = 40


def body(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A CT (S, H, W) of a body with two organs in texture, and their labels 3 and 7."""
    rng = np.random.default_rng(seed)
    places = (np.indices(SHAPE) + 0.5) / np.reshape(SHAPE, (3, 1, 1, 1)) - 0.5

    def ellipsoid(center, radii):
        return sum(((one - c) / r) ** 2 for one, c, r in zip(places, center, radii, strict=True)) < 1

    voxels = np.where(ellipsoid((0, 0, 0), (0.6, 0.45, 0.45)), 0.0, -1000.0)
    labels = np.zeros(SHAPE, np.uint8)
    labels[ellipsoid(rng.uniform(-0.03, 0.03, 3) + np.array([0, -0.05, 0.17]), (0.3, 0.17, 0.16))] = 3
    labels[ellipsoid(rng.uniform(-0.03, 0.03, 3) + np.array([0.05, 0.05, -0.2]), (0.25, 0.14, 0.15))] = 7
    texture = 1500 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 2.0)
    inside = voxels > -500
    voxels[inside] += 150.0 * (labels == 3)[inside] - 150.0 * (labels == 7)[inside] + texture[inside]
    return voxels.astype(np.float32), labels


def warp(places: np.ndarray) -> np.ndarray:
    """Voxels (3, ...) by which places (3, ...) are moved: 3 mm down the rows, and waves."""
    z, y, x = (np.pi * one / side for one, side in zip(places, SHAPE, strict=True))
    return np.stack([np.sin(y) * np.sin(x), 3 + 0 * z, 2 * np.sin(y) * np.sin(z)])


def affine(origin: tuple[float, float, float]) -> np.ndarray:
    """(slice, row, column, 1) -> mm in LPS."""
    found = np.eye(4)[[2, 1, 0, 3]]
    found[:3, :3] *= SPACING
    found[:3, 3] = origin
    return found


def write(folder: Path, landmarks: str = "voxels", labels: bool = True, patients: int = 3) -> Path:
    """A task whose pairs are a warped and a plain volume of each of `patients`, and of the first with the second."""
    images = folder / "test" / "images"
    images.mkdir(parents=True)
    places = np.indices(SHAPE).astype(float)
    marks = np.random.default_rng(9).uniform(0.3, 0.7, (MARKS, 3)) * SHAPE
    rows, pairs = [], ["fixed,moving"]
    for number in range(patients):
        voxels, organs = body(number)
        there = places + warp(places)
        moved = ndimage.map_coordinates(voxels, there, order=1, mode="nearest")
        sides = {
            f"a{number}": (moved, ndimage.map_coordinates(organs, there, order=0, mode="nearest"), marks, (1, 2, 3)),
            f"b{number}": (voxels, organs, marks + warp(marks.T).T, (-40, 5, 7)),
        }
        for name, (image, organ, points, origin) in sides.items():
            np.save(images / f"{name}.npy", np.moveaxis(image, 0, 2))
            if labels:
                np.save(images / f"{name}.mask.npy", np.moveaxis(organ, 0, 2))
            if landmarks:
                there_mm = (affine(origin) @ np.c_[points, np.ones(MARKS)].T)[:3].T
                np.save(images / f"{name}.landmarks.npy", there_mm if landmarks == "mm" else points)
            rows.append((name, f"patient {number}", "CT", affine(origin)))
        pairs.append(f"a{number},b{number}")
    if patients > 1:
        pairs.append("a0,b1")
    dtype = [("filename", "U16"), ("patient_id", "U16"), ("modality", "U4"), ("affine", "f8", (4, 4))]
    np.save(folder / "test" / "extra_data.npy", np.array(rows, dtype))
    (folder / "test" / "pairs.csv").write_text("\n".join(pairs) + "\n")
    told = {"name": folder.name, "kind": "registration" if labels else "landmark-registration", "modality": "CT"}
    told |= {"classes": {"3": "liver", "7": "spleen"}} if labels else {}
    told |= {"landmarks": landmarks} if landmarks else {}
    (folder / "task.json").write_text(json.dumps(told))
    return folder
