"""Which files of an archive are one series."""

import collections
import dataclasses

import numpy as np

from curia2_jax.data.readers.volume import is_regular


@dataclasses.dataclass(frozen=True)
class Found:
    """One file that belongs to a scan. `group` is equal for the files of one series, `slices` bounds what it gives,
    `depth` is its own slices, `owner` differs between patients and studies. Of a file with one slice, `stack` is equal
    for the slices that may lie on one grid, and `place` is its millimeter there."""

    file: str
    format: str
    group: str
    frames: int
    slices: int
    depth: int = 1
    owner: str = ""
    stack: str = ""
    place: float = 0.0
    size: int = 0  # bytes


def by_owner(items: list[Found]) -> list[list[Found]]:
    """The files of one group as series: a UID that several patients or studies share is one for each of them, unless
    that leaves single slices; those stay together, for the reader to refuse."""
    owners: dict[str, list[Found]] = collections.defaultdict(list)
    for item in items:
        owners[item.owner].append(item)
    if len(owners) == 1 or any(len(part) == 1 and part[0].stack for part in owners.values()):
        return [items]
    return [
        [dataclasses.replace(item, group=f"{item.group}/{number}" if number else item.group) for item in owners[owner]]
        for number, owner in enumerate(sorted(owners))
    ]


def joined(items: list[Found]) -> list[list[Found]]:
    """Groups of one slice each, all of one stack, as series: one if they lie on one grid, since some scanners give
    every slice a UID of its own, else one each."""
    if len(items) > 2 and is_regular(np.sort([item.place for item in items])):
        group = min(item.group for item in items)
        return [[dataclasses.replace(item, group=group) for item in items]]
    return [[item] for item in items]
