"""The one loop: restore, then for every step: dispatch, fetch the next batch, read the metrics before, maybe save."""

import collections
import contextlib
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax import Array

from curia2_jax.ending import NOT_AGAIN, STOPPED
from curia2_jax.parallel.processes import StopRequests
from curia2_jax.parallel.signals import StopRequest
from curia2_jax.telemetry.live import Live
from curia2_jax.telemetry.progress import Progress
from curia2_jax.training import badsteps, reports
from curia2_jax.training.badsteps import REWIND
from curia2_jax.training.prepare import Run, compile_step, prepare, to_devices
from curia2_jax.training.probe import open_probe
from curia2_jax.training.saving import Saver
from curia2_jax.training.state import TrainState
from curia2_jax.training.step import LARGEST_NORM, STEP

# Exit codes of a run.
DONE = 0  # and STOPPED, NOT_AGAIN


def train(
    config: Mapping[str, Any],
    workdir: pathlib.Path,
    stop: StopRequest | None = None,
    *,
    profile: bool = False,
    source: str = "",
) -> int:
    """Pre-trains, or goes on from the newest checkpoint of the working directory.

    Args:
      config: nested dict of configs/common.py. workdir: made, or taken up again.
      stop: asked after every step; if it was made in any process, all save and return STOPPED.
      profile: trace a few steps (telemetry/profile.py). source: RUN@STEP, what a new working directory begins with.
    Returns:
      DONE, STOPPED (saved; safe to call again) or NOT_AGAIN (the last good checkpoint stands; nonfinite.json tells).
    Raises:
      UserError: config, corpus or working directory do not fit.
    """
    while True:  # a rewind is another life of the run, in the same process
        code = live(config, workdir, stop or StopRequest(), profile, source)
        if code != REWIND:
            return code


def live(config: Mapping[str, Any], workdir: pathlib.Path, stop: StopRequest, profile: bool, source: str) -> int:
    """From the newest checkpoint to the end, a stop, or REWIND. See `train`."""
    with contextlib.ExitStack() as closing:
        run, state = prepare(config, workdir, closing, profile=profile, source=source)
        if run.start < run.total:
            return steps(run, state, stop)
        reports.finish(run.workdir, state, run.is_lead)
        return DONE


class Feed:
    """The batches of the steps under way, on the devices, each until its step was read."""

    def __init__(self, run: Run, stop_requests: StopRequests, progress: Progress):
        self._run, self._stop_requests, self._progress = run, stop_requests, progress
        self._of: dict[int, dict[str, Array]] = {}

    def fetch(self, step: int) -> dict[str, Array]:
        """The batch of a step, which is the next one or was fetched before."""
        if step not in self._of:
            with self._progress.waiting(), self._run.ledger.spent("data"):
                rows = self._stop_requests.send(next(self._run.batches))
                rows[STEP] = np.full(len(rows["is_ct"]), step - 1, np.int32)
                if self._run.recipe.guard.spike:
                    rows[LARGEST_NORM] = np.full(len(rows["is_ct"]), self._run.norms.largest(step), np.float32)
                self._of[step] = to_devices(rows, self._run.mesh)
        return self._of[step]

    def done(self, step: int) -> dict[str, Array]:
        """The batch of a step that was read; it is not kept any longer."""
        return self._of.pop(step)


def steps(run: Run, state: TrainState, asked: StopRequest) -> int:
    """From `run.start` to the end or to a stop. See `train`."""
    stop_requests = StopRequests(asked.made)
    progress = Progress(run.total, run.recipe.data.global_batch, run.start)
    feed = Feed(run, stop_requests, progress)
    first = feed.fetch(run.start + 1)
    run.watch.enter("compile")
    with run.ledger.spent("compile"):
        compiled = compile_step(run.recipe, run.mesh, state, first, f"life {run.journal.count}")
        probe = open_probe(run, state)
    run.ledger.enter("step")
    unread: collections.deque[tuple[int, dict[str, Any]]] = collections.deque()
    saver = Saver(run.workdir, run.checkpoints, run.newest, run.recipe.checkpoint.every_steps)

    with asked.answered(), Live(progress, sys.stdout) as live:
        step = run.start
        while step < run.total:
            step = sent = step + 1
            run.watch.enter("step")
            if run.trace:
                run.trace.before(step)
            before, (state, metrics) = state, compiled(state, feed.fetch(step))
            unread.append((step, metrics | (probe(step, state) if probe else {})))
            if step == run.start + 1 and run.is_lead:  # now, so that the devices have something to do meanwhile
                reports.warn_if_kept(before)
                reports.picture_of_crops(run.workdir, first, run.recipe)
            del before
            if step < run.total:
                feed.fetch(step + 1)
            stop = step < run.total and (stop_requests() or saver.too_long(step))
            save = stop or step == run.total or is_due(run, step, saver)
            # The host reads a step's metrics while the device does the next one; before a save it waits for all.
            while len(unread) > (0 if save else 1):
                done, values = unread.popleft()
                stop_requests.read(values)
                batch = feed.done(done)
                if not bool(values["applied"]):
                    live.end()
                    code = badsteps.answer(run, saver, done, state, batch, values)
                    if code is not None:
                        return code
                    # What was sent behind it has changed nothing, and is sent again.
                    state, step = badsteps.counted(state), done
                    unread.clear()
                read(run, live, saver, done, values)
                if badsteps.has_collapsed(run, live, done, values):
                    return NOT_AGAIN
            if save and step == sent:
                write(run, progress, saver, step, state, go_on=not stop and step < run.total)
            if (stop and step == sent) or step == run.total:
                live.end()
                reports.goodput(run.ledger, step)
                if stop or saver.trouble:
                    reports.stopped(step, saver.newest, saver.poll(), run.is_lead)
                    return STOPPED
    run.watch.enter("")
    if run.is_lead:
        reports.draw_curves(run.workdir)
    reports.finish(run.workdir, state, run.is_lead)
    return DONE


def write(run: Run, progress: Progress, saver: Saver, step: int, state: TrainState, *, go_on: bool) -> None:
    """Saves a state; a run that does not go on waits until that is on the disk."""
    run.watch.enter("save")
    with run.ledger.spent("save"):
        saver.save(step, state, run.meta | replaced(run, step) | {"norms": run.norms.known()})
        if not go_on:
            saver.finish()
    progress.saved()
    run.ledger.write(step)
    if go_on and run.is_lead:  # beside the writing, and not in the grace period of a stop
        reports.draw_curves(run.workdir)


def replaced(run: Run, step: int) -> dict[str, str]:
    """For the checkpoint of a step, after which the batch of the next was fetched already: rows replaced up to it."""
    last = step == run.total
    return {"replaced": str(run.batches.replaced if last else run.batches.replaced_before)}


def is_due(run: Run, step: int, saver: Saver) -> bool:
    """Whether this step is saved; what could not be is tried again whenever something is logged."""
    every = run.recipe.log.every_steps if saver.trouble else run.recipe.checkpoint.every_steps
    return step % every == 0


def read(run: Run, live: Live, saver: Saver, step: int, values: dict[str, Any]) -> None:
    """Reports what a finished step says."""
    if bool(values["applied"]):
        run.norms.add(step, float(values["grad_norm"]))
    if run.log and (step % run.recipe.log.every_steps == 0 or step == run.total or reports.PROBE in values):
        counts = {"replaced_records": run.batches.replaced, "bad_steps": run.journal.count}
        reports.row(run.log, live, step, values, counts, saver.poll(), run.recipe)
        run.ledger.write(step)
    elif run.log:
        live.step(step)
