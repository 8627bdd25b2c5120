"""A corpus of slices: shards, index and contract, opened lazily and read at random.

A folder is a corpus when it holds `contract.json`, which ingest writes last.
"""

import collections
import functools
import hashlib
import json
import math
import mmap
import pathlib
import re
import threading
from typing import Any

import numpy as np
import pyarrow as pa

from curia2_jax.data.corpus import index, layout, records
from curia2_jax.data.corpus.sampling import Sampler, Stratum, runs
from curia2_jax.data.corpus.spans import SpanReader, check_sizes
from curia2_jax.data.corpus.where import matching
from curia2_jax.errors import UserError

VERSION = 2
BLOCK = 1 << 22  # rows of the index that are looked at together
# NumPy reads the header of a file as Python source. CPython 3.11 counts the depth of that for all threads together and
# raises SystemError ("AST constructor recursion depth mismatch") when two of them do it at once.
_OPEN_LOCK = threading.Lock()


class Corpus:
    """One corpus, or a mixture written "A:2,B:1": folders with weights, the slices of A first.

    Cheap to open, small to pickle, safe to read from many threads.

    Raises:
      UserError: a folder is not a corpus.
    """

    def __init__(self, spec: str | pathlib.Path):
        self.spec = str(spec)
        self._parts = [(_Folder(path), weight) for path, weight in parse(self.spec)]
        self._columns: dict[str, np.ndarray] = {}
        self._offsets = np.cumsum([0] + [len(folder) for folder, _ in self._parts])

    def __reduce__(self):
        return Corpus, (self.spec,)

    def __len__(self) -> int:
        return int(self._offsets[-1])

    @property
    def contract(self) -> index.Contract | index.Mixture:
        """What every slice went through: options, versions, counts, the `largest` height and width, hash. Of a
        mixture: the contracts, weights, largest and hash."""
        if len(self._parts) == 1:
            return self._parts[0][0].contract
        contracts = self.contracts
        weights = [weight for _, weight in self._parts]
        text = json.dumps([[c["hash"] for c in contracts], weights])
        largest = np.max([c["largest"] for c in contracts], axis=0).tolist()
        digest = hashlib.sha256(text.encode()).hexdigest()
        return {"corpora": contracts, "weights": weights, "largest": largest, "hash": digest}

    @property
    def contracts(self) -> list[index.Contract]:
        """The contract of every folder."""
        return [folder.contract for folder, _ in self._parts]

    def check_shards(self) -> None:
        """Looks at the size of every shard. Raises UserError when one is lost, shortened or another."""
        for folder, _ in self._parts:
            folder.check_shards()

    def column(self, name: str) -> np.ndarray:
        """Index column (N,), kept once asked for. Numbers of a single corpus are memory-mapped; text becomes an array
        of strings.

        Raises:
          KeyError: no such column.
        """
        if name not in self._columns:
            columns = [folder.column(name) for folder, _ in self._parts]
            self._columns[name] = columns[0] if len(columns) == 1 else np.concatenate(columns)
        return self._columns[name]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """What a loader asks of the slices `indices` (n,): a structured array (n,) of dtype index.ROW, for about one
        page of the disk a slice. Shards are counted within each corpus of a mixture."""
        part = np.searchsorted(self._offsets, indices, side="right") - 1
        out = np.empty(len(indices), index.ROW)
        for number, (folder, _) in enumerate(self._parts):
            here = part == number
            out[here] = folder.rows[indices[here] - self._offsets[number]]
        return out

    def take(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Values of an index column at `indices`, without loading the whole column of a mixture."""
        part = np.searchsorted(self._offsets, indices, side="right") - 1
        places = [part == number for number in range(len(self._parts))]
        found = [
            folder.take(name, indices[here] - offset)
            for (folder, _), here, offset in zip(self._parts, places, self._offsets, strict=False)
        ]
        values = np.empty(len(indices), np.result_type(*found))
        for here, some in zip(places, found, strict=True):
            values[here] = some
        return values

    def series(self) -> tuple[np.ndarray, np.ndarray]:
        """First slice of each series and its number of slices, both int64 (number of series,), in order."""
        found = [runs(folder.codes("series")[0], None, None) for folder, _ in self._parts]
        first = np.concatenate([run[0] + offset for run, offset in zip(found, self._offsets, strict=False)])
        return first, np.concatenate([run[1] for run in found])

    def counts(self, name: str) -> dict[str, int]:
        """Slices of each value of a text column, a block of the column in memory at a time."""
        total: collections.Counter[str] = collections.Counter()
        for folder, _ in self._parts:
            codes, vocabulary = folder.codes(name)
            count = np.zeros(len(vocabulary), np.int64)
            for start in range(0, len(codes), BLOCK):
                count += np.bincount(codes[start : start + BLOCK], minlength=len(count))
            total.update(dict(zip(vocabulary.to_pylist(), count.tolist(), strict=True)))
        return total

    @property
    def reduces(self) -> bool:
        """Whether all slices can be read at half their size."""
        codecs = [folder.contract.get("record", {}).get("codec") for folder, _ in self._parts]
        return set(codecs) <= {codec.name for codec in records.CODECS.values() if codec.reduces}

    def read(self, i: int, out: np.ndarray | None = None, reduce: int = 0) -> np.ndarray:
        """Slice i, int16 (height, width), as records.decode makes it; into `out` of its shape when given. Raises
        records.CorruptRecord, and UserError when its shard is lost or shortened."""
        part = int(np.searchsorted(self._offsets, i, side="right")) - 1
        if not 0 <= i < len(self):
            raise IndexError(f"slice {i} of {len(self)}")
        return self._parts[part][0].read(int(i - self._offsets[part]), out, reduce)

    def chosen(self, where: str, split: str, held_out: float, exclude: frozenset[str]) -> np.ndarray:
        """Which slices a sampler of these options draws: bool (N,)."""
        kept = [(folder.select(where, split, held_out, exclude), len(folder)) for folder, _ in self._parts]
        return np.concatenate([np.ones(size, bool) if keep is None else keep for keep, size in kept])

    def sampler(
        self,
        *,
        temperature: float | None = None,
        cap: int | None = None,
        where: str = "",
        split: str = "all",
        held_out: float = 0.0,
        exclude: frozenset[str] = frozenset(),
    ) -> Sampler:
        """Which slice is read at which position of the stream.

        temperature: None leaves each corpus as it is; otherwise modality m is drawn with probability in proportion to
            slots_m ** (1 / temperature), so 1 is proportional and large values are equal shares.
        cap: at most so many draws from a series in one epoch.
        where: conditions on index columns, all of which must hold: "modality=CT,plane=axial|coronal,spacing_z<=5".
        split: "all", "train" or "held_out", by a hash of the patient with the share `held_out` of patients held out.
        exclude: keys of patients who are left out.

        Raises:
          UserError: a value that makes no sense, or one that leaves no slice.
        """
        if split not in ("all", "train", "held_out"):
            raise UserError(f"split: found {split!r}; write all, train or held_out")
        if temperature is not None and not temperature >= 1:
            raise UserError(f"temperature: found {temperature}; write a number of 1 or more")
        if cap is not None and cap < 1:
            raise UserError(f"cap: found {cap}; write 1 or more slices a series")
        strata: list[Stratum] = []
        several = len(self._parts) > 1
        for (folder, weight), offset in zip(self._parts, self._offsets, strict=False):
            keep = folder.select(where, split, held_out, exclude)
            series, _ = folder.codes("series")
            mine: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []
            if temperature is None:
                mine.append(("", *runs(series, keep, cap)))
            else:
                codes, vocabulary = folder.codes("modality")
                for code, modality in enumerate(vocabulary.to_pylist()):
                    chosen = codes == code if keep is None else keep & (codes == code)
                    mine.append((f" {modality}", *runs(series, chosen, cap)))
            mine = [m for m in mine if len(m[1])]
            if not mine and several:
                raise UserError(f"{folder.path}: no slice left by where={where!r}, split={split!r}; leave it out")
            shares = [float(m[3][-1]) ** (1 / (temperature or 1)) for m in mine]
            for (name, start, length, slots), share in zip(mine, shares, strict=True):
                strata.append(
                    Stratum(folder.path.name + name, weight * share / sum(shares), start + offset, length, slots)
                )
        if not strata:
            raise UserError(f"{self.spec}: no slice left by where={where!r}, split={split!r}; write a wider condition")
        return Sampler.from_strata(strata)


def parse(spec: str) -> list[tuple[pathlib.Path, float]]:
    """Folders and weights of "A:2,B:1"; a weight left out is 1."""
    if pathlib.Path(spec).is_dir():
        return [(pathlib.Path(spec), 1.0)]
    out = []
    for item in spec.split(","):
        match = re.fullmatch(r"(.+?)(?::([0-9.]+(?:e-?[0-9]+)?))?", item.strip())
        if not match:
            raise UserError(f"corpus: found {spec!r}; write FOLDER or FOLDER:WEIGHT,FOLDER:WEIGHT")
        weight = float(match[2] or 1)
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"corpus: weight {match[2]} of {match[1]}; write a positive number")
        out.append((pathlib.Path(match[1]), weight))
    return out


class _Folder:
    """One corpus folder."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        file = path / layout.CONTRACT
        try:
            self.contract: index.Contract = json.loads(file.read_text())
        except FileNotFoundError:
            what = "an ingest that has not finished: run it again" if (path / layout.WORK).is_dir() else "no corpus"
            raise UserError(
                f"{path}: {what} (no {layout.CONTRACT}); make one with launch/ingest.py --output {path}"
            ) from None
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); run launch/ingest.py again") from None
        if self.contract.get("version") != VERSION:
            found = self.contract.get("version")
            raise UserError(f"{file}: corpus version {found}, this code reads {VERSION}; ingest the studies again")
        self._kept: dict[str, Any] = {}  # arrays of NumPy, and of Arrow where it is text
        lengths = self.contract["shard_lengths"]
        self._shards = [path / layout.shard(i, len(lengths)) for i in range(len(lengths))]
        self._records = SpanReader(self._shards)

    def __len__(self) -> int:
        return self.contract["slices"]

    def _raw(self, name: str) -> np.ndarray:
        if name in self._kept:
            return self._kept[name]
        if name not in index.SCHEMA.names:
            raise KeyError(f"index column {name!r}; there are {', '.join(index.SCHEMA.names)}")
        array = self._load(layout.ROWS)[name] if name in index.PACKED else self._load(name)
        return self._kept.setdefault(name, array)

    def _load(self, name: str) -> np.memmap:
        try:
            with _OPEN_LOCK:
                return np.load(self.path / layout.column(name), mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: index column {name} cannot be read ({error}); ingest again") from None

    @functools.cached_property
    def rows(self) -> np.memmap:
        """index.ROW of every slice (N,). A mapping of its own, advised MADV_RANDOM: columns keep their read-ahead."""
        rows = self._load(layout.ROWS)
        if isinstance(rows.base, mmap.mmap):
            rows.base.madvise(mmap.MADV_RANDOM)
        return rows

    def codes(self, name: str) -> tuple[np.ndarray, pa.StringArray]:
        """(codes int32 (N,), the strings they stand for), both memory-mapped."""
        codes, key = self._raw(name), f"{name}.vocabulary"
        if key not in self._kept:
            try:
                self._kept[key] = index.read_vocabulary(self.path, name)
            except (OSError, pa.ArrowInvalid) as error:
                raise UserError(f"{self.path}: index column {name} cannot be read ({error}); ingest again") from None
        return codes, self._kept[key]

    def column(self, name: str) -> np.ndarray:
        if name not in index.TEXT:
            return self._raw(name)
        codes, vocabulary = self.codes(name)
        return np.array(vocabulary.to_pylist(), np.str_)[codes]

    def take(self, name: str, indices: np.ndarray) -> np.ndarray:
        if name not in index.TEXT:
            return self._raw(name)[indices]
        codes, vocabulary = self.codes(name)
        return np.array(vocabulary.take(pa.array(codes[indices])).to_pylist(), np.str_)

    def read(self, i: int, out: np.ndarray | None, reduce: int) -> np.ndarray:
        row = self.rows[i]
        record = self._records.read(int(row["shard"]), int(row["offset"]), int(row["span"]))
        return records.decode(record, out, reduce)

    def check_shards(self) -> None:
        last = self.rows[np.cumsum(self.contract["shard_lengths"]) - 1]  # of each; rows are in the order of shards
        check_sizes(self._shards, (last["offset"] + last["span"]).tolist(), self.contract["bytes"])

    def select(self, where: str, split: str, held_out: float, exclude: frozenset[str]) -> np.ndarray | None:
        """Slices that meet the conditions, bool (N,); None when all do."""
        keep = matching(where, self._raw, self.codes)
        if split != "all":
            codes, patients = self.codes("patient")
            out = np.fromiter((patient_hash(patient.as_py()) < held_out for patient in patients), bool, len(patients))
            chosen = (out if split == "held_out" else ~out)[codes]
            keep = chosen if keep is None else np.logical_and(keep, chosen, out=keep)
        if exclude:
            codes, patients = self.codes("patient")
            chosen = np.fromiter((patient.as_py() not in exclude for patient in patients), bool, len(patients))[codes]
            keep = chosen if keep is None else np.logical_and(keep, chosen, out=keep)
        return keep


def patient_hash(patient: str) -> float:
    """A number in [0, 1) that depends on the patient's key alone: the split of a patient never changes."""
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:6], "big") / (1 << 48)
