"""Which volumes of a task are paired: its two tables, read and checked."""

from pathlib import Path

import numpy as np

from curia2_jax.curiabench.splits import Facts, Split, read_split
from curia2_jax.data.ingest import benchmark_schema as schema
from curia2_jax.data.ingest import tables
from curia2_jax.errors import UserError


def read_split_of_pairs(folder: Path, facts: Facts, owner: str) -> tuple[Split, list[str]]:
    """The fixed volumes of a task's pairs with the moving ones beside them, no image read; and what is to be said.

    Raises:
      UserError: a table is missing or at fault; the message names it.
    """
    volumes, warnings = read_split(folder, facts, owner)
    path = folder / schema.PAIRS
    places = {image.stem: number for number, image in enumerate(volumes.images)}
    found: list[tuple[int, int]] = []
    for row in tables.read(path, f"{owner}:", ("fixed", "moving")):
        names = [row[side].removesuffix(schema.IMAGE_SUFFIX) for side in ("fixed", "moving")]
        for name in names:
            if name not in places:
                raise UserError(f"{path}: found {name!r}, which {schema.TABLE} does not name; write one of its files")
        pair = places[names[0]], places[names[1]]
        if pair[0] == pair[1] or pair in found:
            raise UserError(f"{path}: found the pair {' and '.join(names)}; write two volumes, and each pair once")
        found.append(pair)
    fixed, moving = np.array(found).reshape(-1, 2).T
    if not len(fixed):
        raise UserError(f"{path}: found no pairs; write at least one")
    if volumes.affines is None or np.isnan(volumes.affines).any():
        warnings.append(f"{folder}: no {schema.AFFINE} of some volumes: distances of their pairs are in voxels")
    return volumes.taken(fixed)._replace(moving=volumes.taken(moving)), warnings
