"""A patient withdraws: their slices leave a corpus, and nothing in it leads to them any more.

What changes is first made in `CORPUS/work/`: the shards that hold the patient without them, and the index. The contract
is another one afterwards; it names the hashes of those that it replaces.
"""

import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curia2_jax.data.corpus import index, layout
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import identity, journal, parts, publish, tables
from curia2_jax.data.ingest.audit import series_digests
from curia2_jax.errors import UserError


def forget(folder: pathlib.Path, patients: list[str]) -> index.Contract:
    """The contract of the corpus in `folder` after `patients` were taken out of it: keys of the index column `patient`,
    or identifiers as the archive has them.

    Raises:
      UserError: no corpus, nobody of that name in it, or nobody else.
      OSError: it cannot be written.
    """
    journal.resume(folder)
    (contract,) = Corpus(folder).contracts
    keys = [_key(folder, patient) for patient in patients]
    gone = pq.read_table(folder / layout.INDEX, columns=["series", "shard"], filters=[("patient", "in", keys)])
    if gone.num_rows == contract["slices"]:
        raise UserError(f"--forget {','.join(patients)}: leaves no slice in {folder}; delete the folder")
    series = set(gone.column("series").cast(pa.string()).unique().to_pylist())
    touched = set(gone.column("shard").unique().to_pylist())
    work = folder / layout.WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    moves, changed = _prepare(folder, contract, series, touched)
    told: journal.Journal = {
        "moves": moves,
        "contract": changed,
        "series": sorted(series),
        "sources": sorted(_sources(folder, series)),
        "withdrawn": [identity.fingerprint(told) for told in (*keys, *_voxels(folder, series))],
    }
    journal.carry_out(folder, told)
    return changed


def copies(folder: pathlib.Path, patients: list[str]) -> list[str]:
    """Files that were left out because their voxels are those of a series of `patients`: these may go by other names,
    too. Raises UserError as `forget` does."""
    journal.resume(folder)
    Corpus(folder)  # which it must be
    keys, table = [_key(folder, patient) for patient in patients], folder / layout.LOCAL / layout.QUARANTINE
    if not table.exists():
        return []
    rows = pq.read_table(folder / layout.INDEX, columns=["series"], filters=[("patient", "in", keys)])
    sources = _sources(folder, set(rows.column("series").cast(pa.string()).unique().to_pylist()))
    ends = tuple(f"the same voxels as {source}" for source in sources)
    return [
        row["file"] for row in tables.read_own(table) if row["reason"] == "duplicate" and row["detail"].endswith(ends)
    ]


def _key(folder: pathlib.Path, patient: str) -> str:
    """Key of a patient that is in the corpus."""
    names = index.read_vocabulary(folder, "patient")
    salt = folder / layout.LOCAL / layout.SALT
    options = folder / layout.LOCAL / layout.OPTIONS
    if not salt.exists() and options.exists() and (told := json.loads(options.read_text()).get("salt")):
        salt = pathlib.Path(told)
    found = [patient]
    if salt.is_file():
        found.append(identity.Keys(salt, None, None).key("patient", identity.same(patient)))
    for key in found:
        if pc.is_in(pa.scalar(key), value_set=names).as_py():
            return key
    raise UserError(
        f"--forget {patient}: nobody in {folder}; write a key of the column patient of {layout.INDEX}, "
        "or the identifier that the archive has"
    )


def _prepare(
    folder: pathlib.Path, contract: index.Contract, series: set[str], touched: set[int]
) -> tuple[list[list[str]], index.Contract]:
    """Makes the new shards and the new index in work; returns what to move and the new contract."""
    work, count = folder / layout.WORK, len(contract["shard_lengths"])
    lengths, sources = [], []
    for shard in range(count):
        path, length = folder / layout.shard(shard, count), contract["shard_lengths"][shard]
        if shard in touched:
            keep = ~_of(series, _rows(folder, shard))
            length = int(keep.sum())
            if length:
                publish.copy_records(path, work / layout.part_records(shard), keep)
            path = work / layout.part_records(shard)
        if length:
            lengths.append(length)
            sources.append((shard, path))
    new = (_new_rows(folder, old, path, at, series, old in touched) for at, (old, path) in enumerate(sources))
    counts = index.write(work, new, sum(lengths))
    digests = series_digests(folder)
    names = [layout.shard(at, len(lengths)) for at in range(len(lengths))]
    moves = [[str(path.relative_to(folder)), name] for (_, path), name in zip(sources, names, strict=True)]
    changed = (
        contract
        | counts
        | {
            "slices": sum(lengths),
            "series": contract["series"] - len(series),
            "bytes": sum(path.stat().st_size for _, path in sources),
            "shard_lengths": lengths,
            "content_hash": parts.content_hash(digest for key, digest in digests.items() if key not in series),
            "revision": contract.get("revision", 1) + 1,
            "replaces": [*contract.get("replaces", []), contract["hash"]],
        }
    )
    return [*moves, *journal.index_moves(work)], publish.sealed(changed)


def _rows(folder: pathlib.Path, shard: int) -> pa.Table:
    return pq.read_table(folder / layout.INDEX, schema=index.SCHEMA, filters=[("shard", "=", shard)])


def _of(series: set[str], table: pa.Table) -> np.ndarray:
    """Rows of the given series, bool (n,)."""
    wanted = pa.array(sorted(series), pa.string())
    return pc.is_in(table.column("series").cast(pa.string()), value_set=wanted).to_numpy()


def _new_rows(
    folder: pathlib.Path, old: int, path: pathlib.Path, new: int, series: set[str], is_touched: bool
) -> pa.Table:
    table = _rows(folder, old)
    keep = ~_of(series, table) if is_touched else np.ones(len(table), bool)
    return publish.as_shard(table, path, new, keep)


def _voxels(folder: pathlib.Path, series: set[str]) -> list[str]:
    """Hashes of the voxels of the series, by which a copy of them is known under any name."""
    path = folder / layout.LOCAL / layout.SERIES
    if not path.exists():
        return []
    known = pq.read_table(path, columns=["series", "voxels"]).to_pylist()
    return [row["voxels"] for row in known if row["series"] in series]


def _sources(folder: pathlib.Path, series: set[str]) -> set[str]:
    path = folder / layout.LOCAL / layout.SOURCES
    if not path.exists():
        return set()
    return {row["file"] for row in tables.read_own(path) if row["series"] in series}
