"""Label maps: which files they are, which image each belongs to, and whether it fits."""

import collections.abc
import dataclasses
import os
import pathlib
from typing import Protocol

import numpy as np

from curia2_jax.data.ingest import flatness, layouts, tables
from curia2_jax.data.readers import header_of, zips
from curia2_jax.data.readers.archive import Refused, Scan, read_any, relative
from curia2_jax.data.readers.volume import Refusal, Volume

DEFAULT = "*_seg.nii.gz,labels/*"


@dataclasses.dataclass(frozen=True)
class Pair:
    """A label map, the image file or folder it was drawn on ("" where unknown), and the set that its labels are of."""

    label: str
    image: str
    label_set: str


class Names(Protocol):
    """Names of files that can be gone through again and again."""

    def __iter__(self) -> collections.abc.Iterator[str]: ...

    def __contains__(self, name: object, /) -> bool: ...


def pairs(spec: str, roots: list[pathlib.Path], files: Names) -> list[Pair]:
    """Label maps among `files`, by a CSV file, or by the layout of a data set, by comma-separated glob patterns, and by
    the names of the images beside them. One label map may be of several images, the channels of a case.

    Memory: grows with the label maps alone.

    Raises:
      UserError: the CSV cannot be read, or lacks a column or a cell.
    """
    if spec.lower().endswith(".csv"):
        return _from_csv(pathlib.Path(spec))
    patterns = [pattern.strip() for pattern in spec.split(",") if pattern.strip()]
    cases: list[tuple[str, layouts.Case]] = []
    out = []
    for file in files:
        name = layouts.as_path(relative(file, roots))
        case = layouts.case_of(name)
        if case is not None and case.labels:
            cases.append((file, case))
        elif pattern := next((p for p in patterns if pathlib.PurePath(name).match(p)), None):
            images = _by_pattern(file, pattern, files) or _beside(file, files)
            out += [Pair(file, image, "segmentation") for image in images or [""]]
        else:
            out += [Pair(file, image, "segmentation") for image in _beside(file, files)]
    images_of = _images_of({case.key for _, case in cases}, roots, files)
    out += [Pair(file, image, case.labels) for file, case in cases for image in images_of.get(case.key) or [""]]
    return sorted(out, key=lambda pair: (pair.label, pair.image))


def pairs_in_archives(spec: str, roots: list[pathlib.Path], members: Names) -> list[Pair]:
    """The same among the members of archives, which are known when these have been looked at; a CSV names its own."""
    return [] if spec.lower().endswith(".csv") else pairs(spec, roots, members)


def _images_of(keys: set[str], roots: list[pathlib.Path], files: Names) -> dict[str, list[str]]:
    """The images of the cases of a layout."""
    images: dict[str, list[str]] = {}
    for file in files if keys else ():
        case = layouts.case_of(relative(file, roots))
        if case is not None and not case.labels and case.key in keys:
            images.setdefault(case.key, []).append(file)
    return images


def _by_pattern(label: str, pattern: str, known: Names) -> list[str]:
    """Images of a label map: the one with the same name without what the pattern adds, or else the channels of the
    case; where it adds nothing, the same name in a sibling folder of images."""
    inside, path = _place(label)
    tail = pattern.rpartition("/")[2].lstrip("*")
    if tail and path.name.endswith(tail):
        return _images(inside, path.parent / path.name.removesuffix(tail), label, known)
    above = path.parent.parent
    folders = [above / "images", above / path.parent.name.replace("labels", "images"), above]
    options = (f"{inside}{folder / path.name}" for folder in folders)
    return [next((option for option in options if option in known and option != label), "")]


def _beside(label: str, known: Names) -> list[str]:
    """Images in the folder of a label map, by the names of both."""
    inside, path = _place(label)
    base = layouts.stem(path.name)
    image = layouts.image_of(f"{base}.seg" if path.name.lower().endswith(".seg.nrrd") else base)
    return [] if image is None or base == path.name else _images(inside, path.parent / image, label, known)


def _place(file: str) -> tuple[str, pathlib.PurePath]:
    """(what is in front of the members of the archive that a file lies in, "" where in none; its path behind that)."""
    where = zips.split(file)
    return ("", pathlib.PurePath(file)) if where is None else (f"{where[0]}{zips.INSIDE}", pathlib.PurePath(where[1]))


def _images(inside: str, base: pathlib.PurePath, label: str, known: Names) -> list[str]:
    """The image called `base` without its ending, a folder of that name, or the channels of a case of that name."""
    for name in (f"{inside}{base}{end}" for end in layouts.ENDINGS):
        if name in known and name != label:
            return [name]
    if not inside and pathlib.Path(base).is_dir():
        return [str(base)]
    names = (f"{inside}{base}{gap}{one}{end}" for gap in "_-" for one in layouts.CHANNELS for end in layouts.ENDINGS)
    return [name for name in names if name in known]


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


def attach(
    found: list[Pair], scans: collections.abc.Iterable[Scan], lost: list[Pair]
) -> collections.abc.Iterator[Scan]:
    """The scans with the label maps that belong to them; `lost` gets the pairs that belong to none."""
    by_image: dict[str, list[Pair]] = {}
    for pair in found:
        image = str(header_of(pathlib.Path(pair.image)) or pair.image.rstrip("/"))
        by_image.setdefault(image, []).append(pair)
    used: set[Pair] = set()
    for scan in scans:
        folders = [os.path.dirname(file) for file in scan.files] if scan.gathered else []
        mine = [pair for image in dict.fromkeys([*scan.files, *folders]) for pair in by_image.get(image, ())]
        scan.labels += [(pair.label, pair.label_set) for pair in mine]
        used.update(mine)
        yield scan
    lost += [pair for pair in found if pair not in used]


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
