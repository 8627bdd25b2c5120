"""Orbax checkpoints of a run: one item a consumer, so that each reads only its own.

    RUN/checkpoints/STEP/{params, teacher, opt_state, centers, meta}

`meta` has a fingerprint of every array, taken before anything was written, and every reader compares.
This file and stored_arrays.py, which reads without it, alone know Orbax's checkpoints: another library is a change of
these.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint._src.serialization import tensorstore_utils

from curia2_jax import files
from curia2_jax.errors import UserError
from curia2_jax.training.earlier import upgraded
from curia2_jax.training.fingerprints import digest, fingerprints
from curia2_jax.training.recipe import CheckpointConfig
from curia2_jax.training.stored_arrays import Damaged, opened, replace

PyTree = Any
ITEMS = ("params", "teacher", "opt_state", "centers")
# For a line of its log Orbax asks TensorStore twice, for each item of a save, how much was written, and TensorStore
# (0.1.86) never frees its answer: some 40 kB a save.
tensorstore_utils.get_tensorstore_raw_bytes = lambda *_, **__: 0
# Nor does it free what `to_json` answers, which Orbax asks of the folder of every array: some 50 kB a save.
_Spec = tensorstore_utils.ts.KvStore.Spec
_as_json = _Spec.to_json
_Spec.to_json = lambda spec, *args, **more: (
    {"driver": "file", "path": spec.path} if spec.url.startswith("file://") else _as_json(spec, *args, **more)
)
FORMAT = 2  # of `meta`; 1, of release 0.1.0, has no such key and no fingerprints


def directory(run: str | pathlib.Path) -> pathlib.Path:
    return pathlib.Path(run).absolute() / "checkpoints"


def remove_unfinished(run: str | pathlib.Path) -> None:
    """Removes what saves that were killed or failed have left; nothing may be being saved."""
    for partial in unfinished(run):
        shutil.rmtree(partial, ignore_errors=True)


def unfinished(run: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """What is no checkpoint yet, or never will be one: Orbax's, and copies (branch.py)."""
    for pattern in ("*.orbax-checkpoint-tmp*", f".*{files.SUFFIX}"):
        yield from directory(run).glob(pattern)


