"""Memory, operations, communication and time of a config on machines that are not here.

    python launch/plan.py --config=configs/vitg.py --topology=v5p:4x4x4   compiled for these TPUs; needs no TPU
    python launch/plan.py --config=configs/vitg.py --gpus=h100x64         compiled for these GPUs; needs no GPU
    python launch/plan.py --config=configs/vitg.py --chips=h100           8 to 4,096 devices by arithmetic: weak scaling

The first two take the peak from the program that the compiler of the target makes, at the config's own batch and full
objective. The compilers live in environments of their own, made by `make plan-venv` and `make plan-venv-gpu`, and this
command goes there itself. Without that for GPUs, or with --nocompile, memory is estimated. --json=FILE writes it all.
Other keys of the config may be set, as in --config.parallel.fsdp=8.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from curia2_jax import files
from curia2_jax.errors import UserError
from curia2_jax.planning import chips
from launch import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice to compile for, such as v5p:4x4x4, v5e:8x8 or v6e:4x4.")
_GPUS = flags.DEFINE_string("gpus", None, "GPUs to compile for, such as h100x64.")
_CHIPS = flags.DEFINE_string("chips", None, "Chip of the weak-scaling table.")
_IMAGES = flags.DEFINE_integer("images", 32, "Images a device in the weak-scaling table.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Also write the plan to this file.")
_COMPILE = flags.DEFINE_bool("compile", True, "With --gpus: compile; else memory is estimated.")
# Nothing runs; libtpu need not look for a TPU, and two plans may load it at once.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def text_of(value: Any, where: str) -> str:
    """Bytes as GiB, other numbers with four digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int | float) and "bytes" in where:
        return f"{value / 2**30:.3f} GiB"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(out: dict[str, Any], prefix: str = "") -> None:
    """Prints a plan: a line for each number, a table for each list."""
    for name, value in out.items():
        if isinstance(value, dict):
            show(value, f"{prefix}{name}: ")
        elif isinstance(value, list) and value:
            columns = {c: max(len(c), *(len(text_of(row[c], c)) for row in value)) for c in value[0]}
            print(" | ".join(f"{c:>{width}}" for c, width in columns.items()))
            for row in value:
                print(" | ".join(f"{text_of(row[c], c):>{width}}" for c, width in columns.items()))
        elif value not in ([], ""):
            print(f"{prefix + name:<62} {text_of(value, prefix + name)}")


def go_to(environment: str) -> None:
    """Starts this command again in the environment that has the compiler, if it is there and this is not it."""
    python = command.ROOT / environment / "bin" / "python"
    if python.exists() and not os.environ.get("CURIA_PLANNING"):
        sys.exit(subprocess.run([python, *sys.argv], env=os.environ | {"CURIA_PLANNING": "1"}, check=False).returncode)


def plan(sections: dict[str, Any]) -> dict[str, Any]:
    """What the flags ask for. Raises UserError."""
    chip, number = (chips.chip(_CHIPS.value), 0) if _CHIPS.value else chips.target(_TOPOLOGY.value, _GPUS.value)
    import jax  # after the flags and the variables of the environment

    from curia2_jax.planning import changes, forecast, targets
    from curia2_jax.training.recipe import recipe_from

    recipe = recipe_from(sections)
    if _CHIPS.value:
        kernels = forecast.kernels_on(recipe, chip)
        return {"weak_scaling": changes.weak_scaling(recipe, chip, _IMAGES.value, kernels)}
    if _TOPOLOGY.value:
        if importlib.util.find_spec("libtpu") is None:
            go_to(".venv-tpu")
            raise UserError("--topology: libtpu is not installed; run `make plan-venv` once, then this command again")
        return dataclasses.asdict(forecast.forecast(recipe, chip, targets.tpu_devices(_TOPOLOGY.value)))
    described = targets.gpu_devices(chip, number) if targets.gpu_compiler_installed() and _COMPILE.value else None
    if described:
        return dataclasses.asdict(forecast.forecast(recipe, chip, described))
    if _COMPILE.value:
        go_to(".venv-gpu")
        print("no compiler for GPUs in this environment: estimated. `make plan-venv-gpu` installs one apart, once")
    jax.config.update("jax_num_cpu_devices", number)
    return dataclasses.asdict(forecast.forecast(recipe, chip, jax.devices(), compile_it=_COMPILE.value))


def run(_: list[str]) -> None:
    sections = command.config_of(_CONFIG)
    if _JSON.value and not pathlib.Path(_JSON.value).absolute().parent.is_dir():
        raise UserError(f"--json={_JSON.value}: its folder is not there; write a file in a folder that is")
    os.environ |= ENVIRONMENT
    out = {"config": command.config_file(), **plan(sections)}
    show(out)
    if _JSON.value:
        files.write_text(pathlib.Path(_JSON.value), json.dumps(out, indent=1, default=str) + "\n")


if __name__ == "__main__":
    command.start(run)
