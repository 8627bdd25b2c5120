"""Between a run and PyTorch.

    python launch/convert.py --checkpoint RUN[@STEP] --output HF_DIR [--verify]
    python launch/convert.py --from-pretrained HF_DIR --output ORBAX_DIR

The first writes the teacher of a checkpoint (the newest, or that of STEP) as a folder for
`transformers.AutoModel.from_pretrained`. --verify runs it in PyTorch and in JAX and compares every token. The second
makes a folder that `launch/main.py --config.init_from=ORBAX_DIR` starts from.
"""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
from absl import flags

from curia2_jax import files
from curia2_jax.errors import UserError
from curia2_jax.export import huggingface, processor
from curia2_jax.models.vit import ViT, ViTConfig
from curia2_jax.training import checkpoints
from curia2_jax.training.recipe import recipe_from
from launch import command

TOLERANCE = 1e-4  # of a final-norm token, absolute

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "RUN or RUN@STEP: the run whose teacher is exported.")
_PRETRAINED = flags.DEFINE_string(
    "from-pretrained", None, "Folder of a Dinov2Model or Dinov2WithRegistersModel to bring back."
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
    run, step = checkpoints.parse(checkpoint)
    config = checkpoints.read_config(run)
    model = recipe_from(config).model
    teacher, meta = checkpoints.restore_teacher(run, step)
    with output_folder(output, processor.is_export) as partial:
        huggingface.write(partial, teacher["backbone"], model)
        preprocessing = processor.contract(config, meta)
        processor.write(partial, preprocessing)
        processor.write_model_card(partial, preprocessing, huggingface.model_config(model))
        if verify:
            compare(partial, teacher["backbone"], model)
    print(
        f"{output}: teacher of {run} at step {step}; transformers.AutoModel.from_pretrained({str(output)!r}) loads it"
    )


def restore(pretrained: pathlib.Path, output: pathlib.Path) -> None:
    """HF_DIR -> a folder for `init_from`, which appears whole or not at all.

    Raises:
      UserError: `pretrained` is no such folder or holds another kind of model, or the output is something else.
    """
    section = huggingface.read_config(pretrained)
    backbone = huggingface.read_weights(pretrained, ViTConfig(**section))
    with output_folder(output, _is_restored) as partial:
        checkpoints.save_init(partial, {"backbone": backbone}, {"from_pretrained": str(pretrained), "model": section})
    print(f"{output}: start from it with launch/main.py --config.init_from={output}")


def compare(folder: pathlib.Path, backbone: Mapping[str, Any], model: ViTConfig) -> None:
    """Random images through PyTorch on the CPU and through JAX at the highest precision, at two resolutions.

    Raises:
      Mismatch: a token differs by more than TOLERANCE, or PyTorch did not load the weights one to one.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--verify: needs {package}, not installed; run pip install 'curia2-jax[eval]'")
    patches = model.image_size // model.patch_size
    sizes = [model.image_size, max(round(1.5 * patches), patches + 1) * model.patch_size]
    draw = np.random.default_rng(0)
    images = {f"{s}": draw.standard_normal((2, model.in_channels, s, s), np.float32) for s in sizes}
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = pathlib.Path(scratch, "images.npz"), pathlib.Path(scratch, "tokens.npz")
        np.savez(inputs, allow_pickle=False, **images)
        script = pathlib.Path(__file__).with_name("torch_features.py")
        subprocess.run([sys.executable, str(script), str(folder), str(inputs), str(outputs)], check=True)
        with np.load(outputs) as arrays:
            theirs = dict(arrays)
    unloaded = theirs.pop("unloaded").tolist()
    if unloaded:
        raise Mismatch(f"--verify: PyTorch did not load {len(unloaded)} weights one to one: {', '.join(unloaded[:3])}")
    plain = dataclasses.replace(model, dtype="float32", attention="xla", remat="none", drop_path=0.0)
    apply = jax.jit(ViT(plain).apply)
    differences = []
    for size, batch in images.items():
        with jax.default_matmul_precision("highest"):
            out = apply({"params": backbone}, batch.transpose(0, 2, 3, 1))
        ours = np.concatenate([out["cls"][:, None], out["registers"], out["patches"]], axis=1)
        if ours.shape != theirs[size].shape:
            raise Mismatch(f"--verify: at {size} px PyTorch gives tokens {theirs[size].shape}, JAX {ours.shape}")
        differences.append(float(np.abs(ours - theirs[size]).max()))
        print(f"verify at {size} px: {ours.shape[1]} tokens, largest difference {differences[-1]:.2g}")
    if not all(difference <= TOLERANCE for difference in differences):  # NaN is not <= anything
        raise Mismatch(f"--verify: PyTorch and JAX differ by more than {TOLERANCE:g}; nothing was written")


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
            restore(pathlib.Path(_PRETRAINED.value), output)
    except Mismatch as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command.start(run)
