"""From a position in an endless stream to the slice that is read there, in constant memory and time.

A sampler splits a corpus into strata (one a corpus of a mixture and, with a temperature, one a modality of it) and each
stratum into slots. Without a cap a slot is a slice. With a cap a longer series has `cap` slots, each standing for a run
of neighboring slices of which every draw takes one: a series counts at most `cap` times in an epoch, yet all of its
slices are seen in the end. What is kept in memory is a table of runs of consecutive slices, about one a series.
"""

import dataclasses

import numpy as np

_PATTERN_LENGTH = 4096  # weights are rounded to 1/4096 when there are several strata


@dataclasses.dataclass(frozen=True)
class Stratum:
    """Runs of consecutive slices: `start` int64 (R,) index of the first slice, `length` int64 (R,) slices, `slots`
    int64 (R + 1,) cumulated slots, `weight` the share of the stream, `name` for reports."""

    name: str
    weight: float
    start: np.ndarray
    length: np.ndarray
    slots: np.ndarray

    @property
    def size(self) -> int:
        """Slots, the draws in one epoch of this stratum."""
        return int(self.slots[-1])


def runs(
    groups: np.ndarray, keep: np.ndarray | None, cap: int | None, block: int = 1 << 24
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, length, slots) of the consecutive slices that are kept, split where `groups` (N,) changes.

    `keep` is bool (N,) or None for all. Slices of one group are consecutive. Reads `block` rows at a time.
    """
    starts, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    total = len(groups)
    for low in range(0, total, block):
        high = min(low + block, total)
        part = np.asarray(groups[low:high])
        change = np.empty(high - low, bool)
        change[0] = low == 0 or groups[low - 1] != part[0]
        np.not_equal(part[1:], part[:-1], out=change[1:])
        if keep is not None:
            here = np.asarray(keep[low:high])
            before = np.empty_like(here)
            before[0], before[1:] = (low > 0 and keep[low - 1]), here[:-1]
            change = here & (change | ~before)
        first = np.flatnonzero(change)
        size = (
            np.add.reduceat(np.ones(high - low, np.int64) if keep is None else here.astype(np.int64), first)
            if len(first)
            else np.empty(0, np.int64)
        )
        head = int(first[0]) if len(first) else high - low  # rows that continue the last run of the block before
        continued = head if keep is None else int(here[:head].sum())
        if continued:
            lengths[-1][-1] += continued
        if len(first):
            starts.append(first + low)
            lengths.append(size)
    start, length = np.concatenate(starts), np.concatenate(lengths)
    if cap is None:
        return start, length, np.concatenate([[0], np.cumsum(length)])
    # A series cut into several runs by a filter shares its slots among them.
    series = np.asarray(groups[start]) if len(start) else start
    fresh = np.ones(len(start), bool)
    fresh[1:] = series[1:] != series[:-1]
    of = np.cumsum(fresh) - 1
    whole = np.bincount(of, weights=length).astype(np.int64) if len(start) else np.empty(0, np.int64)
    stop = np.cumsum(length) - np.repeat((np.cumsum(whole) - whole), np.bincount(of) if len(start) else 0)
    slots_of = np.minimum(whole, cap)[of]
    slots = stop * slots_of // whole[of] - (stop - length) * slots_of // whole[of]
    used = slots > 0
    return start[used], length[used], np.concatenate([[0], np.cumsum(slots[used])])


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The order in which slices are drawn; a pure function of (seed, position).

    Within one epoch of a stratum no slot comes twice; the next epoch has another order. Draws of the strata are
    interleaved evenly, so that any long batch holds them in the proportion of the weights.
    """

    strata: tuple[Stratum, ...]
    _pattern: np.ndarray
    _rank: np.ndarray
    _quota: np.ndarray

    @classmethod
    def from_strata(cls, strata: list[Stratum]) -> "Sampler":
        """Sampler of strata with at least one slot and a positive weight each."""
        weights = np.array([s.weight for s in strata], np.float64)
        if len(strata) == 1:
            quota = np.ones(1, np.int64)
        else:
            quota = np.maximum(1, np.round(weights / weights.sum() * _PATTERN_LENGTH).astype(np.int64))
        owner = np.repeat(np.arange(len(strata)), quota)
        rank = np.concatenate([np.arange(q) for q in quota])
        order = np.argsort((rank + 0.5) / quota[owner], kind="stable")
        return cls(tuple(strata), owner[order], rank[order], quota)

    def __len__(self) -> int:
        """Slots of all strata: the draws after which every slot was drawn once on average."""
        return sum(s.size for s in self.strata)

    def records(self, positions: np.ndarray, seed: int) -> np.ndarray:
        """Indices int64 into the corpus, of the shape of `positions` (int64, non-negative)."""
        positions = np.asarray(positions, np.int64)
        flat = positions.reshape(-1)
        turn, place = np.divmod(flat, len(self._pattern))
        owner = self._pattern[place]
        draw = turn * self._quota[owner] + self._rank[place]
        out = np.empty(flat.shape, np.int64)
        for number, stratum in enumerate(self.strata):
            mine = np.flatnonzero(owner == number)
            if not len(mine):
                continue
            epoch, slot = np.divmod(draw[mine], stratum.size)
            key = _mix(
                _mix(np.full(len(mine), (seed << 8) + number & (1 << 64) - 1, np.uint64)) + epoch.astype(np.uint64)
            )
            slot = _permute(slot, stratum.size, key)
            run = np.searchsorted(stratum.slots, slot, side="right") - 1
            slots = stratum.slots[run + 1] - stratum.slots[run]
            local, length = slot - stratum.slots[run], stratum.length[run]
            low, high = local * length // slots, (local + 1) * length // slots
            pick = _mix(key ^ slot.astype(np.uint64)) % (high - low).astype(np.uint64)
            out[mine] = stratum.start[run] + low + pick.astype(np.int64)
        return out.reshape(positions.shape)


def _mix(x: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of uint64 that scatters every bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _permute(x: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Image of x (int64, in [0, size)) under the permutation chosen by `key`: a Feistel network with cycle walking
    (Black and Rogaway 2002), six rounds."""
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    low_bits = np.uint64((1 << int(half)) - 1)
    out, todo = x.astype(np.uint64), np.arange(len(x))
    while len(todo):
        left, right, k = out[todo] >> half, out[todo] & low_bits, key[todo]
        for turn in range(6):
            left, right = right, left ^ (_mix(k + np.uint64(turn) ^ right << np.uint64(32)) & low_bits)
        out[todo] = left << half | right
        todo = todo[out[todo] >= size]
    return out.astype(np.int64)
