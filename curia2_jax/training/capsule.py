"""A bad step on its own: RUN/bad_step/ has the state before it, its batch and its recipe, and `replay` does it again.

    RUN/bad_step/{config.json, report.json, batch.npz, checkpoints/STEP}

It is a run of one checkpoint, so whatever reads runs reads it: launch/convert.py, --config.init_from, --branch.
"""

import errno
import json
import math
import os
import pathlib
import shutil
import zipfile
import zlib
from typing import Any

import jax
import numpy as np
from jax import Array

from curia2_jax import files
from curia2_jax.errors import UserError
from curia2_jax.parallel.mesh import local_rows, make_mesh
from curia2_jax.parallel.processes import first_says, whole
from curia2_jax.training import checkpoints
from curia2_jax.training.checkpoints import Checkpoints
from curia2_jax.training.initial import abstract_sharded_state
from curia2_jax.training.prepare import Run, compile_step, to_devices
from curia2_jax.training.recipe import CheckpointConfig, recipe_from
from curia2_jax.training.reports import scalars_of
from curia2_jax.training.saving import Saver
from curia2_jax.training.state import TrainState

NAME = "bad_step"


def path_of(run: pathlib.Path) -> pathlib.Path:
    """Where the capsule of a run lies, if it met a bad step."""
    return run / NAME


def write(run: Run, state: TrainState, batch: dict[str, Array], report: dict[str, Any]) -> str:
    """Writes the capsule of a run, in the place of an older one; every process has to call it. Returns why there is
    none, or ""."""
    folder = path_of(run.workdir)

    def clear() -> int:
        try:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir()
        except OSError as e:
            return e.errno or errno.EIO
        return 0

    if problem := first_says(clear):
        return os.strerror(problem)
    with Checkpoints(folder, CheckpointConfig(every_steps=1, latest=1, keep_every_steps=1)) as saved:
        saver = Saver(folder, saved, None, 1)
        saver.save(int(state.step), state, run.meta)
        saver.finish()
    rows: dict[str, Any] = {name: whole(x) for name, x in batch.items()}
    if not run.is_lead or saver.trouble:
        return saver.trouble
    try:
        files.write_text(folder / "config.json", json.dumps(run.config, indent=1) + "\n")
        files.write_text(folder / "report.json", json.dumps(report, indent=1) + "\n")
        with files.whole_file(folder / "batch.npz") as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **rows)
    except OSError as e:
        return str(e.strerror)
    return ""


def replay(folder: pathlib.Path) -> int:
    """Does the step of a capsule again and compares every scalar, bit for bit; 1 if one differs, which other devices or
    another release can do.

    Raises:
      UserError: it is no capsule, or not a whole one.
    """
    report, batch = _read(folder)
    recipe = recipe_from(checkpoints.read_config(folder))
    mesh = make_mesh(recipe.parallel)
    _, before = checkpoints.parse(str(folder))
    with jax.set_mesh(mesh), Checkpoints(folder, recipe.checkpoint) as saved:
        state, _ = saved.restore(before, abstract_sharded_state(recipe, mesh))
        rows = local_rows(recipe.data.global_batch, mesh)
        devices = to_devices({name: values[rows] for name, values in batch.items()}, mesh)
        _, values = compile_step(recipe, mesh, state, devices, "replay")(state, devices)
    found, expected = as_json(scalars_of(values)), report["metrics"]
    if jax.process_index() == 0:
        _compare(report["step"], found, expected)
    return 0 if found == expected else 1


def as_json(scalars: dict[str, float]) -> dict[str, float | str]:
    """What is not finite, which JSON has no number for, as text."""
    return {name: value if math.isfinite(value) else str(value) for name, value in scalars.items()}


def _compare(step: int, found: dict[str, float | str], expected: dict[str, float | str]) -> None:
    different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    for name in different:
        print(f"{name}: {found.get(name)}, in the run {expected.get(name)}")
    same = len(found) - len(different)
    print(f"step {step:,}: loss {found['loss']}; {same} of {len(found)} scalars are those of the run, bit for bit")


def _read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(report, batch) of a capsule. Raises UserError: it is no capsule, or not a whole one."""
    for name in ("config.json", "report.json", "batch.npz"):
        if not (folder / name).is_file():
            raise UserError(f"--replay {folder}: no {name} there; write the folder {NAME} of a run that met a bad step")
    try:
        with open(folder / "batch.npz", "rb") as file, np.load(file, allow_pickle=False) as stored:
            report, batch = json.loads((folder / "report.json").read_text()), dict(stored)
            return {"step": int(report["step"]), "metrics": dict(report["metrics"])}, batch
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        again = "the run writes another when it meets the step again"
        raise UserError(f"--replay {folder}: damaged ({type(e).__name__}); {again}") from e
