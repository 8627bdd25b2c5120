"""How fast this machine is, as a table and as JSON.

    python launch/bench.py --config=configs/vitl.py --config.data.global_batch=32 [--what=step] [--json=FILE]

--what=step     one training step: compile time, time, images a second, MFU, memory; on noise, or on a corpus given as
                --config.data.corpus (then also the time spent waiting for data)
--what=augment   cutting and augmenting the crops of a batch
--what=losses   each loss with its gradient, at the sizes of the config
--what=loader   slices a second of the loader, beside other ways to the same crops; needs --config.data.corpus; with
                --nifti=DIR also beside a PyTorch DataLoader in which MONAI reads the .nii.gz files of a folder
--what=encode   slices a second from the files of a benchmark to features, as launch/evaluate.py makes them, and their
                ratio to what the backbone does with batches that lie on the device; core-milliseconds a slice of each
                stage, and the share of the time that each thread waits; of --model=HF_DIR, or of a random ViT-B; in
                PyTorch, on a GPU where it sees one; needs no --config
--what=probe    the linear probe of an evaluation at 50,000 x 768 with 54 classes, on the GPU of PyTorch or on one core;
                needs no --config; --steps=1 is enough
--against=torch the step from ready crops beside one in eager PyTorch (planning/torch_peer) in the same minute, on the
                CPU: 4 images in float32, 2 x 224 + 8 x 96 pixels, 4,096 prototypes, no drop path; width, depth and
                heads of the config
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import config_flags

from curia2_jax.errors import UserError
from launch import command

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WHAT = flags.DEFINE_enum("what", "step", ("step", "augment", "losses", "loader", "encode", "probe"), "What to time.")
_MODEL = flags.DEFINE_string("model", None, "Folder of launch/convert.py to encode with; default: a random ViT-B.")
_AGAINST = flags.DEFINE_enum("against", None, ("torch",), "Another implementation to time beside this one.")
_NIFTI = flags.DEFINE_string("nifti", None, "Folder of .nii.gz for MONAI beside the loader; needs the extra bench.")
_STEPS = flags.DEFINE_integer("steps", 6, "Timed repetitions, after two that are not.", lower_bound=1)
_ROWS = flags.DEFINE_integer("rows", 50_000, "Training samples of --what=probe.", lower_bound=100)
_JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")


def rows(result: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) of every leaf, numbers with four digits."""
    out: list[tuple[str, str]] = []
    for name, value in result.items():
        if isinstance(value, Mapping):
            out += rows(value, f"{prefix}{name} ")
        elif isinstance(value, float):
            out.append((prefix + name, f"{value:.4g}"))
        elif isinstance(value, int) and name.endswith(("bytes", "bytes_per_device")):
            out.append((prefix + name, f"{value / 2**30:.3f} GiB"))
        elif value is not None and not isinstance(value, list):
            out.append((prefix + name, str(value)))
    return out


def run(_: list[str]) -> None:
    if _JSON.value and not pathlib.Path(_JSON.value).absolute().parent.is_dir():
        raise UserError(f"--json={_JSON.value}: its folder is not there; write a file in a folder that is")
    if _AGAINST.value and _WHAT.value != "step":
        raise UserError(f"--what={_WHAT.value}: --against=torch times the step; write --what=step, or leave one out")
    if _NIFTI.value and _WHAT.value != "loader":
        raise UserError(f"--what={_WHAT.value}: --nifti is for the loader; write --what=loader, or leave it out")
    if _MODEL.value and _WHAT.value != "encode":
        raise UserError(f"--what={_WHAT.value}: --model is for encode; write --what=encode, or leave it out")
    measured = in_torch() if _WHAT.value in ("encode", "probe") else in_jax(command.config_of(_CONFIG))
    result = {"what": _WHAT.value, **measured}
    for what, value in rows(result):
        print(f"{what:<50} {value}")
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(result, indent=1) + "\n")


def in_torch() -> dict[str, Any]:
    """What an evaluation does: needs PyTorch and no JAX."""
    try:
        from curia2_jax.curiabench import encode_rate, probe_clock
    except ModuleNotFoundError as e:
        raise UserError(f"{e.name} is not installed; write: pip install -e '.[eval]'") from None
    if _WHAT.value == "probe":
        return probe_clock.seconds(_ROWS.value, _STEPS.value)
    return encode_rate.measure(_MODEL.value)


def in_jax(sections: dict[str, Any]) -> dict[str, Any]:
    """Everything else."""
    if _AGAINST.value:
        os.environ["JAX_PLATFORMS"] = "cpu"
    from curia2_jax.planning import clocks, loader_rates  # only now: JAX reads the variable when it is imported
    from curia2_jax.training.recipe import recipe_from

    recipe = recipe_from(clocks.as_compared(sections) if _AGAINST.value else sections)
    if _WHAT.value == "loader":
        result: dict[str, Any] = {
            rate.what.strip(): {"slices_per_s_per_core": rate.per_core, "slices_per_s": rate.wall}
            for rate in loader_rates.run(recipe, nifti=_NIFTI.value)
        }
    elif _AGAINST.value:
        result = {
            "jax": clocks.time_step(recipe, _STEPS.value, with_crops=False),
            "torch": clocks.time_torch(recipe, _STEPS.value),
        }
        result["ratio of best steps"] = result["jax"]["step_s"]["min"] / result["torch"]["best_seconds"]
    else:
        result = {"step": clocks.time_step, "augment": clocks.time_augment, "losses": clocks.time_losses}[_WHAT.value](
            recipe, _STEPS.value
        )
    return {"config": command.config_file(), "machine": clocks.machine(), **result}


if __name__ == "__main__":
    command.start(run)
