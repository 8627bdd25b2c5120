"""What a run says and leaves behind while it goes: its start, its rows, its pictures, its end."""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from curia2_jax import files
from curia2_jax.data.crops.batches import Batches
from curia2_jax.models.drop_path import subset_size
from curia2_jax.parallel import compiler, sharding
from curia2_jax.parallel.processes import STOP
from curia2_jax.telemetry import pictures, resources
from curia2_jax.telemetry.diagnosis import diagnose
from curia2_jax.telemetry.goodput import Ledger
from curia2_jax.telemetry.live import Live
from curia2_jax.telemetry.metrics import MetricsWriter, rankme, read
from curia2_jax.training import augment, checkpoints, optimizer
from curia2_jax.training.objective import CLASS_TOKENS
from curia2_jax.training.recipe import Recipe
from curia2_jax.training.signal import at_start
from curia2_jax.training.state import TrainState, count, state_hash
from curia2_jax.training.step import AUGMENT, step_key
from curia2_jax.training.terms import TERMS

PROBE = "probe"  # of what a probe found, among the metrics of a step


def warn_if_kept(before: TrainState) -> None:
    """One line on stderr if the first step did not take over the buffers of the state that it was given."""
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(before) if not leaf.is_deleted())
    if kept > 2**16:  # JAX 0.11 keeps the scalars on a CPU
        print(
            f"warning: the first step copied {kept / 2**20:,.1f} MiB of its state instead of taking them over: it "
            "needs that much more memory than launch/plan.py says",
            file=sys.stderr,
        )


def picture_of_crops(folder: pathlib.Path, batch: dict[str, Array], recipe: Recipe) -> None:
    """WORKDIR/images/crops.png, unless it is there: what the student sees of the first images."""
    path = folder / "images" / "crops.png"
    if path.exists():
        return
    first = {name: jax.device_put(np.asarray(x.addressable_data(0))[:6]) for name, x in batch.items()}
    key = step_key(recipe, 0, AUGMENT)
    sizes = recipe.crops.global_size, recipe.crops.local_size
    lowered = jax.jit(lambda b: augment.crops_of(b, key, recipe.augment, *sizes)).lower(first)
    program = lowered.compile(compiler.options_for_once(jax.default_backend()))
    global_crops, local_crops = map(np.asarray, program(first))
    pictures.crops(path, global_crops, local_crops, np.asarray(first["masks"]))


def scalars_of(values: dict[str, Any]) -> dict[str, float]:
    """The scalar metrics of a step, on the host."""
    return {name: float(x) for name, x in values.items() if name not in (CLASS_TOKENS, "applied", STOP, PROBE)}


def first_row(log: MetricsWriter, scalars: dict[str, float]) -> None:
    """What is known before the first step, unless an earlier life wrote it."""
    if not log.rows:
        log.write(0, scalars)


def row(
    log: MetricsWriter,
    live: Live,
    step: int,
    values: dict[str, Any],
    counts: Mapping[str, int],
    trouble: str,
    recipe: Recipe,
) -> None:
    """One row of metrics.jsonl and one printed line, with what is wrong with the disk or the run at its end."""
    scalars = scalars_of(values)
    scalars["rankme"] = rankme(np.asarray(values[CLASS_TOKENS]))
    if PROBE in values:
        scalars |= values[PROBE].scalars()
    figures = live.progress.interval(step)
    log.write(step, scalars | figures | resources.usage() | {name: float(n) for name, n in counts.items()})
    found = diagnose(log.rows, dataclasses.asdict(recipe))
    wrong = [what for what in (trouble, log.trouble) if what] + [f"{one.kind}: {one.says}" for one in found[:1]]
    live.row(scalars, figures, "  ".join(wrong))


def stopped(step: int, newest: int, trouble: str, is_lead: bool) -> None:
    """The last line of a run that ends early."""
    if is_lead and trouble:
        print(f"warning: stopped at step {step:,}, {trouble}; call again to go on from {newest:,}", file=sys.stderr)
    elif is_lead:
        print(f"stopped at step {step:,} and saved; call again with the same --workdir to go on", flush=True)


def goodput(ledger: Ledger, step: int) -> None:
    """The last row of a life in goodput.jsonl, and a line about all."""
    ledger.write(step)
    if line := ledger.line():
        print(line, flush=True)


def draw_curves(folder: pathlib.Path) -> None:
    """WORKDIR/images/curves.png from the rows so far."""
    rows = read(folder / "metrics.jsonl")[0]
    with contextlib.suppress(OSError):  # a full disk is said elsewhere, and the next save draws again
        pictures.curves(folder / "images" / "curves.png", rows, [term.curve for term in TERMS])


