"""Memory, operations, communication and time of a config on machines that are not here.

    python launch/plan.py --config=configs/vitg.py --topology=v5p:4x4x4   compiled for these TPUs; needs no TPU
    python launch/plan.py --config=configs/vitg.py --gpus=h100x64         estimated
    python launch/plan.py --config=configs/vitg.py --chips=h100           8 to 4,096 devices by arithmetic: weak scaling

--topology takes the peak from the program that the TPU compiler makes, at the config's own batch and full objective. It
needs libtpu, which lives in an environment of its own: `make plan-venv` makes it, and this command goes there itself.
--gpus counts collectives on virtual devices of the CPU and estimates memory: XLA's CPU peak says nothing about a GPU.
--json=FILE writes everything. Other keys of the config may be set, as in --config.parallel.fsdp=8.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

from curia2_jax.errors import UserError
from curia2_jax.planning import forecast
from launch import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice to compile for, such as v5p:4x4x4, v5e:8x8 or v6e:4x4.")
_GPUS = flags.DEFINE_string("gpus", None, "GPUs to estimate for, such as h100x64.")
_CHIPS = flags.DEFINE_string("chips", None, "Chip of the weak-scaling table.")
_IMAGES = flags.DEFINE_integer("images", 32, "Images a device in the weak-scaling table.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Also write the plan to this file.")
_COMPILE = flags.DEFINE_bool("compile", True, "With --gpus: count the collectives, which takes a compilation.")
TPU_PYTHON = pathlib.Path(__file__).resolve().parents[1] / ".venv-tpu" / "bin" / "python"


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
        elif isinstance(value, list):
            columns = {c: max(len(c), *(len(text_of(row[c], c)) for row in value)) for c in value[0]}
            print(" | ".join(f"{c:>{width}}" for c, width in columns.items()))
            for row in value:
                print(" | ".join(f"{text_of(row[c], c):>{width}}" for c, width in columns.items()))
        else:
            print(f"{prefix + name:<62} {text_of(value, prefix + name)}")


def go_to_tpu_environment() -> None:
    """libtpu is not in the environment of training: starts this command again in the one that has it.

    Raises:
      UserError: it is not there either.
    """
    with contextlib.suppress(ImportError):
        import libtpu  # noqa: F401

        return
    if not TPU_PYTHON.exists() or os.environ.get("CURIA_IN_TPU_ENVIRONMENT"):
        raise UserError("--topology: libtpu is not installed; run `make plan-venv` once, then this command again")
    env = os.environ | {"CURIA_IN_TPU_ENVIRONMENT": "1"}
    sys.exit(subprocess.run([TPU_PYTHON, *sys.argv], env=env, check=False).returncode)


def run(_: list[str]) -> None:
    sections = command.config_of(_CONFIG)
    if _JSON.value and not pathlib.Path(_JSON.value).absolute().parent.is_dir():
        raise UserError(f"--json={_JSON.value}: its folder is not there; write a file in a folder that is")
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs
    name, number = ("", 0) if _CHIPS.value else forecast.target(_TOPOLOGY.value, _GPUS.value)
    if _TOPOLOGY.value:
        go_to_tpu_environment()
        # There is no TPU here, and libtpu need not look for one.
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    import jax

    from curia2_jax.training.recipe import recipe_from

    recipe = recipe_from(sections)
    if _CHIPS.value:
        out: dict[str, Any] = {"weak scaling": forecast.weak_scaling(recipe, _CHIPS.value, _IMAGES.value)}
    elif _TOPOLOGY.value:
        out = forecast.plan(recipe, name, forecast.tpu_devices(_TOPOLOGY.value), tpu=True)
    else:
        jax.config.update("jax_num_cpu_devices", number)
        out = forecast.plan(recipe, name, jax.devices(), tpu=False, compile_it=_COMPILE.value)
    out = {"config": flags.FLAGS["config"].config_filename, "jax": jax.__version__, **out}
    show(out)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(out, indent=1, default=str) + "\n")


if __name__ == "__main__":
    command.start(run)
