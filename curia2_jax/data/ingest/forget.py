"""A patient withdraws: their slices leave a corpus, and nothing in it leads to them any more.

What changes is first made in `CORPUS/work/`: the shards that hold the patient without them, and the index. Then a
journal is written, and from then on the corpus is no corpus until all of it is done, which can be cut off and carried
on at any point. The contract is another one afterwards; it names the hashes of those that it replaces.
"""

import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curia2_jax import files
from curia2_jax.data.corpus import index, layout, shards
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import benchmark, identity, parts, publish, tables
from curia2_jax.data.ingest.audit import series_digests
from curia2_jax.errors import UserError


def forget(folder: pathlib.Path, patients: list[str]) -> index.Contract:
    """The contract of the corpus in `folder` after `patients` were taken out of it: keys of the index column `patient`,
    or identifiers as the archive has them.

    Raises:
      UserError: no corpus, nobody of that name in it, or nobody else.
      OSError: it cannot be written.
    """
    resume(folder)
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
    journal = _prepare(folder, contract, series, touched) | {
        "series": sorted(series),
        "sources": sorted(_sources(folder, series)),
        "patients": [hashlib.sha256(key.encode()).hexdigest() for key in keys],
    }
    files.write_text(work / layout.FORGET, json.dumps(journal))
    resume(folder)
    return journal["contract"]


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


def _prepare(folder: pathlib.Path, contract: index.Contract, series: set[str], touched: set[int]) -> dict:
    """Makes the new shards and the new index in work; returns what to rename and the new contract."""
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
    renames = [[str(path.relative_to(folder)), name] for (_, path), name in zip(sources, names, strict=True)]
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
    return {"renames": renames, "contract": publish.sealed(changed)}


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


def _sources(folder: pathlib.Path, series: set[str]) -> set[str]:
    path = folder / layout.LOCAL / layout.SOURCES
    if not path.exists():
        return set()
    return {row["file"] for row in tables.read_own(path) if row["series"] in series}


def resume(folder: pathlib.Path) -> None:
    """Carries out the journal in work, if there is one. Raises OSError."""
    journal = folder / layout.WORK / layout.FORGET
    if not journal.exists():
        return
    told = json.loads(journal.read_text())
    contract, series, sources = told["contract"], set(told["series"]), set(told["sources"])
    (folder / layout.CONTRACT).unlink(missing_ok=True)
    work = folder / layout.WORK
    moved = [*told["renames"], [f"{layout.WORK}/{layout.INDEX}", layout.INDEX]]
    moved += [
        [str(path.relative_to(folder)), f"{layout.COLUMNS}/{path.name}"] for path in (work / layout.COLUMNS).glob("*")
    ]
    for source, target in moved:
        if (folder / source).exists():
            os.replace(folder / source, folder / target)
    names = {target for _, target in told["renames"]}
    for path in folder.glob(layout.ANY_SHARD):
        if path.name not in names:
            path.unlink()
    for one in series:
        (folder / layout.label_maps(one)).unlink(missing_ok=True)
    benchmark.without(folder / layout.BENCHMARK, series)
    shutil.rmtree(folder / layout.PREVIEW, ignore_errors=True)
    _clean_local(folder / layout.LOCAL, series, sources, told["patients"])
    shards.write_metadata(folder, contract["shard_lengths"], contract["bytes"])
    files.write_text(folder / layout.CONTRACT, json.dumps(contract, indent=2))
    shutil.rmtree(work)


def _clean_local(local: pathlib.Path, series: set[str], sources: set[str], patients: list[str]) -> None:
    """Takes the series and the files that they came from out of the tables; notes the hashes of the patients' keys, so
    that no later ingest into this corpus brings them back."""
    if not local.is_dir():
        return
    (local / layout.QUARANTINE_PAGE).unlink(missing_ok=True)  # a picture may be of the patient, and does not say so

    def tells(row: dict[str, str]) -> bool:
        name, detail = row["file"], row.get("detail", "")
        below = any(name == source or name.startswith(f"{source}/") for source in sources)
        return row.get("series") in series or below or any(detail.endswith(f" {source}") for source in sources)

    for name, head in (
        (layout.SOURCES, ("series", "file")),
        (layout.QUARANTINE, ("file", "reason", "detail")),
        (layout.CORRECTIONS, ("file", "what", "detail")),
    ):
        if (local / name).exists():
            rows = tables.read_own(local / name)
            tables.write(local / name, head, [tuple(row[column] for column in head) for row in rows if not tells(row)])
    if (local / layout.SERIES).exists():
        table = pq.read_table(local / layout.SERIES)
        with files.whole_file(local / layout.SERIES) as partial:
            pq.write_table(table.filter(~_of(series, table)), partial, compression="zstd")
    if (local / layout.SUMMARY).exists():
        summary = json.loads((local / layout.SUMMARY).read_text())
        files.write_text(local / layout.SUMMARY, json.dumps(summary | {"slowest": []}, indent=2))
    known = local / layout.FORGOTTEN
    before = json.loads(known.read_text()) if known.exists() else []
    files.write_text(known, json.dumps(sorted({*before, *patients}), indent=1))
