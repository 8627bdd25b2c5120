"""The one loop: restore, then for every step: dispatch, fetch the next batch, read the metrics before, maybe save."""

import collections
import contextlib
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from curia2_jax.ending import STOPPED
from curia2_jax.parallel.processes import StopRequests
from curia2_jax.parallel.signals import StopRequest
from curia2_jax.telemetry.live import Live
from curia2_jax.telemetry.progress import Progress
from curia2_jax.training import reports
from curia2_jax.training.prepare import Run, compile_step, prepare, to_devices
from curia2_jax.training.probe import open_probe
from curia2_jax.training.saving import Saver
from curia2_jax.training.state import TrainState

# Exit codes of a run.
DONE, NONFINITE = 0, 43  # and STOPPED


def train(
    config: Mapping[str, Any],
    workdir: pathlib.Path,
    stop: StopRequest | None = None,
    *,
    profile: bool = False,
) -> int:
    """Pre-trains, or goes on from the newest checkpoint of the working directory.

    Args:
      config: nested dict of configs/common.py. workdir: made, or taken up again.
      stop: asked after every step; if it was made in any process, all save and return STOPPED.
      profile: trace a few steps (telemetry/profile.py).
    Returns:
      DONE, STOPPED (saved; safe to call again) or NONFINITE (the last good checkpoint stands; nonfinite.json tells).
    Raises:
      UserError: config, corpus or working directory do not fit.
    """
    with contextlib.ExitStack() as closing:
        run, state = prepare(config, workdir, closing, profile=profile)
        if run.start < run.total:
            return steps(run, state, stop or StopRequest())
        reports.finish(run.workdir, state, run.is_lead)
        return DONE


def steps(run: Run, state: TrainState, asked: StopRequest) -> int:
    """From `run.start` to the end or to a stop. See `train`."""
    stop_requests = StopRequests(asked.made)
    batch = to_devices(stop_requests.send(next(run.batches)), run.mesh)
    run.watch.enter("compile")
    with run.ledger.spent("compile"):
        compiled = compile_step(run, state, batch)
        probe = open_probe(run, state)
    run.ledger.enter("step")
    progress = Progress(run.total, run.recipe.data.global_batch, run.start)
    unread: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()
    saver = Saver(run.workdir, run.checkpoints, run.newest, run.recipe.checkpoint.every_steps)

    with asked.answered(), Live(progress, sys.stdout) as live:
        for step in range(run.start + 1, run.total + 1):
            run.watch.enter("step")
            if run.trace:
                run.trace.before(step)
            before, (state, metrics) = state, compiled(state, batch)
            unread.append((step, metrics | (probe(step, state) if probe else {})))
            if step == run.start + 1 and run.is_lead:
                reports.warn_if_kept(before)
                # Now, so that the devices have something to do meanwhile.
                reports.picture_of_crops(run.workdir, batch, run.recipe)
            del before
            if step < run.total:
                with progress.waiting(), run.ledger.spent("data"):
                    batch = to_devices(stop_requests.send(next(run.batches)), run.mesh)
            stop = step < run.total and (stop_requests() or saver.too_long(step))
            save = stop or step == run.total or is_due(run, step, saver)
            # The host reads a step's metrics while the device does the next one; before a save it waits for all.
            while len(unread) > (0 if save else 1):
                done, values = unread.popleft()
                stop_requests.read(values)
                if not read(run, live, saver, done, values):
                    return NONFINITE
            if save:
                run.watch.enter("save")
                with run.ledger.spent("save"):
                    saver.save(step, state, run.meta | replaced(run, step))
                progress.saved()
                run.ledger.write(step)
            if stop or step == run.total:
                with run.ledger.spent("save"):
                    saver.finish()
                live.end()
                reports.goodput(run.ledger, step)
                if stop or saver.trouble:
                    reports.stopped(step, saver.newest, saver.poll(), run.is_lead)
                    return STOPPED
            elif save and run.is_lead:  # beside the writing, and not in the grace period of a stop
                reports.draw_curves(run.workdir)
    run.watch.enter("")
    if run.is_lead:
        reports.draw_curves(run.workdir)
    reports.finish(run.workdir, state, run.is_lead)
    return DONE


def replaced(run: Run, step: int) -> dict[str, str]:
    """For the checkpoint of a step, after which the batch of the next was fetched already: rows replaced up to it."""
    last = step == run.total
    return {"replaced": str(run.batches.replaced if last else run.batches.replaced_before)}


def is_due(run: Run, step: int, saver: Saver) -> bool:
    """Whether this step is saved; what could not be is tried again whenever something is logged."""
    every = run.recipe.log.every_steps if saver.trouble else run.recipe.checkpoint.every_steps
    return step % every == 0


def read(run: Run, live: Live, saver: Saver, step: int, values: dict[str, Any]) -> bool:
    """Reports what a finished step says; False if it is not finite."""
    if not bool(values["finite"]):
        live.end()
        if run.is_lead:
            reports.nonfinite(run.workdir, step, values, run.batches)
        return False
    if run.log and (step % run.recipe.log.every_steps == 0 or step == run.total or reports.PROBE in values):
        reports.row(run.log, live, step, values, run.batches, saver.poll(), run.recipe)
        run.ledger.write(step)
    elif run.log:
        live.step(step)
    return True
