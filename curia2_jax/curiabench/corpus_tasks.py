"""Tasks made of a corpus itself, from its slices and label maps: where structures lie, and which of them a slice shows.

`dense-ct`, `dense-mr`: the label map of each slice. `structures-ct`, `structures-mr`: for every label,
whether a slice shows it, without a mask that would give it away. Where a corpus has several kinds of labels, there is a
task of each, as `dense-mr.cardiac-structures`. Test patients are those on whom the benchmarks of the
corpus test; without any, a third by the hash of their keys, so that a new patient moves nobody.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curia2_jax import files
from curia2_jax.data.corpus import layout, structures
from curia2_jax.data.corpus.corpus import Corpus, patient_hash
from curia2_jax.data.corpus.excluded import patients_of_tests
from curia2_jax.data.corpus.planes import in_plane
from curia2_jax.data.corpus.structures import MIN_PIXELS
from curia2_jax.data.ingest import benchmark_schema as schema
from curia2_jax.data.ingest.benchmark import slug
from curia2_jax.errors import UserError

KINDS = {"dense": schema.SEGMENTATION, "structures": schema.MULTI_LABEL}
NAMES = tuple(f"{what}-{modality}" for what in KINDS for modality in ("ct", "mr"))
SLICES = 16  # of a series and plane, at most, evenly spread over it


class Marked(NamedTuple):
    """A slice (H, W) float32 in HU or the scanner's unit, its label map uint16, and whose it is."""

    image: np.ndarray
    labels: np.ndarray
    row: tuple[str, str, str, tuple[float, float]]  # series, patient, modality, spacing


class Asked(NamedTuple):
    """`what` of KINDS of slices of a `modality`, CT or MR, by the labels of a kind; "": of every kind that there is."""

    what: str
    modality: str
    labels: str


def parse(name: str) -> Asked | None:
    """What a task WHAT-MODALITY or WHAT-MODALITY.LABELS asks; None for the name of another task."""
    first, _, labels = name.partition(".")
    what, _, modality = first.partition("-")
    return Asked(what, modality.upper(), labels) if first in NAMES else None


def write(corpus: Path, names: Sequence[str], folder: Path, say: Callable[[str], None] = print) -> list[str]:
    """Writes tasks `names` below `folder`; returns the names of all that were made, one for every kind of labels.

    Args:
      say: receives a line for each kind of labels of which there is no such task.

    Raises:
      UserError: `corpus` is none, or has no label maps of such slices on both sides of the split.
    """
    out = []
    for name in names:
        asked = parse(name)
        if asked is None or not (corpus / layout.CONTRACT).is_file():
            raise UserError(f"--task: found {name!r}; write {', '.join(NAMES)} with --data CORPUS, or a task alone")
        source = _source(corpus, asked.modality)
        kinds = sorted({kind for found in source.kinds.values() for kind in found})
        if asked.labels and asked.labels not in kinds:
            known = ", ".join(f"{asked.what}-{asked.modality.lower()}.{kind}" for kind in kinds)
            raise UserError(f"--task={name}: no such labels in {corpus}; write {known or 'a corpus with label maps'}")
        made = [name] if asked.labels or len(kinds) < 2 else [f"{name}.{kind}" for kind in kinds]
        faults = []
        for one, labels in zip(made, [asked.labels] if asked.labels else kinds or [""], strict=True):
            try:
                with files.whole_folder(folder / one) as partial:
                    _write(source, asked._replace(labels=labels), partial, one)
                out.append(one)
            except UserError as error:
                faults.append(error)
        if len(faults) == len(made):
            raise faults[0]
        for fault in faults:
            say(f"not asked: {fault}")
    return out


def _write(source: "_Source", asked: Asked, folder: Path, name: str) -> None:
    corpus, kind = source.folder, KINDS[asked.what]
    rows: dict[str, list[tuple]] = {split: [] for split in schema.SPLITS}
    shown: dict[str, list[dict[int, int]]] = {split: [] for split in schema.SPLITS}  # label -> pixels
    tested = patients_of_tests(str(corpus)) if any((corpus / layout.BENCHMARK).glob("*")) else frozenset()
    for split in rows:
        (folder / split / schema.IMAGES).mkdir(parents=True)
    for one in _marked(source, asked):
        patient = one.row[1]
        aside = patient in tested if tested else patient_hash(patient) < 1 / 3
        split = schema.TEST if aside else schema.TRAIN
        image = schema.image_path(folder / split, f"{len(rows[split]):06d}")
        np.save(image, one.image)
        if kind == schema.SEGMENTATION:
            np.save(schema.mask_path(image), one.labels)
        rows[split].append((image.stem, *one.row))
        shown[split].append(dict(zip(*(x.tolist() for x in np.unique(one.labels, return_counts=True)), strict=True)))
    if not all(rows.values()):
        counts = " and ".join(f"{len(found)} {split}" for split, found in rows.items())
        raise UserError(f"--task={name}: found {counts} slices with label maps in {corpus}; write one that has both")
    every = sorted({label for each in shown.values() for one in each for label in one} - {0})
    pixels = {split: np.array([[one.get(k, 0) for k in every] for one in each]) for split, each in shown.items()}
    chosen = np.ones(len(every), bool) if kind == schema.SEGMENTATION else _told_apart(pixels)
    if not chosen.any():
        raise UserError(f"--task={name}: found no label in {corpus} that some slices show and others do not")
    labels = np.array(every)[chosen].tolist()
    _tables(folder, rows, {split: _answers(found[:, chosen]) for split, found in pixels.items()}, kind)
    names = _names(corpus, asked.labels)
    classes = {str(key): names.get(label, f"label {label}") for key, label in _keys(labels, kind)}
    told: schema.Description = {
        "name": name,
        "kind": kind.name,
        "mask": False,
        "modality": asked.modality,
        "labels": asked.labels,
        "classes": classes,
    }
    (folder / schema.TASK).write_text(json.dumps(told, indent=2))


