"""Tasks made of the index of a corpus alone, which need no labels: how high a slice lies, and how it was cut.

`height-ct`, `height-mr`: the place of a slice between the first of its scan, 0, and the last, 1; of axial slices, of
scans of ten or more. `plane-ct`, `plane-mr`: axial, coronal or sagittal, of corpora that have several.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from curia2_jax import files
from curia2_jax.curiabench import corpus_slices
from curia2_jax.curiabench.corpus_slices import FIELDS, Source
from curia2_jax.data.ingest import benchmark_schema as schema
from curia2_jax.errors import UserError

KINDS = {"height": schema.REGRESSION, "plane": schema.CLASSIFICATION}
NAMES = tuple(f"{what}-{modality}" for what in KINDS for modality in ("ct", "mr"))
FEWEST = 10  # slices of a scan that say how high one lies
PLANES = ("axial", "coronal", "sagittal")


def write(corpus: Path, names: Sequence[str], folder: Path) -> list[str]:
    """Writes tasks `names` of NAMES below `folder`; returns the names.

    Raises:
      UserError: the corpus has no such slices in both splits, or all are of one plane.
    """
    found, split = corpus_slices.source(corpus), corpus_slices.split_of(corpus)
    for name in names:
        what, _, modality = name.partition("-")
        numbers, targets = ASKED[what](found, modality.upper())
        splits = np.array([split(patient) for patient in found.facts["patient"][numbers].tolist()], "U8")
        counts = [int((splits == one).sum()) for one in schema.SPLITS]
        if not all(counts):
            said = " and ".join(f"{count} {one}" for count, one in zip(counts, schema.SPLITS, strict=True))
            raise UserError(f"--task={name}: found {said} such slices in {corpus}; write a corpus that has both")
        told: schema.Description = {"name": name, "kind": KINDS[what].name, "mask": False, "modality": modality.upper()}
        if KINDS[what].has_classes:
            used = sorted(set(targets.tolist()))
            if len(used) < 2:
                raise UserError(
                    f"--task={name}: found {PLANES[used[0]]} slices alone in {corpus}; write one with others"
                )
            told["classes"] = {str(number): PLANES[number] for number in used}
        with files.whole_folder(folder / name) as partial:
            for one in schema.SPLITS:
                mine = splits == one
                _write(found, numbers[mine], targets[mine].astype(KINDS[what].target), partial / one)
            (partial / schema.TASK).write_text(json.dumps(told, indent=2))
    return list(names)


def _height(found: Source, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of slices, and where they lie between the first and the last of their series."""
    facts, numbers, heights = found.facts, [], []
    among = (facts["modality"] == modality) & (facts["plane"] == PLANES[0])
    for taken in corpus_slices.spread(found, among):
        own = facts["position"][among & (facts["series"] == facts["series"][taken[0]])]
        if len(own) >= FEWEST:
            numbers.append(taken)
            heights.append((facts["position"][taken] - own.min()) / (own.max() - own.min()))
    return _joined(numbers).astype(np.int64), _joined(heights)


def _plane(found: Source, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of slices, and of their planes."""
    numbers = _joined(list(corpus_slices.spread(found, found.facts["modality"] == modality))).astype(np.int64)
    return numbers, np.array([PLANES.index(plane) for plane in found.facts["plane"][numbers].tolist()], np.int64)


ASKED = {"height": _height, "plane": _plane}


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _write(found: Source, numbers: np.ndarray, targets: np.ndarray, folder: Path) -> None:
    """Images and the table of a split."""
    (folder / schema.IMAGES).mkdir(parents=True)
    rows: list[tuple] = []
    for index, target in zip(numbers.tolist(), targets.tolist(), strict=True):
        path = schema.image_path(folder, f"{len(rows):06d}")
        np.save(path, found.image(index))
        rows.append((path.stem, *found.whose(index), target))
    np.save(folder / schema.TABLE, np.array(rows, [*FIELDS, (schema.TARGET, targets.dtype)]))