def bad_step(step: int, values: dict[str, Any], batches: Batches) -> dict[str, Any]:
    """What is known of a step whose loss or gradient is not finite, or a spike: `step`, `metrics`, the images of its
    `batch`. The state was not touched by it."""
    scalars = scalars_of(values)
    text = {name: value if math.isfinite(value) else str(value) for name, value in scalars.items()}
    return {"step": step, "metrics": text, "batch": batches.records_of_step(step - 1)}


def keep_bad_step(folder: pathlib.Path, report: dict[str, Any]) -> str:
    """Writes a report into nonfinite.json; why it cannot be, or ""."""
    try:
        files.write_text(folder / "nonfinite.json", json.dumps(report, indent=1) + "\n")
    except OSError as e:
        return str(e.strerror)
    return ""


def left_out(step: int, report: dict[str, Any], done: str, count: int, limit: int) -> None:
    """One line for a bad step after which a run goes on."""
    print(
        f"warning: step {step:,}: {what_is_bad(report)}; {done} ({count} of at most {limit} in this run); "
        "its images are in bad_steps.jsonl",
        file=sys.stderr,
    )


def bad_end(
    folder: pathlib.Path, step: int, report: dict[str, Any], too_many: bool, no_list: str, no_capsule: str
) -> None:
    """One line for a bad step that ends a run; `no_list` and `no_capsule` say why there is none, or nothing."""
    limit = "; it is one more than config.guard.limit allows" if too_many else ""
    images = f"could not be listed ({no_list})" if no_list else f"are listed in {folder / 'nonfinite.json'}"
    again = f"no capsule ({no_capsule})" if no_capsule else f"--replay={folder / 'bad_step'} does it again"
    print(
        f"error: step {step:,}: {what_is_bad(report)}; nothing was updated or saved{limit}; its images {images}, "
        f"{again}; look at them, lower config.optim.base_lr, or write "
        "--config.guard.nonfinite=skip or rewind",
        file=sys.stderr,
    )


def collapsed(step: int, spread: float, stops: bool) -> None:
    """One line for a network that does not tell images apart."""
    print(
        f"{'error' if stops else 'warning'}: step {step:,}: all images get one class token (spread {spread:.1e}): the "
        "network has collapsed; go back to a checkpoint before that with --branch, and lower config.optim.base_lr or "
        "raise config.objective.sigreg.weight",
        file=sys.stderr,
    )


def what_is_bad(report: dict[str, Any]) -> str:
    metrics = report["metrics"]
    norms = [value for name, value in metrics.items() if name.startswith("grad_norm")]
    if any(isinstance(value, str) for value in (metrics["loss"], *norms)):
        return f"loss {metrics['loss']} or a gradient norm is not finite"
    return f"loss {metrics['loss']:.4f}, but the norm of the gradient, {metrics['grad_norm']:.4g}, is a spike"


def finish(folder: pathlib.Path, state: TrainState, is_lead: bool) -> None:
    """Writes the hash of the final state; every process has to call it."""
    digest = state_hash(state)
    if is_lead:
        files.write_text(folder / "state.sha256", digest + "\n")
        print(f"done: {int(state.step):,} steps; {checkpoints.directory(folder)}", flush=True)


def print_start(recipe: Recipe, mesh: Mesh, slices: int, state: TrainState, start: int, origin: str) -> None:
    """What is about to run: one table of parameter groups, and what the groups of images make of the rates."""
    m, d = recipe.model, recipe.data
    print(
        f"ViT width {m.width}, depth {m.depth}, patch {m.patch_size}: {count(state.params['backbone']):,} backbone "
        f"parameters, {count(state.params):,} with heads; {slices:,} slices; {d.global_batch} images a step on "
        f"{mesh.devices.size} device(s), mesh {dict(mesh.shape)}"
    )
    for what, crops in (("global", 2 * d.group_size), ("local", recipe.crops.num_local * d.group_size)):
        kept = subset_size(crops, m.drop_path)
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
    if start == 0 and not recipe.init_from:
        signal = at_start(m)
        print(signal.line())
        if warning := signal.warning(m):
            print(f"warning: {warning}", file=sys.stderr)
    print(f"weights: {origin}")
    if start < (frozen := recipe.schedule.freeze_backbone_steps):
        print(f"the backbone stays as it is to step {frozen:,}; only the heads learn")
    print(f"from step {start:,} to {recipe.schedule.total_steps:,}", flush=True)