def _keys(labels: list[int], kind: schema.Kind) -> list[tuple[int, int]]:
    """(key in classes, label): label maps keep their labels, columns of answers are numbered."""
    return [(label if kind == schema.SEGMENTATION else number, label) for number, label in enumerate(labels)]


def _told_apart(pixels: dict[str, np.ndarray]) -> np.ndarray:
    """(labels,) bool: some slices of both splits show it, and some of train have nothing of it."""
    train, test = (_answers(pixels[split]) for split in schema.SPLITS)
    return np.asarray((train == 1).any(0) & (test == 1).any(0) & (train == 0).any(0))


def _answers(pixels: np.ndarray) -> np.ndarray:
    """(n, labels) of pixels of each label in each slice: 1 where it is shown, 0 where nothing of it is there, and NaN,
    unknown, where there is too little of it, as of a small lesion, to say either."""
    return np.where(pixels >= MIN_PIXELS, 1.0, np.where(pixels > 0, np.nan, 0.0))


def _tables(folder: Path, rows: dict, present: dict[str, np.ndarray], kind: schema.Kind) -> None:
    """`present` (n, labels): which of them each slice shows, of `_answers`."""
    fields = [(schema.FILENAME, "U16"), (schema.SERIES, "U64"), (schema.PATIENT, "U64"), (schema.MODALITY, "U4"),
              (schema.SPACING, "f4", (2,))]  # fmt: skip
    if kind == schema.MULTI_LABEL:
        fields.append((schema.TARGET, "f8", (present[schema.TEST].shape[1],)))
    for split, found in rows.items():
        if kind == schema.MULTI_LABEL:
            found = [(*row, tuple(answer)) for row, answer in zip(found, present[split], strict=True)]
        np.save(folder / split / schema.TABLE, np.array(found, fields))


class _Source(NamedTuple):
    """The labelled slices of one modality of a corpus, and the kinds of labels of each of their series."""

    folder: Path
    corpus: Corpus
    facts: dict[str, np.ndarray]  # columns of the index
    wanted: np.ndarray  # (N,) bool
    kinds: dict[str, dict[str, list[str]]]  # series -> kind -> arrays


def _source(folder: Path, modality: str) -> _Source:
    corpus = Corpus(folder)
    columns = ("label", "modality", "series", "plane", "patient", "position", "slope", "intercept", "spacing_y",
               "spacing_x")  # fmt: skip
    facts = {name: np.asarray(corpus.column(name)) for name in columns}
    wanted = (facts["label"] != "") & (facts["modality"] == modality)
    series = np.unique(facts["series"][wanted]).tolist()
    kinds = {one: structures.kinds_in(folder / layout.label_maps(one)) for one in series}
    return _Source(folder, corpus, facts, wanted, kinds)


def _marked(source: _Source, asked: Asked) -> Iterator[Marked]:
    """Slices that have a label map of the kind that is asked, a series at a time."""
    facts = source.facts
    for series, found in source.kinds.items():
        if asked.labels not in found:
            continue
        whole = structures.of_kind(source.folder / layout.label_maps(series), found[asked.labels])
        own = np.flatnonzero((facts["series"] == series) & source.wanted)
        for plane in np.unique(facts["plane"][own]).tolist():
            slices = own[facts["plane"][own] == plane]
            taken = np.unique(np.linspace(0, len(slices) - 1, min(len(slices), SLICES)).round().astype(int))
            for index in slices[taken].tolist():
                labels = in_plane(whole, plane)[int(facts["position"][index])]
                image = source.corpus.read(index).astype(np.float32) * facts["slope"][index] + facts["intercept"][index]
                spacing = (float(facts["spacing_y"][index]), float(facts["spacing_x"][index]))
                row = (series, str(facts["patient"][index]), asked.modality, spacing)
                yield Marked(image.astype(np.float32), _sized(labels, image.shape), row)


def _sized(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The nearest labels, where the slice was stored smaller than its label map."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(shape, labels.shape, strict=True)
    )
    return np.ascontiguousarray(labels[np.ix_(rows, columns)], np.uint16)


def _names(corpus: Path, labels: str) -> dict[int, str]:
    """Names of the labels of a kind, as far as the benchmarks of the corpus that were cut from them say them."""
    found: dict[int, str] = {}
    for path in sorted((corpus / layout.BENCHMARK).glob(f"*/{schema.TASK}")):
        told: schema.Description = json.loads(path.read_text())
        if slug(told.get("labels", "")) == labels:
            found |= dict(zip(told.get("values", []), told.get("classes", {}).values(), strict=False))
    return found
