"""Everything before the first step: the checks, the working directory, the state, the data, the compiled program."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.crops.batches import Batches, batches
from curia2_jax.ending import end_now, given_back
from curia2_jax.errors import UserError
from curia2_jax.parallel import compiler
from curia2_jax.parallel.mesh import BATCH, batch_shards, check_batch, local_rows, make_mesh
from curia2_jax.parallel.processes import first_says, wait_for_all
from curia2_jax.telemetry.goodput import Ledger
from curia2_jax.telemetry.metrics import MetricsWriter
from curia2_jax.telemetry.profile import Profile
from curia2_jax.telemetry.progress import duration
from curia2_jax.training import branch, checkpoints, lock, reports, salvage, workdir
from curia2_jax.training.checkpoints import Checkpoints
from curia2_jax.training.collapse import Collapse
from curia2_jax.training.initial import Origin, abstract_sharded_state, initial_state
from curia2_jax.training.journal import Journal
from curia2_jax.training.recipe import Recipe, recipe_from
from curia2_jax.training.saving import check_room, quiet
from curia2_jax.training.spikes import Norms
from curia2_jax.training.state import TrainState
from curia2_jax.training.step import train_step
from curia2_jax.training.watchdog import Watchdog, count_faults

CompiledStep = Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is set up, except for its state, which every step replaces."""

    workdir: pathlib.Path
    config: Mapping[str, Any]
    recipe: Recipe
    mesh: Mesh
    start: int  # steps that are done already
    newest: int | None  # the checkpoint that they were read from
    batches: Batches
    journal: Journal
    norms: Norms
    collapse: Collapse
    checkpoints: Checkpoints
    meta: dict[str, str]  # what a checkpoint says of where it comes from
    is_lead: bool  # of the processes, the one that prints and writes
    ledger: Ledger
    watch: Watchdog
    log: MetricsWriter | None  # of the lead
    trace: Profile | None  # of the lead, if it was asked for

    @property
    def total(self) -> int:
        return self.recipe.schedule.total_steps


def prepare(
    config: Mapping[str, Any], folder: pathlib.Path, closing: contextlib.ExitStack, *, profile: bool, source: str
) -> tuple[Run, TrainState]:
    """Checks, claims and opens all that a run needs, and restores or draws its state; `closing` closes it again.

    Raises:
      UserError: config, corpus or working directory do not fit.
    """
    ledger = Ledger()
    recipe = recipe_from(config)
    mesh = make_mesh(recipe.parallel)
    check_batch(recipe.data.global_batch, recipe.data.group_size, recipe.parallel.accumulation, batch_shards(mesh))
    corpus = corpus_of(recipe)
    newest = first_says(lambda: settle(folder, config, closing, source))
    contract = corpus.contract["hash"]

    closing.enter_context(jax.set_mesh(mesh))
    closing.enter_context(quiet())
    saved = closing.enter_context(Checkpoints(folder, recipe.checkpoint))
    is_lead = jax.process_index() == 0
    watch = closing.enter_context(Watchdog(folder, jax.process_index()))
    closing.enter_context(count_faults(folder, newest, lock.owner_id(folder)))
    watch.enter("restore")
    with ledger.spent("restore"):
        state, origin = initial_state(saved, newest, recipe, mesh, contract)
    watch.enter("")
    check_room(folder, state)
    start = int(state.step)
    every, journal = recipe.log.every_steps, Journal(folder, start)
    before = {} if newest is None else checkpoints.read_meta(folder, newest)
    loader = closing.enter_context(open_batches(recipe, mesh, corpus, before, start, journal))
    run = Run(
        folder,
        config,
        recipe,
        mesh,
        start,
        newest,
        loader,
        journal,
        Norms(recipe.guard.spike, before.get("norms", {})),
        Collapse(recipe.schedule.warmup_steps),
        saved,
        meta={"config": digest(config), "corpus": contract},
        is_lead=is_lead,
        ledger=ledger,
        watch=watch,
        log=closing.enter_context(contextlib.closing(MetricsWriter(folder, start, every))) if is_lead else None,
        trace=closing.enter_context(contextlib.closing(Profile(folder, start))) if profile and is_lead else None,
    )
    if is_lead:
        announce(run, state, origin, len(corpus))
    return run, state


