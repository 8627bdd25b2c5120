"""Orbax checkpoints of a run: one item a consumer, so that each reads only its own.

    RUN/checkpoints/STEP/{params, teacher, opt_state, centers, meta}

This file alone knows Orbax's checkpoints: another library is a change of this file.
"""

import json
import pathlib
import shutil
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from curia2_jax.errors import UserError
from curia2_jax.training.recipe import CheckpointConfig, upgraded

PyTree = Any
ITEMS = ("params", "teacher", "opt_state", "centers")


def directory(run: str | pathlib.Path) -> pathlib.Path:
    return pathlib.Path(run).absolute() / "checkpoints"


def check_room(run: str | pathlib.Path, state: Any) -> None:
    """Raises UserError when the disk of a run cannot take one more checkpoint of this TrainState."""
    run = directory(run).parent
    needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(run).free
    if needed > free:
        raise UserError(
            f"{run}: a checkpoint takes {needed / 2**20:,.1f} MiB, {free / 2**20:,.1f} MiB are free; make room, then "
            "call again: the run goes on from its newest checkpoint"
        )


class Checkpoints:
    """The checkpoints of a run, to be written. A context: leaving it waits for what is being written."""

    def __init__(self, run: str | pathlib.Path, c: CheckpointConfig):
        keep = checkpoint_managers.preservation_policy
        self._run = run
        self._manager = ocp.CheckpointManager(
            directory(run),
            item_names=(*ITEMS, "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep.AnyPreservationPolicy(
                    [keep.LatestN(c.latest), keep.EveryNSteps(c.keep_every_steps)]
                ),
                save_decision_policy=checkpoint_managers.save_decision_policy.FixedIntervalPolicy(1),
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def newest(self) -> int | None:
        """The step of the newest finished checkpoint."""
        return self._manager.latest_step()

    def save(self, state: Any, meta: dict[str, Any]) -> None:
        """Saves a TrainState under its own step. Returns after the copy to the host; the checkpoint appears whole or
        not at all. Saving a step that is there already does nothing.

        Raises:
          UserError: there is no room for it.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        check_room(self._run, state)
        items = {name: ocp.args.StandardSave(getattr(state, name)) for name in ITEMS}
        self._manager.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave({**meta, "step": step})))

    def wait(self) -> None:
        """Returns when what was saved is on disk."""
        self._manager.wait_until_finished()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of a step, laid out as the shardings of `abstract_state` say.

        Args:
          abstract_state: TrainState of jax.ShapeDtypeStruct with shardings; any mesh.
        """
        items = {name: ocp.args.StandardRestore(getattr(abstract_state, name)) for name in ITEMS}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore()))
        like = abstract_state.step
        step_array = jax.device_put(np.asarray(step, like.dtype), like.sharding)
        state = abstract_state.replace(step=step_array, **{name: restored[name] for name in ITEMS})
        return donatable(state), restored["meta"]


def donatable(state: Any) -> Any:
    """The same state in buffers that a program made: GPUs may not take over those that a file was read into, so that a
    resumed run, and no other, would need room for one state more (jax-ml/jax#18617)."""
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=shardings)(state)


def steps(run: str | pathlib.Path) -> list[int]:
    """The steps of the finished checkpoints of a run, ascending."""
    folder = directory(run)
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def parse(checkpoint: str) -> tuple[pathlib.Path, int]:
    """(run, step) of `RUN` (its newest checkpoint) or `RUN@STEP`.

    Raises:
      UserError: no such run, or no such checkpoint in it.
    """
    name, at, wanted = checkpoint.rpartition("@")
    if not at or not wanted.isdigit():
        name, wanted = checkpoint, ""
    run = pathlib.Path(name)
    if not run.is_dir():
        raise UserError(f"checkpoint {checkpoint}: no folder {run}; write the working directory of a run")
    found = steps(run)
    if not found:
        raise UserError(f"checkpoint {checkpoint}: no finished checkpoint in {directory(run)}")
    if wanted and int(wanted) not in found:
        raise UserError(f"checkpoint {checkpoint}: no step {wanted}; write one of {', '.join(map(str, found))}")
    return run, int(wanted) if wanted else found[-1]


def restore_item(run: str | pathlib.Path, step: int, item: str) -> PyTree:
    """One item as nested dicts of NumPy arrays, without a mesh and whatever mesh wrote it."""
    folder = directory(run) / str(step) / item
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(epath.Path(folder)).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    with ocp.Checkpointer(handler) as reader:
        return reader.restore(folder, ocp.args.PyTreeRestore(restore_args=as_numpy))


def read_meta(run: str | pathlib.Path, step: int) -> dict[str, Any]:
    return json.loads((directory(run) / str(step) / "meta" / "metadata").read_text())


def restore_teacher(run: str | pathlib.Path, step: int) -> tuple[PyTree, dict[str, Any]]:
    """({backbone, dino_head[, ibot_head]} of NumPy arrays, meta)."""
    return restore_item(run, step, "teacher"), read_meta(run, step)


def read_config(run: str | pathlib.Path) -> dict[str, Any]:
    """The config that a run was started with, in the keys of this release.

    Raises:
      UserError: the folder has none.
    """
    path = pathlib.Path(run) / "config.json"
    try:
        return upgraded(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{path}: not there; write the working directory of a run") from None


def save_init(run: str | pathlib.Path, params: PyTree, meta: dict[str, Any]) -> None:
    """A folder that `init_from` accepts: `params` as student and teacher at step 0, nothing else."""
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(directory(run), item_names=("params", "teacher", "meta"), options=options) as writer:
        items = {name: ocp.args.StandardSave(params) for name in ("params", "teacher")}
        writer.save(0, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave({**meta, "step": 0})))
