"""Slices of a corpus as samples of tasks that are made of it: whose they are, which are taken, and their values."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.corpus import Corpus, patient_hash
from curia2_jax.data.corpus.excluded import patients_of_tests
from curia2_jax.data.ingest import benchmark_schema as schema

COLUMNS = (
    "label",
    "modality",
    "series",
    "plane",
    "patient",
    "position",
    "slope",
    "intercept",
    "spacing_y",
    "spacing_x",
)
SLICES = 16  # of a series and plane, at most, evenly spread over it
FIELDS: list[tuple] = [
    (schema.FILENAME, "U16"), (schema.SERIES, "U64"), (schema.PATIENT, "U64"), (schema.MODALITY, "U4"),
    (schema.SPACING, "f4", (2,)),
]  # fmt: skip


class Source(NamedTuple):
    """A corpus and columns of its index, (N,) each."""

    folder: Path
    corpus: Corpus
    facts: dict[str, np.ndarray]

    def image(self, index: int) -> np.ndarray:
        """(H, W) float32, in HU or the scanner's unit."""
        values = self.corpus.read(index).astype(np.float32)
        return (values * self.facts["slope"][index] + self.facts["intercept"][index]).astype(np.float32)

    def whose(self, index: int) -> tuple[str, str, str, tuple[float, float]]:
        """Series, patient, modality and spacing of a slice, in the order of FIELDS."""
        series, patient, modality = (str(self.facts[name][index]) for name in ("series", "patient", "modality"))
        return series, patient, modality, (
            float(self.facts["spacing_y"][index]), float(self.facts["spacing_x"][index])
        )  # fmt: skip


def source(folder: Path) -> Source:
    corpus = Corpus(folder)
    return Source(folder, corpus, {name: np.asarray(corpus.column(name)) for name in COLUMNS})


def spread(found: Source, among: np.ndarray) -> Iterator[np.ndarray]:
    """Numbers of at most SLICES slices of each series and plane, of those `among` (N,) bool."""
    for series in np.unique(found.facts["series"][among]).tolist():
        own = np.flatnonzero((found.facts["series"] == series) & among)
        for plane in np.unique(found.facts["plane"][own]).tolist():
            slices = own[found.facts["plane"][own] == plane]
            taken = np.linspace(0, len(slices) - 1, min(len(slices), SLICES)).round().astype(int)
            yield slices[np.unique(taken)]


def split_of(folder: Path) -> Callable[[str], str]:
    """The split of a patient: test for those on whom the benchmarks of the corpus test; without any, for a third by the
    hash of their keys, so that a new patient moves nobody."""
    tested = patients_of_tests(str(folder)) if any((folder / layout.BENCHMARK).glob("*")) else frozenset()

    def split(patient: str) -> str:
        aside = patient in tested if tested else patient_hash(patient) < 1 / 3
        return schema.TEST if aside else schema.TRAIN

    return split
