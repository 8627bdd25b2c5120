"""Tasks made of a corpus itself, from its slices and label maps: where structures lie, and which of them a slice shows.

`dense-ct`, `dense-mr`: the label map of each slice. `structures-ct`, `structures-mr`: for every label,
whether a slice shows it, without a mask that would give it away. Where a corpus has several kinds of labels, there is a
task of each, as `dense-mr.cardiac-structures`. `index_tasks.py` has the tasks that need no labels.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curia2_jax import files
from curia2_jax.curiabench import corpus_slices
from curia2_jax.curiabench.corpus_slices import FIELDS, Source
from curia2_jax.data.corpus import layout, structures
from curia2_jax.data.corpus.planes import in_plane
from curia2_jax.data.corpus.structures import MIN_PIXELS
from curia2_jax.data.ingest import benchmark_schema as schema
from curia2_jax.data.ingest.benchmark import slug
from curia2_jax.errors import UserError

KINDS = {"dense": schema.SEGMENTATION, "structures": schema.MULTI_LABEL}
NAMES = tuple(f"{what}-{modality}" for what in KINDS for modality in ("ct", "mr"))


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
        source = _labelled(corpus, asked.modality)
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


def _write(source: "_Labelled", asked: Asked, folder: Path, name: str) -> None:
    corpus, kind = source.slices.folder, KINDS[asked.what]
    rows: dict[str, list[tuple]] = {split: [] for split in schema.SPLITS}
    shown: dict[str, list[dict[int, int]]] = {split: [] for split in schema.SPLITS}  # label -> pixels
    split_of = corpus_slices.split_of(corpus)
    for split in rows:
        (folder / split / schema.IMAGES).mkdir(parents=True)
    for one in _marked(source, asked):
        split = split_of(one.row[1])
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
    fields = list(FIELDS)
    if kind == schema.MULTI_LABEL:
        fields.append((schema.TARGET, "f8", (present[schema.TEST].shape[1],)))
    for split, found in rows.items():
        if kind == schema.MULTI_LABEL:
            found = [(*row, tuple(answer)) for row, answer in zip(found, present[split], strict=True)]
        np.save(folder / split / schema.TABLE, np.array(found, fields))


class _Labelled(NamedTuple):
    """The labelled slices of one modality of a corpus, and the kinds of labels of each of their series."""

    slices: Source
    wanted: np.ndarray  # (N,) bool
    kinds: dict[str, dict[str, list[str]]]  # series -> kind -> arrays


def _labelled(folder: Path, modality: str) -> _Labelled:
    found = corpus_slices.source(folder)
    wanted = (found.facts["label"] != "") & (found.facts["modality"] == modality)
    series = np.unique(found.facts["series"][wanted]).tolist()
    return _Labelled(found, wanted, {one: structures.kinds_in(folder / layout.label_maps(one)) for one in series})


def _marked(source: _Labelled, asked: Asked) -> Iterator[Marked]:
    """Slices that have a label map of the kind that is asked, a series at a time."""
    facts, folder = source.slices.facts, source.slices.folder
    for series, found in source.kinds.items():
        if asked.labels not in found:
            continue
        whole = structures.of_kind(folder / layout.label_maps(series), found[asked.labels])
        for taken in corpus_slices.spread(source.slices, source.wanted & (facts["series"] == series)):
            in_its_plane = in_plane(whole, str(facts["plane"][taken[0]]))
            for index in taken.tolist():
                image = source.slices.image(index)
                labels = in_its_plane[int(facts["position"][index])]
                yield Marked(image, _sized(labels, image.shape), source.slices.whose(index))


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
