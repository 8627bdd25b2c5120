"""A finished corpus becomes another one: all of it is made in `CORPUS/work/`, then a journal says what is left to do.

From then on the corpus is no corpus until the journal is carried out, which can be cut off and called again at any
point.
"""

import json
import os
import pathlib
import shutil
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curia2_jax import files
from curia2_jax.data.corpus import index, layout, shards
from curia2_jax.data.ingest import benchmark, tables


class Journal(TypedDict):
    """`moves` are (source, target) below the corpus, in order; `contract` is the new one. `series` leave the corpus,
    `sources` are the files that they came from, and `withdrawn` are hashes of the keys of patients who withdrew and of
    the voxels of their series."""

    moves: list[list[str]]
    contract: index.Contract
    series: list[str]
    sources: list[str]
    withdrawn: list[str]


def index_moves(work: pathlib.Path) -> list[list[str]]:
    """Moves of an index that was made in work."""
    columns = [f"{layout.COLUMNS}/{path.name}" for path in sorted((work / layout.COLUMNS).iterdir())]
    return [[f"{layout.WORK}/{name}", name] for name in (layout.INDEX, *columns)]


def carry_out(folder: pathlib.Path, journal: Journal) -> None:
    """Writes the journal and does what it says. Raises OSError."""
    files.write_text(folder / layout.WORK / layout.JOURNAL, json.dumps(journal))
    resume(folder)


def resume(folder: pathlib.Path) -> None:
    """Does what a journal says, if there is one. Raises OSError."""
    path = folder / layout.WORK / layout.JOURNAL
    if not path.exists():
        return
    journal: Journal = json.loads(path.read_text())
    contract, series = journal["contract"], set(journal["series"])
    (folder / layout.CONTRACT).unlink(missing_ok=True)
    for source, target in journal["moves"]:
        if (folder / source).exists():
            (folder / target).parent.mkdir(exist_ok=True)
            os.replace(folder / source, folder / target)
    names = {layout.shard(n, len(contract["shard_lengths"])) for n in range(len(contract["shard_lengths"]))}
    for shard in folder.glob(layout.ANY_SHARD):
        if shard.name not in names:
            shard.unlink()
    if series:
        for one in series:
            (folder / layout.label_maps(one)).unlink(missing_ok=True)
        benchmark.without(folder / layout.BENCHMARK, series)
        shutil.rmtree(folder / layout.PREVIEW, ignore_errors=True)
        _clean_local(folder / layout.LOCAL, series, set(journal["sources"]), journal["withdrawn"])
    shards.write_metadata(folder, contract["shard_lengths"], contract["bytes"])
    files.write_text(folder / layout.CONTRACT, json.dumps(contract, indent=2))
    shutil.rmtree(folder / layout.WORK)


def _clean_local(local: pathlib.Path, series: set[str], sources: set[str], withdrawn: list[str]) -> None:
    """Takes the series and the files that they came from out of the tables; notes the hashes of what was withdrawn, so
    that no later ingest into this corpus brings it back."""
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
        gone = pc.is_in(table.column("series"), value_set=pa.array(sorted(series), pa.string()))
        with files.whole_file(local / layout.SERIES) as partial:
            pq.write_table(table.filter(pc.invert(gone)), partial, compression="zstd")
    if (local / layout.SUMMARY).exists():
        summary = json.loads((local / layout.SUMMARY).read_text())
        files.write_text(local / layout.SUMMARY, json.dumps(summary | {"slowest": []}, indent=2))
    known = local / layout.FORGOTTEN
    before = json.loads(known.read_text()) if known.exists() else []
    files.write_text(known, json.dumps(sorted({*before, *withdrawn}), indent=1))
