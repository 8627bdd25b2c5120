"""The probe of a run: every few hundred steps the teacher is asked what its corpus knows, by its index and label maps.

Always the same slices, by patients in two halves: heads learn from one and are scored on the other, from step 0 on.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from curia2_jax.data.corpus import structures
from curia2_jax.data.corpus.corpus import Corpus, parse, patient_hash
from curia2_jax.data.corpus.records import CorruptRecord
from curia2_jax.errors import UserError
from curia2_jax.parallel import compiler, sharding
from curia2_jax.parallel.mesh import batch_shards, local_rows
from curia2_jax.telemetry import linear_dice, monitors, probing
from curia2_jax.telemetry.goodput import Ledger
from curia2_jax.telemetry.metrics import rankme
from curia2_jax.training import reports
from curia2_jax.training.look import look
from curia2_jax.training.moments import NAMES
from curia2_jax.training.prepare import Run, to_devices
from curia2_jax.training.recipe import Recipe
from curia2_jax.training.state import TrainState

LABELLED = 32  # series whose label maps are read
CHUNK = 32  # slices at a time, or one a device where there are more of them
SEED = 0  # of which slices: the same in every run of a corpus


class Question(NamedTuple):
    """What is asked of the slices where `rows` (n,) bool is true: targets (n, C), and how answers are scored."""

    name: str
    rows: np.ndarray
    targets: np.ndarray
    score: Callable[[np.ndarray, np.ndarray], float]


class Dense(NamedTuple):
    """Where structures lie in the slices whose series have label maps."""

    rows: np.ndarray  # (n,) bool: the slices that have one
    shares: np.ndarray  # (n, N, K) float32: of each patch that each structure covers


class Asked(NamedTuple):
    """n slices of a corpus and what is asked of them."""

    slices: np.ndarray  # (n,) int64
    groups: np.ndarray  # (n,) int64: their patients
    test: np.ndarray  # (n,) bool: of the half of the patients that scores are of
    questions: tuple[Question, ...]
    unseen: bool  # patients that the run does not train on
    dense: Dense | None  # None: slices of both halves show no structure in common


def choose(corpus: Corpus, recipe: Recipe) -> Asked:
    """Slices of the patients held out of training, or of all where there are none, and their questions."""
    where = "" if recipe.probe.corpus else recipe.data.where
    unseen = bool(recipe.probe.corpus)
    try:
        split = "held_out" if recipe.data.held_out and not recipe.probe.corpus else "all"
        sampler = corpus.sampler(where=where, split=split, held_out=recipe.data.held_out)
        unseen = unseen or split == "held_out"
    except UserError:  # a share of a few patients may be none
        sampler = corpus.sampler(where=where)
    slices = np.sort(sampler.records(np.arange(min(recipe.probe.slices, len(sampler))), SEED))
    patients, groups = np.unique(corpus.take("patient", slices), return_inverse=True)
    order = sorted(range(len(patients)), key=lambda number: patient_hash(str(patients[number])))
    test = np.isin(groups, order[: len(order) // 2])
    free = free_questions(corpus, slices)
    by_labels, dense = labelled(corpus, slices, test, recipe.crops.global_size // recipe.model.patch_size)
    return Asked(slices, groups, test, (*free, *by_labels), unseen, dense)


def free_questions(corpus: Corpus, slices: np.ndarray) -> tuple[Question, ...]:
    """Height in the scan, of slices of the most frequent plane; modality; plane."""
    planes = corpus.take("plane", slices)
    names, counts = np.unique(planes, return_counts=True)
    first, length = corpus.series()
    own = np.searchsorted(first, slices, side="right") - 1
    height = (slices - first[own]) / np.maximum(length[own] - 1, 1)
    axis = (planes == names[counts.argmax()]) & (length[own] > 1)
    asked = [Question("height", axis, height[:, None], probing.explained)]
    for name, values in (("modality", corpus.take("modality", slices)), ("plane", planes)):
        one_hot = (values[:, None] == np.unique(values)).astype(np.float64)
        asked.append(Question(name, np.ones(len(slices), bool), one_hot, probing.balanced_accuracy))
    return tuple(asked)


def labelled(
    corpus: Corpus, slices: np.ndarray, test: np.ndarray, grid: int
) -> tuple[tuple[Question, ...], Dense | None]:
    """Which structures lie in a slice, and where those lie that slices of both halves show; of LABELLED series at most,
    since maps take long to read; not in a mixture."""
    ((folder, _), *others) = parse(corpus.spec)
    series = corpus.take("series", slices)
    names = np.unique(series[corpus.take("label", slices) != ""])[:LABELLED]
    if others or not len(names):
        return (), None
    maps = structures.label_maps(folder, names)
    rows = np.isin(series, list(maps))
    planes, position = (corpus.take(name, slices[rows]) for name in ("plane", "position"))
    where = (maps, series[rows], planes, position.astype(np.int64))
    found = structures.present(*where)[:, 1:]
    targets = np.zeros((len(slices), found.shape[1]))
    targets[rows] = found
    question = Question("structures", rows, targets, probing.auroc)
    labels = 1 + np.flatnonzero(targets[test].any(0) & targets[~test].any(0))
    if not len(labels):
        return (question,), None
    shares = np.zeros((len(slices), grid * grid, len(labels)), np.float32)
    shares[rows] = structures.shares(*where, labels, grid)
    return (question,), Dense(rows, shares)


def answers(asked: Asked, tokens: np.ndarray, usable: np.ndarray) -> dict[str, float]:
    """{question_head: score} of tokens (n, D); a question that one of the halves cannot answer is left out."""
    out = {}
    for question in asked.questions:
        fit, test = (question.rows & usable & half for half in (~asked.test, asked.test))
        if any(not half.any() or (np.ptp(question.targets[half], axis=0) == 0).all() for half in (fit, test)):
            continue
        train, targets, rest = tokens[fit], question.targets[fit], tokens[test]
        truth = question.targets[test]
        by_ridge = probing.ridge_probe(train, targets, asked.groups[fit], rest)
        out[f"{question.name}_ridge"] = question.score(truth, by_ridge)
        out[f"{question.name}_knn"] = question.score(truth, probing.neighbors(train, targets, rest))
    return out


@dataclasses.dataclass(frozen=True)
class Looked:
    """What the teacher made of the slices of a probe, on the host."""

    asked: Asked
    found: dict[str, np.ndarray]  # of look.look, and `read` (n,) bool: not what could not be read
    prototypes: int
    moments: linear_dice.Moments | None  # of patch tokens, where it is known what lies in patches

    def scalars(self) -> dict[str, float]:
        """Metrics: `probe/` by class token, `probe_patch/` by the mean patch token, and `monitor/`."""
        read = self.found["read"]
        tokens, patch = self.found["class"].astype(np.float64), self.found["patch"].astype(np.float64)
        out = {f"probe/{k}": v for k, v in answers(self.asked, tokens[:, 0], read).items()}
        out |= {f"probe_patch/{k}": v for k, v in answers(self.asked, patch, read).items()}
        out["monitor/rankme"], out["monitor/spread"] = rankme(tokens[read, 0]), monitors.spread(tokens[read, 0])
        out["monitor/slices"] = float(read.sum())
        out["monitor/lidar"] = monitors.lidar(tokens[read])
        out["monitor/patch_cosine"] = float(self.found["patch_cosine"][read].mean())
        out["monitor/attention_entropy"] = float(self.found["attention_entropy"].mean())
        if "choice" in self.found:
            out["monitor/prototypes"] = monitors.first_choices(self.found["choice"][read], self.prototypes)
        if self.moments:
            out["monitor/linear_dice"] = linear_dice.linear_dice(self.moments, patch.shape[1])
        return out


class Probe:
    """The slices in memory, int16 (a process holds those of its own devices), and the program that looks at them."""

    def __init__(self, recipe: Recipe, mesh: Mesh, corpus: Corpus, state: TrainState, ledger: Ledger):
        self.asked, self._recipe, self._mesh, self._ledger = choose(corpus, recipe), recipe, mesh, ledger
        self._chunk = batch_shards(mesh) * -(-CHUNK // batch_shards(mesh))
        self._batches = self._load(corpus)
        program = jax.jit(functools.partial(_look_at, recipe=recipe, mesh=mesh))
        lowered = program.lower(shown(state), to_devices(self._batches[0], mesh))
        self._look = lowered.compile(compiler.options(jax.default_backend()))

    def _load(self, corpus: Corpus) -> list[dict[str, np.ndarray]]:
        """The rows of this process of every chunk; one that cannot be read is zeros, and not `read`."""
        asked, side = self.asked.slices, max(corpus.contract["largest"])
        rows = local_rows(self._chunk, self._mesh)
        out: list[dict[str, np.ndarray]] = []
        is_ct = corpus.take("modality", asked) == "CT"
        for start in range(0, len(asked), self._chunk):
            slices, extent = np.zeros((len(rows), side, side), np.int16), np.ones((len(rows), 2), np.int32)
            kind, read = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
            for row, number in enumerate((start + rows).tolist()):
                if number < len(asked):
                    with contextlib.suppress(CorruptRecord):
                        one = corpus.read(int(asked[number]))
                        slices[row, : one.shape[0], : one.shape[1]], extent[row] = one, one.shape
                        kind[row], read[row] = is_ct[number], True
            batch: dict[str, np.ndarray] = {"slices": slices, "extent": extent, "is_ct": kind, "read": read}
            out.append(batch | _where_structures_lie(self.asked, start + rows, read))
        return out

    def __call__(self, step: int, state: TrainState) -> dict[str, Looked]:
        """{PROBE: what was found}, or nothing where the step is none to look at. Every process has to call it.

        One program after another: on CPUs two that both wait for other processes can starve each other of threads.
        """
        if step % self._recipe.probe.every_steps and step != self._recipe.schedule.total_steps:
            return {}
        jax.block_until_ready(state)
        with self._ledger.spent("look"):
            return {reports.PROBE: self._seen(state)}

    def _seen(self, state: TrainState) -> Looked:
        found: dict[str, list[np.ndarray]] = {}
        sums: linear_dice.Moments | None = None
        for batch in self._batches:
            seen = {name: np.asarray(x) for name, x in self._look(shown(state), to_devices(batch, self._mesh)).items()}
            if self.asked.dense:
                more = linear_dice.Moments(*(seen.pop(name) for name in NAMES))
                sums = linear_dice.joined(sums, more) if sums else more
            for name, x in seen.items():
                found.setdefault(name, []).append(x)
        entropy = np.mean(found.pop("attention_entropy"), axis=0)
        count = len(self.asked.slices)
        whole = {name: np.concatenate(parts)[:count] for name, parts in found.items()}
        whole["attention_entropy"] = entropy
        return Looked(self.asked, whole, self._recipe.dino_head.prototypes, sums)

    def line(self) -> str:
        """What is asked, of how much."""
        asked, recipe = self.asked, self._recipe
        count = asked.dense.shares.shape[2] if asked.dense else 0
        dense = (
            f"of {count} structures" if count else "not asked, for want of label maps in both halves of the patients"
        )
        whose = "that are not trained on" if asked.unseen else "of the training (config.data.held_out keeps some out)"
        return (
            f"probe: {len(asked.slices):,} slices of {len(set(asked.groups.tolist())):,} patients {whose}, "
            f"every {recipe.probe.every_steps:,} steps; linear Dice {dense}"
        )


def open_probe(run: Run, state: TrainState) -> Probe | None:
    """The probe of a run, if it has one; a run that begins is looked at first, as row 0 of its metrics.

    Raises:
      UserError: `config.probe.corpus` is no corpus.
    """
    config = run.recipe.probe
    if not config.every_steps:
        return None
    probe = Probe(run.recipe, run.mesh, Corpus(config.corpus or run.recipe.data.corpus), state, run.ledger)
    if run.log:
        print(probe.line(), flush=True)
    found = probe(0, state) if run.start == 0 else {}
    if run.log and found:
        reports.first_row(run.log, found[reports.PROBE].scalars())
    return probe


def shown(state: TrainState) -> dict:
    """What is looked at, not a copy: the teacher, since that is what is exported."""
    return {name: state.teacher[name] for name in ("backbone", "dino_head") if name in state.teacher}


def _where_structures_lie(asked: Asked, numbers: np.ndarray, read: np.ndarray) -> dict[str, np.ndarray]:
    """What `moments` takes, of the slices `numbers` (b,) of those asked; past their end, or not `read`, of no half."""
    if not asked.dense:
        return {}
    inside = np.minimum(numbers, len(asked.slices) - 1)
    halves = np.stack([~asked.test, asked.test], axis=1)[inside]
    usable = read & asked.dense.rows[inside]
    return {"shares": asked.dense.shares[inside], "halves": halves & usable[:, None]}


def _look_at(params: dict, batch: dict[str, Array], *, recipe: Recipe, mesh: Mesh) -> dict[str, Array]:
    """`look`, and which slices were read: each process knows of its own."""
    dense = (batch["shares"], batch["halves"]) if "shares" in batch else None
    found = look(params, batch["slices"], batch["extent"], batch["is_ct"], recipe=recipe, mesh=mesh, dense=dense)
    return found | {"read": sharding.whole(batch["read"], mesh)}
