"""An archive has grown: what is new in it becomes more shards of the same corpus.

The old shards keep their bytes, series and patients their keys, and patients their side of the split. Benchmarks stay
as they are, so that scores can be compared. A file that was there before is not looked at again, whatever has become of
it; new files of a series that is in the corpus already are listed.
"""

import collections.abc
import json
import pathlib

import numpy as np
import pyarrow.parquet as pq

from curia2_jax.data.corpus import index, layout
from curia2_jax.data.ingest import identity, journal, local, parts, publish
from curia2_jax.errors import UserError


def check(folder: pathlib.Path) -> None:
    """That a corpus can be added to.

    Raises:
      UserError: it was made by code that did not note which files it saw.
    """
    if not all((folder / layout.LOCAL / name).exists() for name in (layout.SEEN, layout.SERIES)):
        raise UserError(
            f"--append: {folder / layout.LOCAL} has no {layout.SEEN}, by which files are known again; "
            "ingest the archive into a new folder"
        )


def dropped(
    folder: pathlib.Path, reports: local.Reports, drop: dict[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """Why new series are not kept, key -> reason and detail: those of `drop`, those that the corpus has, and those of
    patients who were forgotten, under whichever name they come."""
    known = pq.read_table(folder / layout.LOCAL / layout.SERIES, columns=["series", "voxels", "source"]).to_pydict()
    keys = set(known["series"])
    source_of = dict(zip(known["voxels"], known["source"], strict=True))
    withdrawn = local.withdrawn(folder)
    out = dict(drop)
    for one in (one for report in reports() for one in local.whole(report)):
        if identity.fingerprint(one.voxels) in withdrawn:
            out[one.key] = ("withdrawn", "the same voxels as a series of a patient who was forgotten; see --forget")
        elif one.key in keys:
            out[one.key] = ("late", "the corpus has the series as it was before; ingest anew to have it as it is")
        elif one.voxels in source_of:
            out[one.key] = ("duplicate", f"the same voxels as {source_of[one.voxels]}")
    return out


def publish_more(
    folder: pathlib.Path, reports: local.Reports, drop: collections.abc.Container[str], labelled: list[str]
) -> index.Contract:
    """The corpus with the new parts in work as more shards, with the tables of `work/local` and the label maps of the
    series `labelled`. Returns the new contract, the old one where nothing is new.

    Raises:
      OSError: it cannot be written.
    """
    work = folder / layout.WORK
    contract: index.Contract = json.loads((folder / layout.CONTRACT).read_text())
    old = len(contract["shard_lengths"])
    new = [*_new_shards(work, reports, drop)]
    moves = [[f"{layout.WORK}/{layout.LOCAL}/{path.name}", f"{layout.LOCAL}/{path.name}"] for path in _files(work)]
    if new:
        names = [layout.shard(n, old + len(new)) for n in range(old + len(new))]
        moves += [[layout.shard(n, old), names[n]] for n in range(old)]
        moves += [[str(path.relative_to(folder)), names[old + n]] for n, (path, _, _) in enumerate(new)]
        moves += [[f"{layout.WORK}/{layout.part_label_maps(s)}", layout.label_maps(s)] for s in labelled]
        lengths = [*contract["shard_lengths"], *(int(keep.sum()) for _, _, keep in new)]
        changed = _contract(folder, contract, reports, drop, lengths, [path for path, _, _ in new])
        contract = publish.sealed({**changed, **index.write(work, _rows(folder, old, new), sum(lengths))})
        moves += journal.index_moves(work)
    told: journal.Journal = {"moves": moves, "contract": contract, "series": [], "sources": [], "withdrawn": []}
    journal.carry_out(folder, told)
    return contract


def _files(work: pathlib.Path) -> list[pathlib.Path]:
    return sorted((work / layout.LOCAL).iterdir())


def _new_shards(
    work: pathlib.Path, reports: local.Reports, drop: collections.abc.Container[str]
) -> collections.abc.Iterator[tuple[pathlib.Path, pathlib.Path, np.ndarray]]:
    """(records, index rows, rows of these that stay) of each part that has any."""
    for number, report in enumerate(reports()):
        series = [parts.Series(**one) for one in report["series"]]
        stays = [one.key not in drop and not one.broken for one in series]
        keep = np.repeat(np.array(stays, bool), np.array([one.records for one in series], np.int64))
        if not keep.any():
            continue
        path = work / layout.part_records(number)
        if not keep.all():
            path = work / layout.part_kept(number)
            publish.copy_records(work / layout.part_records(number), path, keep)
        yield path, work / layout.part_rows(number), keep


def _rows(
    folder: pathlib.Path, old: int, new: list[tuple[pathlib.Path, pathlib.Path, np.ndarray]]
) -> collections.abc.Iterator:
    for shard in range(old):
        yield pq.read_table(folder / layout.INDEX, schema=index.SCHEMA, filters=[("shard", "=", shard)])
    for number, (path, rows, keep) in enumerate(new):
        yield publish.as_shard(pq.read_table(rows, schema=index.SCHEMA), path, old + number, keep)


def _contract(
    folder: pathlib.Path,
    before: index.Contract,
    reports: local.Reports,
    drop: collections.abc.Container[str],
    lengths: list[int],
    paths: list[pathlib.Path],
) -> dict:
    """What the contract says afterwards, but for the counts of the index and the hash."""
    digests = pq.read_table(folder / layout.LOCAL / layout.SERIES, columns=["digest"]).column("digest").to_pylist()
    known = len(digests)
    digests += [one.digest for report in reports() for one in local.whole(report) if one.key not in drop]
    return {
        **before,
        "slices": sum(lengths),
        "series": before["series"] + len(digests) - known,
        "bytes": before["bytes"] + sum(path.stat().st_size for path in paths),
        "shard_lengths": lengths,
        "content_hash": parts.content_hash(digests),
        "revision": before.get("revision", 1) + 1,
        "replaces": [*before.get("replaces", []), before["hash"]],
    }