def digest(config: Mapping[str, Any]) -> str:
    """Of a nested config, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def announce(run: Run, state: TrainState, origin: Origin, slices: int) -> None:
    """Keeps where this life of the run starts, and prints it."""
    run.ledger.begin(run.workdir, run.start, run.recipe.log.every_steps)
    workdir.keep_origin(run.workdir, origin.record)
    reports.print_start(run.recipe, run.mesh, slices, state, run.start, origin.line)


def corpus_of(recipe: Recipe) -> Corpus:
    """The corpus of a run. Raises UserError: there is none, or the model takes other images than its slices."""
    if recipe.model.in_channels != 1:
        raise UserError(
            f"config.model.in_channels: found {recipe.model.in_channels}, slices have one channel; write 1 (weights of "
            "more become weights of one by --config.init.adapt=channels:sum)"
        )
    if not recipe.data.corpus:
        raise UserError("config.data.corpus: no corpus; write --config.data.corpus=FOLDER, made by launch/ingest.py")
    return Corpus(recipe.data.corpus)


def open_batches(
    recipe: Recipe, mesh: Mesh, corpus: Corpus, before: Mapping[str, Any], start: int, journal: Journal
) -> Batches:
    """The batches from `start` on, for the rows of this process; `before`: the meta of the checkpoint there."""
    return batches(
        recipe.data,
        recipe.crops,
        recipe.masks,
        recipe.model.patch_size,
        seed=recipe.seed,
        start_step=start,
        stop_step=recipe.schedule.total_steps,
        rows=local_rows(recipe.data.global_batch, mesh),
        corpus=corpus,
        replaced=int(before.get("replaced", 0)),
        passed_over=journal.passed_over,
    )


def settle(folder: pathlib.Path, config: Mapping[str, Any], closing: contextlib.ExitStack, source: str) -> int | None:
    """Makes or takes up the working directory, with the checkpoint `source` of another where that is asked for, and
    locks it until `closing`; the step of the checkpoint to go on from. For one process of a run.

    Raises:
      UserError: it cannot be made, is not a run of this config, is locked, or has checkpoints and none is good.
    """
    try:
        mine = lock.Lock(
            folder, lambda why: end_now(2, f"error: --workdir {folder}: {why}; stopped, nothing more written")
        )
        closing.enter_context(given_back(mine.take().close))
    except OSError as e:
        raise workdir.cannot_write(folder, e) from e
    workdir.claim(folder, config)
    salvage.clear_leftovers(folder)
    branch.begin(folder, source, config)
    return salvage.newest_good(folder)


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """The rows of this process as part of global arrays."""
    sharding = NamedSharding(mesh, BATCH)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def compile_step(recipe: Recipe, mesh: Mesh, state: TrainState, batch: dict[str, Array], name: str) -> CompiledStep:
    """The step, compiled once and ahead: a second compilation cannot happen, other shapes would raise. `name` is one
    that this process has not given before."""
    began = time.monotonic()
    shardings = jax.tree.map(lambda a: a.sharding, abstract_sharded_state(recipe, mesh))
    step = functools.partial(train_step, recipe=recipe, mesh=mesh)
    lowered = jax.jit(step, out_shardings=(shardings, None), donate_argnums=0).lower(state, batch)
    compiled = lowered.compile(compiler.options(jax.default_backend()))
    wait_for_all(f"compiled {name}")
    if jax.process_index() == 0:
        print(f"compiled in {duration(time.monotonic() - began)}", flush=True)
    return compiled
