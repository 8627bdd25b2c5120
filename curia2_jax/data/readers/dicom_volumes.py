"""The volumes that the frames of a DICOM series are: a series is more than its UID.

Echoes, phases, b-values, stacks, acquisitions and times may share a series. Frames whose elements differ are volumes
of their own where they lie between or on top of each other; where they lie side by side, as the blocks of a
step-and-shoot CT, they are one.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from curia2_jax.data.readers.dicom_frames import ORDERING_TAGS, SEPARATING_TAGS, Frame
from curia2_jax.data.readers.volume import Refusal

_SAME_PLACE = 1e-3  # mm
_TIMES = ("TemporalPositionIdentifier", "TriggerTime")  # beats differ, so their order counts where values do not repeat


def volumes_of(frames: list[Frame]) -> tuple[list[list[Frame]], str, int]:
    """Frames split into volumes of distinct positions; the elements that tell them apart ("" for one volume); frames
    that were left out: single slices beside longer volumes.

    Raises:
      Refusal: slices of several patients, or several at one position that nothing tells apart.
    """
    for n, what in enumerate(("patients", "studies")):
        if len({frame.owner[n] for frame in frames}) > 1:
            raise Refusal("irregular_geometry", f"mixed: slices of several {what} in one series")
    groups, told = [frames], []
    for tag in SEPARATING_TAGS:
        if len({frame.tags.get(tag, "") for frame in frames}) > 1:
            parts = [part for group in groups for part in _parts(group, tag)]
            told += [tag] if len(parts) > len(groups) else []
            groups = parts
    parts = [part for group in groups for part in _in_time(group)]
    told += ["time"] if len(parts) > len(groups) else []
    longest = max(map(len, parts))
    whole = [part for part in parts if len(part) > 1 or longest == 1]
    return whole, " and ".join(told), len(frames) - sum(map(len, whole))


def _parts(group: list[Frame], tag: str) -> list[list[Frame]]:
    """Frames by the value of an element, where that makes volumes of them; else the group."""
    by_value: dict[str, list[Frame]] = {}
    for frame in group:
        by_value.setdefault(frame.tags.get(tag, ""), []).append(frame)
    parts = [by_value[value] for value in sorted(by_value, key=_natural)]
    if len(parts) == 1:
        return parts
    if tag in ("StackID", "FrameOfReferenceUID"):  # PS3.3 C.7.6.16.2.2.4, C.7.4.1: one place means nothing in another
        if min(map(len, parts)) == 1:
            raise Refusal("irregular_geometry", f"mixed: single slices by {tag}")
        return parts
    places = [_places(part) for part in parts]
    if max(map(len, parts)) == 1 and np.ptp(np.concatenate(places)) > _SAME_PLACE:
        return [group]  # every slice has a value of its own
    if tag in _TIMES and not (len({len(part) for part in parts}) == 1 and all(map(_distinct, places))):
        return [group]
    ends = sorted((place.min(), place.max()) for place in places)
    if tag in _TIMES and min(map(np.ptp, places)) < 0.5 * np.ptp(ends):
        return [group]  # some slices that were acquired at the same time of a heart beat
    between = any(low <= high + _SAME_PLACE for (_, high), (low, _) in itertools.pairwise(ends))
    return parts if between else [group]


def _natural(text: str) -> tuple[bool, float, str]:
    """Magnitude before phase, numbers in their order."""
    words = text.split("\\")
    try:
        return False, float(text), text
    except ValueError:
        return not {"M", "MAGNITUDE"} & set(words), np.inf, text


def _places(frames: Sequence[Frame]) -> np.ndarray:
    """(n,) millimeters along the normal.

    Raises:
      Refusal: the frames have no common normal.
    """
    axes = np.array([frame.rows_columns for frame in frames])
    if np.abs(axes - axes[0]).max() > 1.1e-3:
        raise Refusal("irregular_geometry", "slices of several orientations in one series")
    return np.array([frame.origin for frame in frames]) @ np.cross(*axes[0])


def _distinct(places: np.ndarray) -> bool:
    return len(places) < 2 or float(np.diff(np.sort(places)).min()) > _SAME_PLACE


def _in_time(group: list[Frame]) -> list[list[Frame]]:
    """Volumes that repeat the same positions (fMRI, directions of diffusion, perfusion, heart phases), in the order of
    time.

    Raises:
      Refusal: some positions repeat more often than others, or nothing tells the order.
    """
    places = _places(group)
    if _distinct(places):
        return [group]
    order = np.argsort(places, kind="stable")
    slot = np.empty(len(group), int)
    slot[order] = np.cumsum(np.diff(places[order], prepend=places[order][0]) > _SAME_PLACE)
    counts = np.bincount(slot)
    if counts.min() == counts.max():
        for tag in ORDERING_TAGS:
            ranks = _ranks([frame.tags.get(tag, "") for frame in group], slot, tag == "InstanceNumber")
            if ranks is not None:
                return [[group[i] for i in np.flatnonzero(ranks == k)] for k in range(counts[0])]
    raise Refusal("irregular_geometry", f"several slices at one position among {len(group)}")


def _ranks(texts: list[str], slot: np.ndarray, regular: bool) -> np.ndarray | None:
    """(n,) place of each frame in the time series of its position `slot`; None where the values do not tell. `regular`
    asks that the values run through all positions again and again, or through all times of a position: numbers that an
    export gave at random do not."""
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        return None
    order = np.lexsort((values, slot))
    table, rows = values[order].reshape(slot.max() + 1, -1), slot.max() + 1
    if not np.isfinite(values).all() or not (np.diff(table, axis=1) > 0).all():
        return None
    if regular:
        sequence = slot[np.lexsort((slot, values))]
        by_volume, by_slice = sequence.reshape(-1, rows), sequence.reshape(rows, -1)
        if not ((by_volume == by_volume[0]).all() or (by_slice == by_slice[:, :1]).all()):
            return None
    ranks = np.empty(len(slot), int)
    ranks[order] = np.tile(np.arange(table.shape[1]), rows)
    return ranks
