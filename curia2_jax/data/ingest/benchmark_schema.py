"""The folder of a benchmark, in CuriaBench's layout: its files, fields and kinds, said once for writer and reader.

<task>/task.json                        a `Description`
<task>/<split>/extra_data.npy           structured array, one row a sample: filename, target, series, patient, modality
<task>/<split>/images/<filename>.npy    (H, W) or, for a volume, (H, W, S): raw intensities (HU or scanner units)
<task>/<split>/images/<stem>.mask.npy   same shape, nonzero under the structure that is asked about;
                                        in segmentation and registration the label map, 0 = background
Tasks of registration have a test split alone, and its table one row a volume:
<task>/test/pairs.csv                   fixed,moving: filenames of the table; two volumes of a pair lie on one grid
<task>/test/images/<stem>.inside.npy    if it is there: same shape, nonzero where features count
<task>/test/images/<stem>.landmarks.npy (n, 3) float: slice, row, column, or mm in LPS, as `landmarks` of task.json says
"""

from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np

from curia2_jax.data.corpus import layout

TASK = "task.json"
TABLE = layout.SAMPLES
IMAGES = "images"
IMAGE_SUFFIX, MASK_SUFFIX = ".npy", ".mask.npy"
LANDMARKS_SUFFIX, INSIDE_SUFFIX = ".landmarks.npy", ".inside.npy"
PAIRS = "pairs.csv"
TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, TEST)  # what every task has; VAL, to choose on, may be there too

FILENAME, TARGET, SERIES, MODALITY = "filename", "target", "series_id", "modality"
PATIENT = layout.PATIENT_OF_SAMPLE
SPACING = "spacing"  # (2,), millimeters between rows and columns; in segmentation
AFFINE = "affine"  # (4, 4), of volumes: (slice, row, column, 1) -> millimeters in LPS; NaN where it is not known
REQUIRED = (FILENAME, TARGET)  # tables of others may lack the rest

IMAGE_DTYPE, MASK_DTYPE = np.float32, np.uint8


class Kind(NamedTuple):
    """A kind of task: `name` in task.json, the dtype of a target, and whether a target is the index of a class.

    `has_targets`: whether the table has them, or files beside the images; `of_pairs`: whether samples are pairs.
    """

    name: str
    target: type
    has_classes: bool
    has_targets: bool = True
    of_pairs: bool = False


CLASSIFICATION = Kind("classification", np.int64, has_classes=True)
REGRESSION = Kind("regression", np.float64, has_classes=False)
SURVIVAL = Kind("survival", np.float64, has_classes=False)  # times, negative where censored
RETRIEVAL = Kind("retrieval", np.int64, has_classes=True)
MULTI_LABEL = Kind("multi-label", np.float64, has_classes=False)  # (K,) a sample: 0, 1, or NaN = unknown
SEGMENTATION = Kind("segmentation", np.int64, has_classes=False, has_targets=False)  # label maps, in place of masks
# Scored by label maps, and by landmarks where there are some; or by landmarks alone.
REGISTRATION = Kind("registration", np.int64, has_classes=False, has_targets=False, of_pairs=True)
LANDMARKS = Kind("landmark-registration", np.int64, has_classes=False, has_targets=False, of_pairs=True)
KINDS = (CLASSIFICATION, REGRESSION, SURVIVAL, RETRIEVAL, MULTI_LABEL, SEGMENTATION, REGISTRATION, LANDMARKS)

VOXELS, MILLIMETERS = "voxels", "mm"  # of landmarks


class Description(TypedDict):
    """The content of task.json. `mask`: whether samples have one; `modality`: of all samples, "" where they differ.

    What only a reader of the file wants to know may be missing: planes, the kind of labels, how the splits were made,
    and the number of patients.
    """

    name: str
    kind: str
    mask: bool
    modality: NotRequired[str]
    axes: NotRequired[str]  # of volumes: HWS, or SHW where slices stand first
    plane: NotRequired[str]
    labels: NotRequired[str]
    split: NotRequired[str]
    patients: NotRequired[int]
    classes: NotRequired[dict[str, str]]  # index -> name, in kinds that have classes or label maps
    landmarks: NotRequired[str]  # of pairs: `VOXELS` or `MILLIMETERS`, where they have some
    values: NotRequired[list[int]]  # what each class is called in the label maps that it was cut from


def table_dtype(kind: Kind) -> np.dtype:
    """One row of a split's table."""
    return np.dtype([(FILENAME, "U16"), (TARGET, kind.target), (SERIES, "U32"), (PATIENT, "U32"), (MODALITY, "U4")])


def image_path(split: Path, filename: str) -> Path:
    """File of a sample's image; `filename` comes with or without its suffix."""
    return split / IMAGES / (filename.removesuffix(IMAGE_SUFFIX) + IMAGE_SUFFIX)


def mask_path(image: Path) -> Path:
    """File of the mask that belongs to an image."""
    return beside(image, MASK_SUFFIX)


def beside(image: Path, suffix: str) -> Path:
    """File with another suffix that belongs to an image."""
    return image.with_name(image.name.removesuffix(IMAGE_SUFFIX) + suffix)
