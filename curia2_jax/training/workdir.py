"""A run's folder: RUN/{config.json, environment.json, lock, checkpoints/, metrics.jsonl, tensorboard/, images/}, and
init.json where it began with the weights of another."""

import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax

from curia2_jax import files
from curia2_jax.errors import UserError
from curia2_jax.training import checkpoints, lock

# A run may be resumed with other values of these: they change neither the batches (the canvas only their padding, which
# no crop sees) nor the mathematics of a step.
RESUMABLE = (
    "data.corpus", "data.canvas", "data.num_threads", "data.num_workers", "data.prefetch", "data.max_corrupt_rate",
    "checkpoint.", "guard.", "log.", "probe.", "parallel.fsdp", "model.attention", "model.remat", "model.scan",
    "objective.chunk",
)  # fmt: skip
INIT = "init.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "imagecodecs", "curia2-jax")


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim.base_lr": 1e-3} of every leaf of a nested config; tuples become lists, as in JSON."""
    leaves = flax.traverse_util.flatten_dict(config, sep=".")
    return {key: list(value) if isinstance(value, tuple) else value for key, value in leaves.items()}


def claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Makes the folder of a new run, or checks that it is a run of the same config.

    Raises:
      UserError: the folder holds a run of another config, or something that is no run.
    """
    path = workdir / "config.json"
    if not path.exists():
        if workdir.is_dir() and any(not path.name.startswith(lock.NAME) for path in workdir.iterdir()):
            raise UserError(f"--workdir {workdir}: not empty and no run (no config.json); write a new folder")
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / "images").mkdir(exist_ok=True)
            files.write_text(workdir / "environment.json", json.dumps(environment(), indent=1) + "\n")
            files.write_text(path, json.dumps(config, indent=1) + "\n")
        except OSError as e:
            raise cannot_write(workdir, e) from e
        return
    (workdir / "images").mkdir(exist_ok=True)
    before, now = flat(checkpoints.read_config(workdir)), flat(config)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(RESUMABLE):
            raise UserError(
                f"--workdir {workdir}: a run with config.{key} = {before.get(key)!r}, now {now.get(key)!r}; "
                "write another folder, or the same value"
            )


def keep_origin(workdir: pathlib.Path, record: Mapping[str, Any] | None) -> None:
    """Writes init.json: which weights of another folder a run begins with, and what was done to them."""
    if record is not None:
        files.write_text(workdir / INIT, json.dumps(record, indent=1) + "\n")


def cannot_write(workdir: pathlib.Path, e: OSError) -> UserError:
    return UserError(f"--workdir {workdir}: cannot write there ({e.strerror}); write a folder of yours with space left")


def environment() -> dict[str, Any]:
    """Versions and devices, for whoever wants to repeat the run."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }
