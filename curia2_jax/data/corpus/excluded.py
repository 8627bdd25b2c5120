"""Patients who are kept out of training because a benchmark tests on them."""

import pathlib

import numpy as np

from curia2_jax.data.corpus import layout
from curia2_jax.errors import UserError


def patients_of_tests(folders: str) -> frozenset[str]:
    """Keys of the patients in `test` and `val` of every task of benchmarks "A,B"; none for "".

    A folder is a benchmark, or a corpus that holds one. Keys mean the same in both only with the same salt.

    Raises:
      UserError: no tasks there, or tables that name no patients.
    """
    found: set[str] = set()
    for name in filter(None, (name.strip() for name in folders.split(","))):
        folder = pathlib.Path(name)
        tables = [
            path
            for place in (folder, folder / layout.BENCHMARK)
            for split in layout.TESTED
            for path in sorted(place.glob(f"*/{split}/{layout.SAMPLES}"))
        ]
        if not tables:
            raise UserError(f"data.exclude: found {name}, which holds no tasks; write a benchmark or its corpus")
        for path in tables:
            found |= _patients(path)
    return frozenset(found)


def _patients(path: pathlib.Path) -> set[str]:
    try:
        table = np.load(path, allow_pickle=False)
        return set(table[layout.PATIENT_OF_SAMPLE].astype(str).tolist())
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise UserError(f"data.exclude: {path} names no patients ({error}); write one that does") from None
