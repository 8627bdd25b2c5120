"""Between a run and PyTorch.

    python launch/convert.py --checkpoint RUN[@STEP] --output HF_DIR [--verify]
    python launch/convert.py --from-pretrained WEIGHTS --output ORBAX_DIR

The first writes the teacher of a checkpoint (the newest, or that of STEP) as a folder for
`transformers.AutoModel.from_pretrained`; RUN@0 is what the run began with, a baseline for launch/evaluate.py --random.
--verify runs it in PyTorch and in JAX, compares block by block (curia2_jax/export/parity.py says how) and keeps the
differences in its parity.json. The second makes a folder that `launch/main.py --config.init_from=ORBAX_DIR` starts
from. WEIGHTS is a folder of a stock DINOv2 model (also sharded, or pytorch_model.bin), or a .safetensors or .pth file
with a state dict of facebookresearch's; projection heads that lie there come along.
"""

import contextlib
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
from absl import flags

from curia2_jax import files
from curia2_jax.errors import UserError
from curia2_jax.export import huggingface, parity, processor, sources
from curia2_jax.models.vit import ViTConfig
from curia2_jax.training import checkpoints
from curia2_jax.training.class_tokens import began
from curia2_jax.training.recipe import recipe_from
from launch import command

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "RUN or RUN@STEP: the run whose teacher is exported.")
_PRETRAINED = flags.DEFINE_string(
    "from-pretrained", None, "Folder of a Dinov2Model or Dinov2WithRegistersModel, or a file of a DINOv2 state dict."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to make.")
_VERIFY = flags.DEFINE_bool("verify", False, "With --checkpoint: compare PyTorch with JAX before anything is kept.")


class Mismatch(Exception):
    """PyTorch and JAX do not agree about an exported model."""


def export(checkpoint: str, output: pathlib.Path, verify: bool) -> None:
    """Teacher of `checkpoint` -> HF_DIR, which appears whole or not at all.

    Raises:
      UserError: no such checkpoint, an output that is something else, or a model that transformers does not have.
      Mismatch: `verify` found a difference; nothing is written.
    """
    run, step, config, teacher, meta = _teacher(checkpoint)
    model = recipe_from(config).model
    with output_folder(output, processor.is_export) as partial:
        huggingface.write(partial, teacher["backbone"], model)
        preprocessing = processor.contract(config, meta)
        processor.write(partial, preprocessing)
        processor.write_model_card(partial, preprocessing, huggingface.model_config(model))
        if verify:
            compare(partial, teacher["backbone"], model, preprocessing)
    print(
        f"{output}: teacher of {run} at step {step}; transformers.AutoModel.from_pretrained({str(output)!r}) loads it"
    )


def _teacher(checkpoint: str) -> tuple[pathlib.Path, int, dict, Mapping[str, Any], Mapping[str, Any]]:
    """Run, step, config, teacher and meta; RUN@0 is what the run began with, of which it keeps no checkpoint."""
    run = pathlib.Path(checkpoint.removesuffix("@0"))
    if checkpoint.endswith("@0") and 0 not in checkpoints.steps(run):
        config = checkpoints.read_config(run)
        return run, 0, config, {"backbone": began(recipe_from(config))}, {"step": 0}
    run, step = checkpoints.parse(checkpoint)
    return run, step, checkpoints.read_config(run), *checkpoints.restore_teacher(run, step)


def restore(pretrained: str, output: pathlib.Path) -> None:
    """A folder or a file of weights -> a folder for `init_from`, which appears whole or not at all.

    Raises:
      UserError: `pretrained` is not there, damaged or another kind of model, or the output is something else.
    """
    found = sources.read(pretrained, _unpickled)
    meta = {"from_pretrained": pretrained, "model": found.model, "left_out": list(found.left_out)}
    with output_folder(output, _is_restored) as partial:
        checkpoints.save_init(partial, found.params, meta)
    heads = [name for name in found.params if name != "backbone"]
    print(f"{output}: the backbone" + "".join(f" and the {name}" for name in heads) + f" of {pretrained}")
    if found.left_out:
        print(f"{output}: left out: {', '.join(found.left_out)}")
    print(f"{output}: start from it with launch/main.py --config.init_from={output}")


def compare(folder: pathlib.Path, backbone: Mapping[str, Any], model: ViTConfig, told: Mapping[str, Any]) -> None:
    """Writes parity.json into the folder: PyTorch on the CPU against JAX at the highest precision, and the tensors.

    Args:
      told: the content of preprocessing.json.
    Raises:
      Mismatch: a difference above the tolerance, or PyTorch did not load the weights one to one.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--verify: needs {package}, not installed; run pip install 'curia2-jax[eval]'")
    inputs = parity.questions(model)
    theirs = _in_torch(folder, inputs)
    unloaded = theirs.pop("unloaded").tolist()
    if unloaded:
        raise Mismatch(f"--verify: PyTorch did not load {len(unloaded)} weights one to one: {', '.join(unloaded[:3])}")
    entries = parity.differences(backbone, model, inputs, theirs)
    pixels = parity.of_pixels(inputs, theirs, told)
    largest, where = parity.worst(entries, pixels)
    print(f"verify: largest difference {largest:.2g} ({where})")
    if largest > parity.TOLERANCE:
        raise Mismatch(
            f"--verify: PyTorch and JAX differ by more than {parity.TOLERANCE:g} ({where}: {largest:.2g}); nothing was "
            "written"
        )
    if unequal := parity.unequal(folder, backbone, model):
        raise Mismatch(f"--verify: {', '.join(unequal[:3])} of the folder is not that of the run; nothing was written")
    parity.write(folder, entries, pixels)


def _in_torch(folder: pathlib.Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        given, found = pathlib.Path(scratch, "inputs.npz"), pathlib.Path(scratch, "found.npz")
        np.savez(given, allow_pickle=False, **inputs)
        script = pathlib.Path(__file__).with_name("torch_features.py")
        subprocess.run([sys.executable, str(script), str(folder), str(given), str(found)], check=True)
        with np.load(found) as arrays:
            return dict(arrays)


def _unpickled(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch pickle, read in another process. Raises UserError."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{path}: PyTorch pickles need torch, not installed; run pip install 'curia2-jax[eval]'")
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch, "weights.safetensors")
        script = pathlib.Path(__file__).with_name("torch_weights.py")
        done = subprocess.run([sys.executable, str(script), str(path), str(out)], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(
                f"{path}: not read as a dict of tensors, and nothing in it was run ({said}); fetch it again"
            )
        return sources.load(out)


@contextlib.contextmanager
def output_folder(output: pathlib.Path, replaceable: Callable[[pathlib.Path], bool]) -> Iterator[pathlib.Path]:
    """A new folder beside `output`, which becomes `output` when the block ends without an exception.

    Raises:
      UserError: `output` is there and is neither empty nor `replaceable`, or nothing can be written there.
    """
    output = output.absolute()
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or replaceable(output))):
        raise UserError(f"--output {output}: there already, and not made by this command; write a new folder")
    try:
        with files.whole_folder(output) as partial:
            yield partial
    except (OSError, safetensors.SafetensorError) as e:
        raise UserError(f"--output {output}: cannot write there ({e}); write a folder of yours with space left") from e


def _is_restored(folder: pathlib.Path) -> bool:
    """Whether a folder was made by `restore`, and nothing was trained in it."""
    try:
        return checkpoints.steps(folder) == [0] and "from_pretrained" in checkpoints.read_meta(folder, 0)
    except (OSError, json.JSONDecodeError):
        return False


def run(_: list[str]) -> int:
    """Checks the flags, then exports or restores; exit code 1 where --verify found a difference."""
    if (_CHECKPOINT.value is None) == (_PRETRAINED.value is None):
        raise UserError("write either --checkpoint RUN or --from-pretrained HF_DIR")
    output = pathlib.Path(command.required(_OUTPUT))
    try:
        if _CHECKPOINT.value is not None:
            export(_CHECKPOINT.value, output, _VERIFY.value)
        elif _PRETRAINED.value is not None:
            restore(_PRETRAINED.value, output)
    except Mismatch as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command.start(run)
