"""Layouts of data sets whose file names say which case a file is of, and whether it is an image or labels of it.

BIDS: [DATASET/][derivatives/PIPELINE/]sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz; labels are _dseg, _mask and _probseg
  (bids-specification 1.10, "Imaging derivatives").
nnU-Net: DATASET/imagesTr/CASE_0000.nii.gz, one file a channel; labels are DATASET/labelsTr/CASE.nii.gz.
Medical Segmentation Decathlon: the same without channels.
Elsewhere, files of one folder whose names differ in the name of an MR sequence alone are channels of one case.
"""

import dataclasses
import pathlib
import re

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")  # of volumes, in the order of preference
_ENDINGS = (*ENDINGS, ".seg.nrrd")
# What the name of a label map has that the name of its image, in the same folder, has not.
LABEL_ENDINGS = (
    *("_seg", "-seg", ".seg", "_segmentation", "-segmentation"),
    *("_label", "-label", "_labels", "_labelmap", "-label-map"),
    *("_mask", "-mask", "_roi", "_lesion", "_gt"),
)
_LOWER = (
    "t1",
    "t1c",
    "t1ce",
    "t1gd",
    "t1n",
    "t1w",
    "t2",
    "t2w",
    "t2f",
    "t2s",
    "flair",
    "pd",
    "pdw",
    "dwi",
    "adc",
    "swi",
)
CHANNELS = (*_LOWER, *(name.upper() for name in _LOWER), *("T1w", "T1ce", "T1Gd", "T2w", "PDw"))
_CHANNEL = re.compile(rf"[_-](?:{'|'.join(_LOWER)})$", re.IGNORECASE)
_SPLITS = re.compile(r"(images|labels)(Tr|Ts|Va|Val)$")
_MEMBER = re.compile(r"(\.zip)!", re.IGNORECASE)
_BIDS = re.compile(r"sub-[A-Za-z0-9]+(?:_[A-Za-z]+-[A-Za-z0-9+.]+)*_[A-Za-z0-9]+$")
_BIDS_LABELS = ("dseg", "mask", "roi", "probseg")
# What a label map says of itself and its image does not.
_OWN = ("desc", "label", "atlas", "seg", "scale", "dir")


@dataclasses.dataclass(frozen=True)
class Case:
    """Whom a file is of: `patient` and `study` are unique below the folder that was walked, `key` is equal for an image
    and its labels, `labels` is the set that a label map's labels are of, "" for an image. `known`: the layout says that
    `patient` is one."""

    patient: str
    study: str
    key: str
    labels: str = ""
    known: bool = False


def as_path(name: str) -> str:
    """A name in which a member lies in its archive like in a folder."""
    return _MEMBER.sub(r"\1/", name)


def image_of(base: str) -> str | None:
    """Name without endings of the image that a label map called `base` is of, by LABEL_ENDINGS; None for others."""
    ending = next((end for end in sorted(LABEL_ENDINGS, key=len, reverse=True) if base.lower().endswith(end)), "")
    return base[: -len(ending)] if ending and len(ending) < len(base) else None


def stem(name: str) -> str:
    """Name of a file without the endings of volumes."""
    ending = next((end for end in sorted(_ENDINGS, key=len, reverse=True) if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)]


def case_of(name: str) -> Case | None:
    """The case of a file by its path below the folder that was walked; None where no layout is known."""
    path = pathlib.PurePosixPath(as_path(name))
    base = stem(path.name)
    if path.name.startswith(".") or base == path.name:
        return None
    if _BIDS.match(base):
        return _bids(path, base)
    split = _SPLITS.match(path.parent.name)
    return _split(path.parent, base, split) if split else None


def without_channel(base: str) -> str:
    """A stem without the name of an MR sequence at its end."""
    return _CHANNEL.sub("", base)


def _bids(path: pathlib.PurePosixPath, base: str) -> Case:
    *parts, suffix = base.split("_")
    entities = dict(part.split("-", 1) for part in parts)
    above = path.parent.parts
    ends = [i for i, part in enumerate(above) if part == "derivatives" or part.startswith("sub-")]
    data_set = "/".join(above[: ends[0]] if ends else above)
    patient = f"{data_set}/sub-{entities['sub']}"
    study = f"{patient}/ses-{entities['ses']}" if "ses" in entities else patient
    shared = "_".join(f"{key}-{value}" for key, value in sorted(entities.items()) if key not in _OWN)
    labels = ""
    if suffix in _BIDS_LABELS:
        what = entities.get("desc") or entities.get("label") or entities.get("atlas")
        labels = "segmentation" if suffix == "dseg" and not what else f"{what or ''} {suffix}".strip()
    return Case(patient, study, f"{data_set}/{shared}", labels, known=True)


def _split(folder: pathlib.PurePosixPath, base: str, split: re.Match) -> Case:
    case = base if split[1] == "labels" else re.sub(r"_\d{4}$", "", base)
    patient = f"{folder.parent}/{case}"
    return Case(patient, patient, f"{folder.parent}/{split[2]}/{case}", "segmentation" if split[1] == "labels" else "")
