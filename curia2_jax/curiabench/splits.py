"""One split of a task, its table and its images: what could be misread is refused or said, in one line."""

import collections
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curia2_jax.data.ingest import benchmark_schema
from curia2_jax.errors import UserError

MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "": ""}  # "" = unknown
AXES = ("HWS", "SHW")  # of a volume: slices last, or first
OTHER_FORMATS = (".png", ".jpg", ".b2nd", ".blosc2", ".nii.gz", ".dcm")


class Split(NamedTuple):
    """One split of n samples; all arrays have shape (n,)."""

    images: list[Path]
    targets: np.ndarray  # of the dtype of the task's kind; (n, K) in tasks of several labels
    series: np.ndarray  # str
    patients: np.ndarray  # str
    modalities: np.ndarray  # str, "" = unknown
    masked: bool
    axes: str = ""  # of `AXES`; "" = slices last, and refused where they seem to be first
    spacing: np.ndarray | None = None  # (n, 2), millimeters between rows and columns
    labels: tuple[int, ...] = ()  # that label maps may have beside 0, in segmentation
    affines: np.ndarray | None = None  # (n, 4, 4), (slice, row, column, 1) -> mm in LPS; NaN where it is not known
    moving: "Split | None" = None  # of n pairs, whose fixed volumes are the images here

    @property
    def names(self) -> np.ndarray:
        """(n,) str, of the samples."""
        own = np.array([path.stem for path in self.images], np.str_)
        return np.char.add(np.char.add(own, " "), self.moving.names) if self.moving else own

    @property
    def owners(self) -> np.ndarray:
        """(n,) the patient of each sample; of pairs (n, 2), those of both volumes."""
        return np.stack([self.patients, self.moving.patients], axis=1) if self.moving else self.patients

    @property
    def sides(self) -> list["Split"]:
        """This split; of pairs, those of the fixed and of the moving volumes."""
        return [self, self.moving] if self.moving else [self]

    def of(self, which: np.ndarray) -> "Split":
        """The samples (n,) bool of the split."""
        return self.taken(np.flatnonzero(which))

    def taken(self, which: np.ndarray) -> "Split":
        """The samples with these numbers, which may be there more than once."""
        return self._replace(
            images=[self.images[number] for number in which.tolist()],
            targets=self.targets[which],
            series=self.series[which],
            patients=self.patients[which],
            modalities=self.modalities[which],
            spacing=None if self.spacing is None else self.spacing[which],
            affines=None if self.affines is None else self.affines[which],
        )


class Facts(NamedTuple):
    """What task.json says that reading a split needs."""

    kind: benchmark_schema.Kind
    classes: dict[int, str]
    masked: bool
    modality: str
    axes: str = ""
    landmarks: str = ""


def read_split(folder: Path, facts: Facts, owner: str) -> tuple[Split, list[str]]:
    """A split's table, not its images, and what is to be said of it. `owner` stands before names that are no patients.

    Raises:
      UserError: the table is missing or at fault; the message names it.
    """
    path = folder / benchmark_schema.TABLE
    table = _table(path, facts.kind)
    fields: tuple[str, ...] = table.dtype.names or ()
    warnings = []
    names = table[benchmark_schema.FILENAME].astype(str)
    if repeated := [name for name, count in collections.Counter(names.tolist()).items() if count > 1]:
        raise UserError(f"{path}: found {repeated[0]!r} in {benchmark_schema.FILENAME} twice; write each file once")
    # The best name for a group of samples that the table has. Files and series are numbered anew in other folders.
    own = np.char.add(f"{owner} ", names)
    series = table[benchmark_schema.SERIES].astype(str) if benchmark_schema.SERIES in fields else own
    if benchmark_schema.PATIENT in fields:
        patients = table[benchmark_schema.PATIENT].astype(str)
    else:
        group = benchmark_schema.SERIES if benchmark_schema.SERIES in fields else benchmark_schema.FILENAME
        patients = series if group == benchmark_schema.SERIES else own
        warnings.append(
            f"{path}: no {benchmark_schema.PATIENT}: every {group} is taken for a patient of its own, so intervals are "
            "too narrow where a patient has several"
        )
    known = benchmark_schema.MODALITY in fields
    modalities = table[benchmark_schema.MODALITY].astype(str) if known else np.full(len(table), facts.modality)
    images = [benchmark_schema.image_path(folder, name) for name in names.tolist()]
    has_targets = facts.kind.has_targets
    if not facts.masked and has_targets and benchmark_schema.mask_path(images[0]).is_file():
        warnings.append(f"{folder}: there are masks, which task.json says not to use (mask: false)")
    return Split(
        images,
        _targets(path, table, facts) if has_targets else np.zeros(len(table), np.int64),
        series,
        patients,
        _modalities(path, modalities),
        facts.masked and has_targets,
        facts.axes,
        table[benchmark_schema.SPACING].astype(np.float64) if benchmark_schema.SPACING in fields else None,
        tuple(facts.classes) if facts.kind == benchmark_schema.SEGMENTATION else (),
        _affines(path, table) if benchmark_schema.AFFINE in fields else None,
    ), warnings


