"""What a reader hands over: a header, a volume, or a refusal.

Every volume has its voxels in one order, (S, P, L): slices towards Superior, rows towards Posterior, columns towards
Left.
"""

import dataclasses
import itertools
import re

import nibabel as nib
import numpy as np

# Why a file gives no slices. The list is closed: quarantine tables and tests count on it.
REASONS = {
    "corrupt": "damaged, cut off or empty; its checksum or its decoder says so",
    "wrong_format": "the content is not what the file name says",
    "unsupported_pixel_type": "color, complex or vector voxels",
    "unsupported_dimensions": "not a volume: 2-D without a place in space, or 5-D",
    "no_geometry": "nothing says where left is",
    "irregular_geometry": "tilted, sheared, unevenly spaced, repeated or mixed slices",
    "not_hounsfield": "a CT whose values are not Hounsfield units and whose offset cannot be found",
    "unknown_modality": "neither the file nor its numbers say whether it is CT or MR",
    "too_small": "a side of the slices is under 32 pixels",
    "too_large": "more slices in one series than a shard holds",
    "no_foreground": "nothing but background in every slice",
    "label_map": "flat regions of whole numbers: a segmentation that --labels does not name",
    "not_an_image": "DICOM without an image, or without what is needed to read it",
    "wrong_modality": "neither CT nor MR",
    "derived_object": "secondary capture, dose, structure set, segmentation, presentation or report",
    "localizer": "a scout view",
    "lossy_compression": "compressed with loss",
    "unsafe_archive": "an archive or a header with paths that leave it, or an archive with too much in it",
    "unreadable": "the operating system does not let the file be read",
    "reader_failed": "a fault of a reader, worth reporting",
    "other_file": "not a medical image format",
    "duplicate": "the same voxels as another series",
    "late": "new files of a series that was in the corpus before they came",
    "withdrawn": "of a patient who was forgotten",
    "label_unpaired": "a label map without its image, or whose image was refused",
    "label_geometry": "a label map on another grid than its image",
    "label_values": "values of a label map that are no labels",
}

_CONTROL, _DETAIL = re.compile(r"[\x00-\x1f\x7f-\x9f]+"), 500  # characters
# Cosine between two axes of a volume above which it counts as sheared: 0.3 degrees off the right angle.
_MAX_SHEAR = 0.005
# Millimetres between voxels; other numbers are another unit.
_SPACINGS = (0.05, 50.0)


class Refusal(ValueError):
    """A file that gives no slices: `reason` is a key of REASONS, `detail` says what was found, in one line without the
    control characters of a damaged file."""

    def __init__(self, reason: str, detail: str):
        if reason not in REASONS:
            raise KeyError(f"{reason!r} is no reason of a refusal; REASONS has them")
        detail = _CONTROL.sub(" ", detail)[:_DETAIL]
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self):
        return Refusal, (self.reason, self.detail)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself before its voxels are read.

    Attributes:
      shape: (X, Y, Z) voxels of one volume, in the order of the file.
      frames: volumes of that shape in the file.
      affine: (4, 4) float64, (x, y, z, 1) -> RAS+ millimeters; None where the header does not say.
      across: axis of `shape` that counts acquired slices, None where the file does not say.
      series: name of the series that the file is a part of, "" where it has none.
      owner: differs between patients and studies that share the name of a series.
      stack: of a file with one slice, equal for those that may lie on one grid, "" where nothing says so.
      place: millimeters of that slice along the normal of the stack.
    """

    shape: tuple[int, int, int]
    frames: int = 1
    affine: np.ndarray | None = None
    across: int | None = None
    series: str = ""
    owner: str = ""
    stack: str = ""
    place: float = 0.0


@dataclasses.dataclass
class Volume:
    """One series as a regular grid.

    Attributes:
      raw: (S, P, L) stored numbers of any real dtype; perhaps a view of a file.
      slope, intercept: raw * slope + intercept is HU for CT, the scanner's unit for MR.
      affine: (4, 4) float64, (s, p, l, 1) -> millimeters in RAS+, the world of NIfTI.
      modality: "CT", "MR", or "" where the file does not say.
      patient, study, series: identifiers as the file has them, "" where it has none.
      across: axis of `raw` along which the slices were acquired, None where the file does not say.
      padding: raw numbers that stand for "nothing was measured here".
      notes: (what, detail) of everything that was corrected or assumed.
    """

    raw: np.ndarray
    affine: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    modality: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    across: int | None = None
    padding: tuple[float, ...] = ()
    notes: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    @property
    def spacing(self) -> np.ndarray:
        """(3,) float64 millimeters between slices, rows and columns."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def obliquity(self) -> float:
        """Largest angle between an axis of the volume and the nearest one of the patient, degrees."""
        return float(np.degrees(np.abs(nib.affines.obliquity(self.affine)).max()))

    @property
    def voxels(self) -> np.ndarray:
        """(S, P, L) float32 in HU or the scanner's unit."""
        return self.raw.astype(np.float32) * np.float32(self.slope) + np.float32(self.intercept)


def from_xyz(raw: np.ndarray, affine: np.ndarray, across: int | None = None, **fields) -> Volume:
    """Volume of raw (X, Y, Z) whose affine maps (x, y, z, 1) to RAS+ millimeters: turned to (S, P, L) along the nearest
    axes of the patient, without copying. `across` is the axis of the (X, Y, Z) array that counts acquired slices.

    Raises:
      Refusal: the affine is that of no regular grid.
    """
    check_affine(affine)
    orientation = nib.io_orientation(affine)
    target = nib.orientations.axcodes2ornt("SPL")
    transform = nib.orientations.ornt_transform(orientation, target)
    turned = affine @ nib.orientations.inv_ornt_aff(transform, raw.shape)
    if across is not None:
        across = int(transform[across, 0])
    return Volume(nib.apply_orientation(raw, transform), turned, across=across, **fields)


def is_regular(places: np.ndarray, slack: float = 0.0) -> bool:
    """Whether ascending places (n,), mm, follow each other at one distance, if each may be off by `slack`."""
    steps = np.diff(places)
    if len(steps) == 0 or np.abs(steps - np.median(steps)).max() <= max(0.05 * float(np.mean(steps)), 0.02):
        return bool((steps > 1e-3).all())
    count = np.arange(len(places))
    line = np.polyval(np.polyfit(count, places, 1), count)
    # A line through all slices within slack exists; that of least squares is at most half of it beside it.
    return bool(np.abs(places - line).max() <= 1.5 * slack < 0.5 * float(np.mean(steps)))


def assumed_affine(orientation: str, spacings: np.ndarray) -> np.ndarray:
    """(4, 4) affine of voxels `spacings` (3,) mm apart whose axes run to `orientation`, such as "RAS"."""
    turn = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(orientation), (1, 1, 1))
    return turn @ np.diag([*spacings, 1.0])


def check_affine(affine: np.ndarray) -> None:
    """That an affine (4, 4) is finite with three independent, orthogonal axes.

    Raises:
      Refusal: it is not.
    """
    axes = affine[:3, :3]
    length = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or not (length >= _SPACINGS[0]).all() or not (length <= _SPACINGS[1]).all():
        raise Refusal("no_geometry", f"voxel sizes {length.tolist()} mm")
    unit = axes / length
    cosine = max(abs(float(unit[:, a] @ unit[:, b])) for a, b in itertools.combinations(range(3), 2))
    if cosine > _MAX_SHEAR:
        raise Refusal("irregular_geometry", f"axes {np.degrees(np.arccos(min(cosine, 1))):.1f} degrees apart, not 90")
