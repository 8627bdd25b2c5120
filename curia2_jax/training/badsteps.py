"""What a run does about a step that was not applied: it stops, counts it, or goes back and takes other batches.

The state is still the one before that step: batches that were sent behind it are for another (training/step.py).
"""

import dataclasses
from typing import Any

import jax
from jax import Array

from curia2_jax.ending import NOT_AGAIN
from curia2_jax.telemetry.live import Live
from curia2_jax.training import capsule, reports
from curia2_jax.training.prepare import Run
from curia2_jax.training.saving import Saver
from curia2_jax.training.state import TrainState

REWIND = -1  # no exit code: the run goes on from its newest checkpoint


def answer(
    run: Run, saver: Saver, step: int, state: TrainState, batch: dict[str, Array], values: dict[str, Any]
) -> int | None:
    """Leaves a report and a capsule, and gives NOT_AGAIN, REWIND, or None to go on as if the step had been done.

    Raises:
      UserError: it cannot be noted, or the working directory was removed.
    """
    guard, report = run.recipe.guard, _report(run, step, values)
    no_list = reports.keep_bad_step(run.workdir, report) if run.is_lead else ""
    run.watch.enter("save")
    saver.finish()
    no_capsule = capsule.write(run, state, batch, report)
    too_many = run.journal.count >= guard.limit
    if guard.nonfinite == "stop" or too_many:
        if run.is_lead:
            reports.bad_end(run.workdir, step, report, too_many and guard.nonfinite != "stop", no_list, no_capsule)
        return NOT_AGAIN
    row, done = {**report, "done": guard.nonfinite}, "its update is skipped"
    if guard.nonfinite == "rewind":
        row |= {"from": saver.newest, "batches": step - saver.newest}
        done = f"back to step {saver.newest:,} and on behind its batch"
    run.journal.add(row)
    if run.is_lead:
        reports.left_out(step, report, done, run.journal.count, guard.limit)
    return REWIND if guard.nonfinite == "rewind" else None


def has_collapsed(run: Run, live: Live, step: int, values: dict[str, Any]) -> bool:
    """Says so, once, when all images get one class token; True if the run has to stop for that."""
    if step % run.recipe.log.every_steps:
        return False
    spread = float(values["feature_std"])
    if not run.collapse.begins(step, spread):
        return False
    stops = run.recipe.guard.collapse == "stop"
    live.end()
    if run.is_lead:
        reports.collapsed(step, spread, stops)
    return stops


def _report(run: Run, step: int, values: dict[str, Any]) -> dict[str, Any]:
    """What is known of a bad step; process 0 alone knows its images."""
    return reports.bad_step(step, values, run.batches) if run.is_lead else {"step": step}


def counted(state: TrainState) -> TrainState:
    """The same state, one step later: all but its step and with it the schedules stays as it was."""
    return dataclasses.replace(state, step=jax.device_put(state.step + 1, state.step.sharding))