def _table(path: Path, kind: benchmark_schema.Kind) -> np.ndarray:
    if not path.is_file():
        needed = " and ".join(f"{split}/{benchmark_schema.TABLE}" for split in benchmark_schema.SPLITS)
        raise UserError(f"{path}: not found; a task needs {needed}")
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{path}: not a NumPy table ({error}); write a structured array, its text fields as U and not as objects: "
            "np.save(path, table.astype([(name, 'U64') or (name, 'f8') of each field]))"
        ) from None
    fields = table.dtype.names or ()
    required = benchmark_schema.REQUIRED[: 2 if kind.has_targets else 1]
    missing = set(required) - set(fields)
    if missing or not len(table):
        found = f"{len(table)} rows with fields {', '.join(fields)}" if fields else "no fields"
        raise UserError(f"{path}: found {found}; write at least one row with {' and '.join(required)}")
    return table


def _targets(path: Path, table: np.ndarray, facts: Facts) -> np.ndarray:
    """Targets in the dtype of the kind; nothing is rounded, cut or guessed."""
    found = table[benchmark_schema.TARGET]
    if facts.kind == benchmark_schema.MULTI_LABEL:
        return _labels(path, found, facts)
    if found.ndim != 1:
        shape = " x ".join(map(str, found.shape[1:]))
        raise UserError(
            f"{path}: found {shape} targets a sample; write one column, a task for each, or kind multi-label"
        )
    if found.dtype.kind in "US":
        return _named(path, found.astype(str), facts)
    values = found.astype(np.float64)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(f"{path}: found the target {values[row]} in row {row}; leave the sample out of the table")
    if facts.kind.has_classes and (values != np.rint(values)).any():
        row = int(np.flatnonzero(values != np.rint(values))[0])
        raise UserError(
            f"{path}: found the target {values[row]:g} in row {row}, which is no class; write whole numbers, or "
            "another kind in task.json"
        )
    return values.astype(facts.kind.target)


def _affines(path: Path, table: np.ndarray) -> np.ndarray:
    found = table[benchmark_schema.AFFINE].astype(np.float64)
    if found.shape[1:] != (4, 4):
        raise UserError(f"{path}: found affines of shape {found.shape[1:]}; write (4, 4), NaN where one is not known")
    known = np.flatnonzero(np.isfinite(found).all((1, 2)))
    flat = known[np.linalg.det(found[known, :3, :3]) == 0]
    if len(flat):
        raise UserError(f"{path}: found an affine without volume in row {flat[0]}; write NaN where it is not known")
    return found


def _labels(path: Path, found: np.ndarray, facts: Facts) -> np.ndarray:
    """Targets (n, K) of several questions of yes or no, in the order of the classes of task.json."""
    if found.shape[1:] != (len(facts.classes),):
        shape = " x ".join(map(str, found.shape[1:])) or "one"
        raise UserError(f"{path}: found {shape} targets a sample; write {len(facts.classes)}, one for each class")
    values = found.astype(np.float64)
    if (wrong := ~(np.isin(values, (0, 1)) | np.isnan(values))).any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise UserError(f"{path}: found the target {values[row, column]:g} in row {row}; write 0, 1, or NaN if unknown")
    return values


def _named(path: Path, found: np.ndarray, facts: Facts) -> np.ndarray:
    """Targets that are names of classes, by the names in task.json."""
    numbers = {name: number for number, name in facts.classes.items()}
    if unknown := sorted(set(found.tolist()) - set(numbers)):
        known = ", ".join(numbers) or "none"
        raise UserError(f"{path}: found the target {unknown[0]!r}, and classes of task.json are {known}; add it there")
    return np.array([numbers[name] for name in found.tolist()], facts.kind.target)


