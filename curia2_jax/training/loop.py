"""The one loop: restore, then for every step: dispatch, fetch the next batch, read the metrics before, maybe save."""

import contextlib
import functools
import hashlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from curia2_jax import files
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.crops.batches import Batches
from curia2_jax.data.crops.batches import batches as make_batches
from curia2_jax.errors import UserError
from curia2_jax.parallel import compiler, sharding
from curia2_jax.parallel.mesh import BATCH, batch_shards, check_batch, local_rows, make_mesh
from curia2_jax.parallel.processes import STOP, StopRequests, first_alone, wait_for_all
from curia2_jax.telemetry import metrics as metrics_files
from curia2_jax.telemetry import pictures
from curia2_jax.telemetry.profile import Profile
from curia2_jax.telemetry.progress import Progress, duration
from curia2_jax.training import augment, checkpoints, optimizer, workdir
from curia2_jax.training.checkpoints import Checkpoints
from curia2_jax.training.initial import abstract_sharded_state, initial_state
from curia2_jax.training.objective import CLASS_TOKENS
from curia2_jax.training.recipe import Recipe, recipe_from
from curia2_jax.training.state import TrainState, count, state_hash
from curia2_jax.training.step import AUGMENT, step_key, train_step
from curia2_jax.training.terms import TERMS

# Exit codes of a run.
DONE, STOPPED, NONFINITE = 0, 42, 43


def train(
    config: Mapping[str, Any],
    run: pathlib.Path,
    stop_requested: Callable[[], bool] = lambda: False,
    *,
    profile: bool = False,
) -> int:
    """Pre-trains, or goes on from the run's newest checkpoint.

    Args:
      config: nested dict of configs/common.py. run: the working directory; made, or taken up again.
      stop_requested: asked after every step; if it says so in any process, all save and return STOPPED.
      profile: trace a few steps (telemetry/profile.py).
    Returns:
      DONE, STOPPED (saved; safe to call again) or NONFINITE (the last good checkpoint stands; nonfinite.json tells).
    Raises:
      UserError: config, corpus or working directory do not fit.
    """
    recipe = recipe_from(config)
    mesh = make_mesh(recipe.parallel)
    check_batch(recipe.data.global_batch, recipe.data.group_size, recipe.parallel.accumulation, batch_shards(mesh))
    if not recipe.data.corpus:
        raise UserError("config.data.corpus: no corpus; write --config.data.corpus=FOLDER, made by launch/ingest.py")
    corpus = Corpus(recipe.data.corpus)
    first_alone(lambda: workdir.claim(run, config))
    contract = corpus.contract["hash"]
    total = recipe.schedule.total_steps
    meta = {"config": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(), "corpus": contract}
    main = jax.process_index() == 0

    with contextlib.ExitStack() as closing:
        closing.enter_context(jax.set_mesh(mesh))
        saved = closing.enter_context(Checkpoints(run, recipe.checkpoint))
        state = initial_state(saved, recipe, mesh, contract)
        checkpoints.check_room(run, state)
        start = int(state.step)
        rows = local_rows(recipe.data.global_batch, mesh)
        sections = recipe.data, recipe.crops, recipe.masks, recipe.model.patch_size
        batches = closing.enter_context(
            make_batches(*sections, seed=recipe.seed, start_step=start, stop_step=total, rows=rows, corpus=corpus)
        )
        put = functools.partial(to_devices, sharding=NamedSharding(mesh, BATCH))
        stop_agreed = StopRequests(stop_requested)
        trace = Profile(run, start) if profile and main else None
        if trace:
            closing.callback(trace.close)
        log = metrics_files.MetricsWriter(run, start) if main else None
        if log:
            closing.callback(log.close)
            print_start(recipe, mesh, corpus, state, start)
        if start >= total:
            return finish(run, state, main)

        batch = put(stop_agreed.send(next(batches)))
        compiled = compile_step(recipe, mesh, state, batch, main)
        progress = Progress(total, recipe.data.global_batch, start)
        unread: list[tuple[int, dict[str, Array]]] = []

        for step in range(start + 1, total + 1):
            if trace:
                trace.before(step)
            before, (state, metrics) = state, compiled(state, batch)
            unread.append((step, metrics))
            if step == start + 1 and main:
                warn_if_kept(before)
                # Now, so that the devices have something to do meanwhile.
                picture_of_crops(run, batch, recipe)
            del before
            if step < total:
                began = time.monotonic()
                batch = put(stop_agreed.send(next(batches)))
                progress.waited += time.monotonic() - began
            stop = stop_agreed()
            save = stop or step == total or step % recipe.checkpoint.every_steps == 0
            # The host reads a step's metrics while the device does the next one; before a save it waits for all.
            while len(unread) > (0 if save else 1):
                done, values = unread.pop(0)
                stop_agreed.read(values)
                if not bool(values["finite"]):
                    return report_nonfinite(run, done, values, batches, main)
                if log and (done % recipe.log.every_steps == 0 or done == total):
                    scalars = scalars_of(values)
                    scalars["rankme"] = metrics_files.rankme(np.asarray(values[CLASS_TOKENS]))
                    figures = progress.interval(done)
                    log.write(done, scalars | figures | {"replaced_records": float(batches.corrupt.total())})
                    print(progress.line(scalars["loss"], figures), flush=True)
            if save:
                saved.save(state, meta)
                progress.saved_at = time.monotonic()
                if main:
                    rows_so_far = metrics_files.read(run / "metrics.jsonl")
                    pictures.curves(run / "images" / "curves.png", rows_so_far, [term.curve for term in TERMS])
            if stop and step < total:
                saved.wait()
                if main:
                    print(
                        f"stopped at step {step:,} and saved; call again with the same --workdir to go on", flush=True
                    )
                return STOPPED
        saved.wait()
        return finish(run, state, main)


