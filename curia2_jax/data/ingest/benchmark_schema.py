"""The folder of a benchmark, in CuriaBench's layout: its files, fields and kinds, said once for writer and reader.

<task>/task.json                        a `Description`
<task>/<split>/extra_data.npy           structured array, one row a sample: filename, target, series, patient, modality
<task>/<split>/images/<filename>.npy    (H, W) or, for a volume, (H, W, S): raw intensities (HU or scanner units)
<task>/<split>/images/<stem>.mask.npy   same shape, nonzero under the structure that is asked about;
                                        in segmentation the label map, 0 = background
"""

from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np

from curia2_jax.data.corpus import layout

TASK = "task.json"
TABLE = layout.SAMPLES
IMAGES = "images"
IMAGE_SUFFIX, MASK_SUFFIX = ".npy", ".mask.npy"
TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, TEST)  # what every task has; VAL, to choose on, may be there too

FILENAME, TARGET, SERIES, MODALITY = "filename", "target", "series_id", "modality"
PATIENT = layout.PATIENT_OF_SAMPLE
SPACING = "spacing"  # (2,), millimeters between rows and columns; in segmentation
AFFINE = "affine"  # (4, 4), of volumes: (slice, row, column, 1) -> millimeters in LPS; NaN where it is not known
REQUIRED = (FILENAME, TARGET)  # tables of others may lack the rest

IMAGE_DTYPE, MASK_DTYPE = np.float32, np.uint8


class Kind(NamedTuple):
    """A kind of task: `name` in task.json, the dtype of a target, and whether a target is the index of a class."""

    name: str
    target: type
    has_classes: bool


CLASSIFICATION = Kind("classification", np.int64, has_classes=True)
REGRESSION = Kind("regression", np.float64, has_classes=False)
SURVIVAL = Kind("survival", np.float64, has_classes=False)  # times, negative where censored
RETRIEVAL = Kind("retrieval", np.int64, has_classes=True)
MULTI_LABEL = Kind("multi-label", np.float64, has_classes=False)  # (K,) a sample: 0, 1, or NaN = unknown
SEGMENTATION = Kind("segmentation", np.int64, has_classes=False)  # label maps, in the place of masks
KINDS = (CLASSIFICATION, REGRESSION, SURVIVAL, RETRIEVAL, MULTI_LABEL, SEGMENTATION)


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
    classes: NotRequired[dict[str, str]]  # index -> name, in kinds that have classes
    values: NotRequired[list[int]]  # what each class is called in the label maps that it was cut from


def table_dtype(kind: Kind) -> np.dtype:
    """One row of a split's table."""
    return np.dtype([(FILENAME, "U16"), (TARGET, kind.target), (SERIES, "U32"), (PATIENT, "U32"), (MODALITY, "U4")])


def image_path(split: Path, filename: str) -> Path:
    """File of a sample's image; `filename` comes with or without its suffix."""
    return split / IMAGES / (filename.removesuffix(IMAGE_SUFFIX) + IMAGE_SUFFIX)


def mask_path(image: Path) -> Path:
    """File of the mask that belongs to an image."""
    return image.with_name(image.name.removesuffix(IMAGE_SUFFIX) + MASK_SUFFIX)