class Checkpoints:
    """The checkpoints of a run, to be written. A context: leaving it waits for what is being written."""

    def __init__(self, run: str | pathlib.Path, c: CheckpointConfig):
        self._run, self._config = run, c
        self._manager = self._opened()

    def _opened(self) -> ocp.CheckpointManager:
        keep, c = checkpoint_managers.preservation_policy, self._config
        return ocp.CheckpointManager(
            directory(self._run),
            item_names=(*ITEMS, "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep.AnyPreservationPolicy(
                    [keep.LatestN(c.latest), keep.EveryNSteps(c.keep_every_steps)]
                ),
                save_decision_policy=checkpoint_managers.save_decision_policy.FixedIntervalPolicy(1),
                # Where a folder cannot be made, threads would wait for the word that it was, for 20 minutes.
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def abandon(self) -> None:
        """Forgets a save that failed, and removes what it left; for a run of one process."""
        with contextlib.suppress(Exception):
            self._manager.close()
        # close() returns at the first error, and the rest goes on writing: threads, which start others, and
        # TensorStore, which makes folders anew that were removed below it.
        for _ in range(100):
            for thread in threading.enumerate():
                if type(thread).__module__.startswith("orbax"):
                    with contextlib.suppress(Exception):
                        thread.join()
            remove_unfinished(self._run)
            time.sleep(0.05)
            if not any(unfinished(self._run)):
                break
        self._manager = self._opened()

    def is_writing(self) -> bool:
        return self._manager.is_saving_in_progress()

    def save(self, state: Any, meta: dict[str, Any]) -> None:
        """Saves a TrainState under its own step. Returns after the copy to the host; the checkpoint appears whole or
        not at all. What goes wrong, as OSError or ValueError, may be raised by the next call only."""
        step = int(state.step)
        trees = {name: getattr(state, name) for name in ITEMS}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        proven = ocp.args.JsonSave(proof(meta, step, {name: fingerprints(tree) for name, tree in trees.items()}))
        self._manager.save(step, args=ocp.args.Composite(**items, meta=proven))

    def wait(self) -> None:
        """Returns when what was saved is on disk."""
        self._manager.wait_until_finished()

    def restore(self, step: int, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of a step, laid out as the shardings of `abstract_state` say.

        Args:
          abstract_state: TrainState of jax.ShapeDtypeStruct with shardings; any mesh.
        Raises:
          Damaged: an array is not what was saved.
        """
        items = {name: ocp.args.StandardRestore(getattr(abstract_state, name)) for name in ITEMS}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore()))
        for name in ITEMS:
            check_arrays(self._run, restored["meta"], step, name, restored[name])
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


def proof(meta: Mapping[str, Any], step: int, arrays: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The `meta` of a checkpoint: what its maker says of it, fingerprints of each item's arrays, and a hash of that."""
    said = {**meta, "step": step, "format": FORMAT, "arrays": arrays}
    return {**said, "sha256": _sha256(said)}


def _sha256(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def read_meta(run: str | pathlib.Path, step: int) -> dict[str, Any]:
    """The `meta` of a checkpoint.

    Raises:
      Damaged: it is not there, or not what was saved.
    """
    try:
        meta = json.loads((directory(run) / str(step) / "meta" / "metadata").read_text())
        said = {key: value for key, value in meta.items() if key != "sha256"}
        whole = meta["step"] == step and ("sha256" not in meta or meta["sha256"] == _sha256(said))
    except (OSError, ValueError, KeyError, AttributeError) as e:
        raise Damaged(f"checkpoint {run}@{step}: meta cannot be read ({type(e).__name__})") from e
    # One damaged key may not pass for a checkpoint of a release that had none of these.
    if not whole or len({"format", "arrays", "sha256"} & meta.keys()) not in (0, 3):
        raise Damaged(f"checkpoint {run}@{step}: meta is not what was saved")
    if meta.get("format", 1) > FORMAT:
        raise UserError(f"checkpoint {run}@{step}: of a later release (format {meta['format']}); update curia2_jax")
    return meta


def check_arrays(run: str | pathlib.Path, meta: Mapping[str, Any], step: int, item: str, tree: PyTree) -> None:
    """Compares the arrays of an item with `meta`; those of release 0.1.0 have nothing to be compared with.

    Raises:
      Damaged: the first that differs, by name.
    """
    if "arrays" not in meta:
        return
    saved, found = meta["arrays"][item], fingerprints(tree)
    for name in sorted(saved.keys() | found.keys()):
        if saved.get(name) != found.get(name):
            raise Damaged(f"checkpoint {run}@{step}: {item}/{name} is not what was saved")


def restore_item(run: str | pathlib.Path, step: int, item: str) -> PyTree:
    """One item as nested dicts of NumPy arrays, without a mesh and whatever mesh wrote it.

    Raises:
      Damaged: it cannot be read, or an array is not what was saved.
    """
    return jax.tree.map(np.asarray, open_item(run, step, item))


def open_item(run: str | pathlib.Path, step: int, item: str) -> PyTree:
    """One item as nested dicts of StoredArray: nothing is read but names and shapes.

    Raises:
      Damaged: it cannot be read, or it has other arrays than were saved.
    """
    meta, folder = read_meta(run, step), directory(run) / str(step) / item
    return opened(folder, f"checkpoint {run}@{step}: {item}", meta["arrays"][item] if "arrays" in meta else None)


def open_teacher(run: str | pathlib.Path, step: int) -> tuple[PyTree, dict[str, Any]]:
    """({backbone, dino_head[, ibot_head]} of StoredArray, meta and its `teacher_digest`). Raises Damaged."""
    meta = read_meta(run, step)
    proven = {"teacher_digest": digest(meta["arrays"]["teacher"])} if "arrays" in meta else {}
    return open_item(run, step, "teacher"), meta | proven


def restore_teacher(run: str | pathlib.Path, step: int) -> tuple[PyTree, dict[str, Any]]:
    """`open_teacher` with NumPy arrays."""
    teacher, meta = open_teacher(run, step)
    return jax.tree.map(np.asarray, teacher), meta


def read_config(run: str | pathlib.Path) -> dict[str, Any]:
    """The config that a run was started with, in the keys of this release.

    Raises:
      UserError: the folder has none, or it is damaged.
    """
    path = pathlib.Path(run) / "config.json"
    try:
        return upgraded(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{path}: not there; write the working directory of a run") from None
    except (ValueError, AttributeError, TypeError, KeyError) as e:
        raise UserError(f"{path}: damaged ({type(e).__name__}); write the config of the run there as JSON") from e


def save_items(run: str | pathlib.Path, step: int, items: Mapping[str, PyTree], meta: Mapping[str, Any]) -> None:
    """A checkpoint of arrays of others, in a folder without checkpoints. `teacher` alone is what `init_from` accepts: a
    student begins with it. All of ITEMS are a checkpoint of a run.

    Args:
      items: some of ITEMS, as nested dicts of arrays, or of what NumPy reads when its turn comes; no more than one is
        in memory.
    """
    flat = {item: flatten_dict(tree, sep="/") for item, tree in items.items()}
    # Each leaf is let go before the next is read.
    proofs = {
        item: {name: fingerprints({name: np.asarray(leaf)})[name] for name, leaf in leaves.items()}
        for item, leaves in flat.items()
    }
    # Orbax copies a whole tree before it writes any of it, so it is given one number for each array.
    blank = {item: jax.tree.map(lambda _: np.zeros((), np.float32), dict(tree)) for item, tree in items.items()}
    args = {item: ocp.args.StandardSave(tree) for item, tree in blank.items()}
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(directory(run), item_names=(*items, "meta"), options=options) as writer:
        writer.save(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(proof(meta, step, proofs))))
    for item, leaves in flat.items():
        replace(directory(run) / str(step) / item, leaves)
