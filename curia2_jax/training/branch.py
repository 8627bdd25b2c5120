"""A run that begins with a checkpoint of another: optimizer, schedules and place in the stream go on, in a new folder.

NEW/branch.json says where it comes from and what of the config is another; NEW/checkpoints/STEP is a copy.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax

from curia2_jax import files
from curia2_jax.errors import UserError
from curia2_jax.parallel.sharding import path_of
from curia2_jax.training import checkpoints, journal, salvage, workdir
from curia2_jax.training.recipe import recipe_from
from curia2_jax.training.state import abstract_state

NAME = "branch.json"


def parse(source: str) -> tuple[pathlib.Path, int]:
    """(run, step) of RUN@STEP.

    Raises:
      UserError: it has no step, or there is no such checkpoint.
    """
    if not source.rpartition("@")[2].isdigit():
        raise UserError(f"--branch {source}: no step; write RUN@STEP, with a step of RUN/checkpoints")
    return checkpoints.parse(source)


def begin(folder: pathlib.Path, source: str, config: Mapping[str, Any]) -> None:
    """Copies the checkpoint `source`, RUN@STEP, into a run that has none; a branch that was begun before goes on, with
    or without `source`. The caller is the only writer of the run.

    Raises:
      UserError: the folder is another run; the checkpoint is not there, damaged, or does not fit the config.
    """
    path = folder / NAME
    if not source and not path.exists():
        return
    said = _read(path)
    if said is None and (checkpoints.steps(folder) or (folder / "metrics.jsonl").exists()):
        raise UserError(f"--workdir {folder}: a run that did not begin with {source}; write a new folder")
    if said is not None and source and f"{pathlib.Path(said['run'])}@{said['step']}" != str(_absolute(source)):
        raise UserError(f"--workdir {folder}: a run that began with {said['run']}@{said['step']}; write a new folder")
    if checkpoints.steps(folder):
        return
    run, step = parse(source if said is None else f"{said['run']}@{said['step']}")
    _check(run, step, config)
    if said is None:
        before, now = workdir.flat(checkpoints.read_config(run)), workdir.flat(config)
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        changed = {key: [before.get(key), now.get(key)] for key in keys}
        _, meta = checkpoints.restore_teacher(run, step)
        proof = meta.get("teacher_digest", "")
        said = {"run": str(run.absolute()), "step": step, "teacher_digest": proof, "changed": changed}
        files.write_text(path, json.dumps(said, indent=1) + "\n")
    _copy(run, step, folder)
    what = ", ".join(f"{key} {a!r} -> {b!r}" for key, (a, b) in said["changed"].items()) or "nothing"
    print(f"branched from {run}@{step}; changed in its config: {what}", flush=True)


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """What branch.json says, if it is there. Raises UserError: it is damaged."""
    try:
        said = json.loads(path.read_text())
        return said | {"run": str(said["run"]), "step": int(said["step"]), "changed": dict(said["changed"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: damaged ({type(e).__name__}); write a new --workdir") from e


def _absolute(source: str) -> pathlib.Path:
    return pathlib.Path(source).absolute()


def _check(run: pathlib.Path, step: int, config: Mapping[str, Any]) -> None:
    """Raises UserError where the checkpoint cannot go on under this config."""
    recipe = recipe_from(config)
    if step >= recipe.schedule.total_steps:
        raise UserError(
            f"--branch {run}@{step}: config.total_steps is {recipe.schedule.total_steps}, so nothing is left to do; "
            "write more, or branch from an earlier step"
        )
    expected = abstract_state(recipe)
    for item in checkpoints.ITEMS:
        stored, tree = checkpoints.open_item(run, step, item), getattr(expected, item)
        found = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(stored)}
        wanted = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                there, here = found.get(name, "not"), wanted.get(name, "not")
                raise UserError(
                    f"--branch {run}@{step}: {item}/{name} is {there} there, {here} in this config; write the model "
                    "and the heads of that run, or --config.init_from for its weights alone"
                )
    salvage.check(run, step)


def _copy(run: pathlib.Path, step: int, folder: pathlib.Path) -> None:
    """The checkpoint, and the bad steps that belong to it, for they say which batches follow."""
    rows = [
        row for row in journal.read(run / journal.NAME)
        if (row["from"] if row["done"] == "rewind" else row["step"]) <= step
    ]  # fmt: skip
    if rows:
        files.write_text(folder / journal.NAME, "".join(json.dumps(row) + "\n" for row in rows))
    new = checkpoints.directory(folder) / str(step)
    try:
        with files.whole_folder(new) as partial:
            shutil.copytree(checkpoints.directory(run) / str(step), partial, dirs_exist_ok=True)
    except shutil.Error as e:
        raise UserError(f"--branch {run}@{step}: cannot be copied to {new} ({e.args[0][0][2]})") from e