def to_devices(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, Array]:
    """The rows of this process as part of global arrays."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def compile_step(recipe: Recipe, mesh: Mesh, state: TrainState, batch: dict[str, Array], talk: bool) -> Any:
    """The step, compiled once and ahead: a second compilation cannot happen, other shapes would raise."""
    began = time.monotonic()
    shardings = jax.tree.map(lambda a: a.sharding, abstract_sharded_state(recipe, mesh))
    step = functools.partial(train_step, recipe=recipe, mesh=mesh)
    compiled = jax.jit(step, out_shardings=(shardings, None), donate_argnums=0).lower(state, batch)
    compiled = compiled.compile(compiler.options(jax.default_backend()))
    wait_for_all("compiled")
    if talk:
        print(f"compiled in {duration(time.monotonic() - began)}", flush=True)
    return compiled


def warn_if_kept(before: TrainState) -> None:
    """One line on stderr if the first step did not take over the buffers of the state that it was given."""
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(before) if not leaf.is_deleted())
    if kept:
        print(
            f"warning: the first step copied {kept / 2**20:,.1f} MiB of its state instead of taking them over: it "
            "needs that much more memory than launch/plan.py says",
            file=sys.stderr,
        )


def picture_of_crops(run: pathlib.Path, batch: dict[str, Array], recipe: Recipe) -> None:
    """RUN/images/crops.png, unless it is there: what the student sees of the first images."""
    path = run / "images" / "crops.png"
    if path.exists():
        return
    first = {name: jax.device_put(np.asarray(x.addressable_data(0))[:6]) for name, x in batch.items()}
    key = step_key(recipe, np.int32(0), AUGMENT)
    sizes = recipe.crops.global_size, recipe.crops.local_size
    program = jax.jit(lambda b: augment.crops_of(b, key, recipe.augment, *sizes)).lower(first)
    crops = program.compile(compiler.options_for_once(jax.default_backend()))(first)
    pictures.crops(path, *map(np.asarray, crops), np.asarray(first["masks"]))


def scalars_of(values: dict[str, Array]) -> dict[str, float]:
    """What a step measured, without its tokens and its answers to the loop."""
    return {name: float(x) for name, x in values.items() if name not in (CLASS_TOKENS, "finite", STOP)}


def report_nonfinite(run: pathlib.Path, step: int, values: dict[str, Array], batches: Batches, main: bool) -> int:
    """Writes what is known of a step whose loss or gradient norm is not finite. The state was not touched by it."""
    scalars = scalars_of(values)
    if main:
        text = {name: value if math.isfinite(value) else str(value) for name, value in scalars.items()}
        report = {"step": step, "metrics": text, "batch": batches.records_of_step(step - 1)}
        files.write_text(run / "nonfinite.json", json.dumps(report, indent=1) + "\n")
        print(
            f"error: step {step:,}: loss {scalars['loss']} or a gradient norm is not finite; nothing was updated or "
            f"saved; its images are listed in {run / 'nonfinite.json'}; look at them, or lower config.optim.base_lr",
            file=sys.stderr,
        )
    return NONFINITE


def finish(run: pathlib.Path, state: TrainState, main: bool) -> int:
    digest = state_hash(state)
    if main:
        files.write_text(run / "state.sha256", digest + "\n")
        print(f"done: {int(state.step):,} steps; {checkpoints.directory(run)}", flush=True)
    return DONE


def print_start(recipe: Recipe, mesh: Mesh, corpus: Corpus, state: TrainState, start: int) -> None:
    """What is about to run: one table of parameter groups, and what the groups of images make of the rates."""
    m, d = recipe.model, recipe.data
    print(
        f"ViT width {m.width}, depth {m.depth}, patch {m.patch_size}: {count(state.params['backbone']):,} backbone "
        f"parameters, {count(state.params):,} with heads; {len(corpus):,} slices; {d.global_batch} images a step on "
        f"{mesh.devices.size} device(s), mesh {dict(mesh.shape)}"
    )
    for what, crops in (("global", 2 * d.group_size), ("local", recipe.crops.num_local * d.group_size)):
        kept = max(math.floor(crops * (1 - m.drop_path)), 1)
        rate = f"{1 - kept / crops:.3f} ({kept} of {crops} kept in a group; {m.drop_path} asked)"
        print(f"drop path of {what} crops: {rate}")
    print(f"{'module':<10} {'part':<14} {'parameters':>13} {'lr x':>18} {'decay x':>8}")
    for row in optimizer.table(state.params, recipe.optim):
        print(
            f"{row['module']:<10} {row['part']:<14} {row['parameters']:>13,} {row['lr_mult']:>18} {row['wd_mult']:>8}"
        )
    if sharding.state_shards(mesh) > 1:
        for row in sharding.table(state.params, mesh):
            print(f"{row['path']:<44} {row['shape']!s:<22} {row['spec']:<44} {row['why']}")
    print(f"from step {start:,} to {recipe.schedule.total_steps:,}", flush=True)
