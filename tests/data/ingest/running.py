"""How the tests run an ingest, and what it left behind."""

import csv
import hashlib
import pathlib

import numpy as np

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import ingest, plan


def silent(stage, done, total, slices):
    pass


def run(output, *inputs, workers=0, runner=None, more=False, **options) -> ingest.Summary:
    return ingest.ingest(output, plan.Options(tuple(map(str, inputs)), **options), workers, silent, runner, more)


def quarantine(output) -> dict[str, str]:
    with open(output / "local" / "quarantine.csv", newline="", encoding="utf-8") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


def corrections(output) -> set[tuple[str, str]]:
    with open(output / "local" / "corrections.csv", newline="", encoding="utf-8") as file:
        return {(row["file"], row["what"]) for row in csv.DictReader(file)}


def pixels_of(corpus: Corpus) -> list[np.ndarray]:
    return [corpus.read(i) for i in range(len(corpus))]


def fingerprint(output: pathlib.Path) -> str:
    """Hash of the sorted records with what the index says of their pixels, without the salted keys."""
    corpus = Corpus(output)
    columns = {
        name: corpus.column(name) for name in ("modality", "plane", "position", "slope", "anatomy_y", "foreground")
    }
    rows = [
        hashlib.sha256(corpus.read(i).tobytes() + repr([columns[n][i] for n in columns]).encode()).hexdigest()
        for i in range(len(corpus))
    ]
    return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()
