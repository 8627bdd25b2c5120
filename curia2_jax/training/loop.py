"""The one loop: restore, then for every step: dispatch, fetch the next batch, read the metrics before, maybe save."""

import collections
import contextlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

from curia2_jax.parallel.processes import StopRequests
from curia2_jax.telemetry.progress import Progress
from curia2_jax.training import reports
from curia2_jax.training.prepare import Run, compile_step, prepare, to_devices
from curia2_jax.training.state import TrainState

# Exit codes of a run.
DONE, STOPPED, NONFINITE = 0, 42, 43


def train(
    config: Mapping[str, Any],
    workdir: pathlib.Path,
    stop_requested: Callable[[], bool] = lambda: False,
    *,
    profile: bool = False,
) -> int:
    """Pre-trains, or goes on from the newest checkpoint of the working directory.

    Args:
      config: nested dict of configs/common.py. workdir: made, or taken up again.
      stop_requested: asked after every step; if it says so in any process, all save and return STOPPED.
      profile: trace a few steps (telemetry/profile.py).
    Returns:
      DONE, STOPPED (saved; safe to call again) or NONFINITE (the last good checkpoint stands; nonfinite.json tells).
    Raises:
      UserError: config, corpus or working directory do not fit.
    """
    with contextlib.ExitStack() as closing:
        run, state = prepare(config, workdir, closing, profile=profile)
        if run.start < run.total:
            return steps(run, state, StopRequests(stop_requested))
        reports.finish(run.workdir, state, run.is_lead)
        return DONE


def steps(run: Run, state: TrainState, stop_requests: StopRequests) -> int:
    """From `run.start` to the end or to a stop. See `train`."""
    batch = to_devices(stop_requests.send(next(run.batches)), run.mesh)
    compiled = compile_step(run, state, batch)
    progress = Progress(run.total, run.recipe.data.global_batch, run.start)
    unread: collections.deque[tuple[int, dict[str, Array]]] = collections.deque()

    for step in range(run.start + 1, run.total + 1):
        if run.trace:
            run.trace.before(step)
        before, (state, metrics) = state, compiled(state, batch)
        unread.append((step, metrics))
        if step == run.start + 1 and run.is_lead:
            reports.warn_if_kept(before)
            # Now, so that the devices have something to do meanwhile.
            reports.picture_of_crops(run.workdir, batch, run.recipe)
        del before
        if step < run.total:
            with progress.waiting():
                batch = to_devices(stop_requests.send(next(run.batches)), run.mesh)
        stop = stop_requests()
        save = stop or step == run.total or step % run.recipe.checkpoint.every_steps == 0
        # The host reads a step's metrics while the device does the next one; before a save it waits for all.
        while len(unread) > (0 if save else 1):
            done, values = unread.popleft()
            stop_requests.read(values)
            if not bool(values["finite"]):
                if run.is_lead:
                    reports.nonfinite(run.workdir, done, values, run.batches)
                return NONFINITE
            if run.log and (done % run.recipe.log.every_steps == 0 or done == run.total):
                reports.row(run.log, progress, done, values, run.batches)
        if save:
            run.checkpoints.save(state, run.meta)
            progress.saved()
            if run.is_lead:
                reports.draw_curves(run.workdir)
        if stop and step < run.total:
            run.checkpoints.wait()
            if run.is_lead:
                print(f"stopped at step {step:,} and saved; call again with the same --workdir to go on", flush=True)
            return STOPPED
    run.checkpoints.wait()
    reports.finish(run.workdir, state, run.is_lead)
    return DONE
