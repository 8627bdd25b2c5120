"""Label maps: which files they are, which image each belongs to, and whether it fits."""

import collections.abc
import dataclasses
import os
import pathlib

import numpy as np

from curia2_jax.data.ingest import flatness, layouts, tables
from curia2_jax.data.readers import header_of
from curia2_jax.data.readers.archive import Refused, Scan, read_any, relative
from curia2_jax.data.readers.volume import Refusal, Volume

DEFAULT = "*_seg.nii.gz,labels/*"
_IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".hdr")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A label map, the image file or folder it was drawn on ("" where unknown), and the set that its labels are of."""

    label: str
    image: str
    label_set: str


def pairs(spec: str, roots: list[pathlib.Path], files: list[str]) -> list[Pair]:
    """Label maps among `files`, by a CSV file, or by the layout of a data set and comma-separated glob patterns. One
    label map may be of several images, the channels of a case.

    Raises:
      UserError: the CSV cannot be read, or lacks a column or a cell.
    """
    if spec.lower().endswith(".csv"):
        return _from_csv(pathlib.Path(spec))
    patterns = [pattern.strip() for pattern in spec.split(",") if pattern.strip()]
    known, out = set(files), []
    names = {file: relative(file, roots) for file in files}
    cases = {file: case for file, name in names.items() if (case := layouts.case_of(name))}
    images: dict[str, list[str]] = {}
    for file, case in cases.items():
        if not case.labels:
            images.setdefault(case.key, []).append(file)
    for file, name in names.items():
        case, pattern = cases.get(file), next((p for p in patterns if pathlib.PurePath(name).match(p)), None)
        if case is not None and case.labels:
            found, label_set = images.get(case.key, []), case.labels
        elif pattern is not None:
            found, label_set = _partners(pathlib.PurePath(file), pattern, known), "segmentation"
        else:
            continue
        out += [Pair(file, image, label_set) for image in found or [""]]
    return out


def _partners(label: pathlib.PurePath, pattern: str, known: set[str]) -> list[str]:
    """Images of a label map: the one with the same name without what the pattern adds, here or in a sibling folder of
    images; else the channels of the case."""
    image = _partner(label, pattern, known)
    tail = pattern.rpartition("/")[2].lstrip("*")
    if image or not tail:
        return [image] if image else []
    case = label.name.removesuffix(tail)
    names = (f"{case}{gap}{channel}{end}" for gap in "_-" for channel in layouts.CHANNELS for end in _IMAGE_ENDINGS)
    return [file for file in (str(label.parent / name) for name in names) if file in known]


def _partner(label: pathlib.PurePath, pattern: str, known: set[str]) -> str:
    """Image of a label map: the same name without what the pattern adds, here or in a sibling folder of images."""
    tail = pattern.rpartition("/")[2].lstrip("*")
    names = [label.name]
    if tail:
        stem = label.name.removesuffix(tail)
        names = [f"{stem}{end}" for end in (*_IMAGE_ENDINGS, "")]
        folders = [label.parent]
    else:
        above = label.parent.parent
        folders = [above / "images", above / label.parent.name.replace("labels", "images"), above]
    options = (str(folder / name) for folder in folders for name in names)
    return next((option for option in options if option in known or (tail and pathlib.Path(option).is_dir())), "")


def _from_csv(path: pathlib.Path) -> list[Pair]:
    base = path.parent.resolve()
    return [
        Pair(
            os.path.normpath(base / row["label"]),
            os.path.normpath(base / row["image"]),
            row.get("kind") or "segmentation",
        )
        for row in tables.read(path, "--labels", ("image", "label"))
    ]


def refused(label: str, reason: str, detail: str) -> Refused:
    """A label map that is not used."""
    size = os.path.getsize(label) if os.path.isfile(label) else 0
    return Refused(label, reason, detail, 1, size, label)


def attach(found: list[Pair], scans: list[Scan]) -> list[Pair]:
    """Give each label map to the scans it belongs to; returns the pairs that belong to none."""
    by_file: dict[str, list[Scan]] = {}
    for scan in scans:
        for file in scan.files:
            by_file.setdefault(file, []).append(scan)
            if scan.gathered:
                by_file.setdefault(os.path.dirname(file), []).append(scan)
    lost = []
    for pair in found:
        image = str(header_of(pathlib.Path(pair.image)) or pair.image.rstrip("/"))
        mine = {id(scan): scan for scan in by_file.get(image, ())}
        if not mine:
            lost.append(pair)
        for scan in mine.values():
            scan.labels.append((pair.label, pair.label_set))
    return lost


def read(file: str, volume: Volume) -> np.ndarray:
    """Label map of a volume: (S, P, L) uint16.

    Raises:
      Refusal: it is on another grid, or holds no labels.
    """
    label = read_any(pathlib.Path(file))
    if label.raw.shape != volume.raw.shape:
        raise Refusal("label_geometry", f"a grid of {label.raw.shape}, the image has {volume.raw.shape}")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in volume.raw.shape], indexing="ij")).reshape(3, -1)
    apart = (label.affine - volume.affine) @ np.vstack([corners, np.ones(corners.shape[1])])
    if np.abs(apart).max() > 0.5 * volume.spacing.min():
        raise Refusal("label_geometry", f"up to {np.abs(apart).max():.1f} mm beside the image")
    values = np.asarray(label.raw) if label.slope == 1 and label.intercept == 0 else label.voxels
    whole = np.rint(values) if values.dtype.kind == "f" else values
    off = np.abs(values - whole).max() if values.dtype.kind == "f" else 0
    if not (off <= flatness.NEAR and whole.min() >= 0 and whole.max() <= 65535):
        found = f"values from {values.min():g} to {values.max():g}" + (f", {off:.3g} off whole ones" if off else "")
        raise Refusal("label_values", f"{found}; labels are whole numbers from 0 to 65535")
    if whole.min() != whole.max() and not flatness.is_label_map(whole):
        raise Refusal("label_values", f"{len(np.unique(whole))} values in smooth ramps: a probability map, not labels")
    return np.ascontiguousarray(whole, np.uint16)


def all_files(found: collections.abc.Iterable[Pair]) -> set[str]:
    """Files that are label maps and therefore never images."""
    return {pair.label for pair in found}