def _modalities(path: Path, found: np.ndarray) -> np.ndarray:
    """CT, MR or "", whatever the case."""
    upper = np.char.upper(np.char.strip(found))
    if unknown := sorted(set(upper.tolist()) - set(MODALITIES)):
        raise UserError(f"{path}: found the modality {unknown[0]!r}; write CT, MR, or nothing where it is not known")
    return np.array([MODALITIES[name] for name in upper.tolist()])


def content(image: np.ndarray) -> str:
    """A hash of a slice (H, W) float32, equal where shape and values are."""
    data = np.ascontiguousarray(image, np.float32) + np.float32(0)  # -0 is 0
    return hashlib.blake2b(repr(image.shape).encode() + data.tobytes(), digest_size=16).hexdigest()


def read_sample(split: Split, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Image (H, W) or (H, W, S) float32 and its mask, bool of the same shape, or None in a task without masks.

    Raises:
      UserError: a file is missing, unreadable, misshapen or not finite, or the mask is empty; the message names it.
    """
    path = split.images[index]
    image = load(path).astype(benchmark_schema.IMAGE_DTYPE, copy=False)
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise UserError(f"{path}: found shape {image.shape}; write (height, width) or (height, width, slices)")
    if image.shape[:2] == (1, 1):
        raise UserError(f"{path}: found shape {image.shape}, which stands for a lost file; leave it out of the table")
    if not np.isfinite(image).all():
        raise UserError(f"{path}: found values that are not finite; write Hounsfield units or scanner units")
    mask = _mask(path, image.shape) if split.masked else None
    if image.ndim == 3:
        _check_axes(path, image.shape, split.axes)
        if split.axes == "SHW":
            image, mask = np.moveaxis(image, 0, 2), None if mask is None else np.moveaxis(mask, 0, 2)
    return image, mask


def read_labels(split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Slice (H, W) float32 and its label map int64 of the same shape, of a task of segmentation.

    Raises:
      UserError: as `read_sample`, or the label map is missing, of another shape or has labels without a name.
    """
    image, _ = read_sample(split, index)
    if image.ndim != 2:
        raise UserError(f"{split.images[index]}: found shape {image.shape}; segmentation wants a slice a sample")
    return image, label_map(split.images[index], image.shape, split.labels)


def label_map(image: Path, shape: tuple[int, ...], known: Iterable[int]) -> np.ndarray:
    """The label map int64 beside an image, which has this `shape` in its file.

    Raises:
      UserError: it is missing, of another shape or dtype, or has labels beside 0 and those that are `known`.
    """
    path = benchmark_schema.mask_path(image)
    if not path.is_file():
        raise UserError(f"{path}: not found; write the label map of the image, 0 where nothing is marked")
    labels = load(path)
    if labels.shape != shape or labels.dtype.kind not in "iub":
        raise UserError(f"{path}: found {labels.dtype} of shape {labels.shape}; write integers of shape {shape}")
    if unknown := sorted(set(np.unique(labels).tolist()) - {0, *known}):
        raise UserError(f"{path}: found the label {unknown[0]} without a name; add it to classes in task.json")
    return labels.astype(np.int64)


def _check_axes(path: Path, shape: tuple[int, ...], axes: str) -> None:
    """Refuses a volume whose slices seem to stand first: read as slices last it would be cut in the wrong plane."""
    if not axes and shape[0] < min(shape[1:]):
        raise UserError(
            f'{path}: found shape {shape}, in which slices seem to stand first; write "axes": "SHW" in task.json '
            'if they do, "HWS" if they stand last'
        )


def _mask(image: Path, shape: tuple[int, ...]) -> np.ndarray:
    path = benchmark_schema.mask_path(image)
    if not path.is_file():
        raise UserError(
            f"{path}: not found, and task.json says that samples have masks; leave the sample out of the table, or "
            "write mask: false"
        )
    mask = load(path) != 0
    if mask.shape != shape:
        raise UserError(f"{path}: found shape {mask.shape}; write that of its image, {shape}")
    if not mask.any():
        raise UserError(f"{path}: found an empty mask; leave the sample out of the table")
    return mask


def load(path: Path) -> np.ndarray:
    """An array of a task. Raises UserError: there is none."""
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        stem = path.name.removesuffix(benchmark_schema.IMAGE_SUFFIX)
        other = next((end for end in OTHER_FORMATS if path.with_name(stem + end).is_file()), None)
        if other:
            raise UserError(
                f"{path}: not found, but {stem}{other}; images are read as .npy only, write it so"
            ) from None
        raise UserError(f"{path}: not found, but {benchmark_schema.TABLE} names it") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a NumPy array ({error})") from None
