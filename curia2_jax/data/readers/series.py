"""Which files of an archive are one series."""

import collections
import dataclasses

import numpy as np

from curia2_jax.data.readers.volume import is_regular


@dataclasses.dataclass(frozen=True)
class Found:
    """One file that belongs to a scan. `group` is equal for the files of one series, `slices` bounds what it gives,
    `depth` is its own slices, `owner` differs between patients and studies. Of a file with one slice, `stack` is equal
    for the slices that may lie on one grid, and `place` is its millimetre there."""

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


def series_of(found: list[Found]) -> dict[tuple[str, str], list[Found]]:
    """Files by (format, name of the series).

    A UID that several patients or studies share is a series for each, unless that leaves single slices: those stay
    together, for the reader to refuse. Series of one slice each that lie on one grid are one: some scanners give every
    slice a UID of its own.
    """
    groups: dict[tuple[str, str], list[Found]] = collections.defaultdict(list)
    for item in found:
        groups[item.format, item.group].append(item)
    out: dict[tuple[str, str], list[Found]] = {}
    singles: dict[tuple[str, str], list[Found]] = collections.defaultdict(list)
    for (name, group), items in groups.items():
        if len(items) == 1 and items[0].stack:
            singles[name, items[0].stack].append(items[0])
            continue
        owners: dict[str, list[Found]] = collections.defaultdict(list)
        for item in items:
            owners[item.owner].append(item)
        if len(owners) == 1 or any(len(part) == 1 and part[0].stack for part in owners.values()):
            out[name, group] = items
            continue
        for number, owner in enumerate(sorted(owners)):
            out[name, f"{group}/{number}" if number else group] = owners[owner]
    for (name, _), items in singles.items():
        places = np.sort([item.place for item in items])
        if len(items) > 2 and is_regular(places):
            out[name, min(item.group for item in items)] = items
        else:
            out |= {(name, item.group): [item] for item in items}
    return out
