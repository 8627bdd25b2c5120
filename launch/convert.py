"""Between a run and PyTorch.

    python launch/convert.py --checkpoint RUN[@STEP] --output HF_DIR [--verify] [--license ID] [--report DIR]
                             [--with-heads] [--with-optimizer]
    python launch/convert.py --from-pretrained WEIGHTS --output ORBAX_DIR

The first writes the teacher of a checkpoint (the newest, or that of STEP) as a folder for
`transformers.AutoModel.from_pretrained`; RUN@0 is what the run began with, a baseline for launch/evaluate.py --random.
--verify runs it in PyTorch and in JAX, compares block by block (curia2_jax/export/parity.py says how) and keeps the
differences in its parity.json. --license names the license of the weights, and --report the scores that the model card
tells. --with-heads adds the heads of the teacher, --with-optimizer the student and its optimizer as well, for whoever
wants to go on from there (curia2_jax/export/continuation.py has their names).

The second makes a folder that `launch/main.py --config.init_from=ORBAX_DIR` starts from. WEIGHTS is a folder of a stock
DINOv2 or DINOv3 model (also sharded, or pytorch_model.bin), or a .safetensors or .pth file with a state dict of
facebookresearch's; projection heads that lie there come along.
"""

import contextlib
import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from absl import flags

from curia2_jax import files
from curia2_jax.curiabench import results as report
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.errors import UserError
from curia2_jax.export import continuation, huggingface, model_card, origin, parity, processor, sources, tensors_file
from curia2_jax.export.tensors_file import Later
from curia2_jax.models.vit import ViTConfig
from curia2_jax.training import checkpoints
from curia2_jax.training.class_tokens import began
from curia2_jax.training.recipe import recipe_from
from launch import command

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "RUN or RUN@STEP: the run whose teacher is exported.")
_PRETRAINED = flags.DEFINE_string(
    "from-pretrained",
    None,
    "Folder of a Dinov2Model, Dinov2WithRegistersModel or DINOv3ViTModel, or a file of a DINOv2 state dict.",
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to make.")
_VERIFY = flags.DEFINE_bool("verify", False, "With --checkpoint: compare PyTorch with JAX before anything is kept.")
_LICENSE = flags.DEFINE_string("license", None, "With --checkpoint: license of the weights, such as cc-by-nc-4.0.")
_REPORT = flags.DEFINE_string("report", None, "With --checkpoint: folder of launch/evaluate.py, for the model card.")
_HEADS = flags.DEFINE_bool("with-heads", False, "With --checkpoint: the heads of the teacher, too.")
_OPTIMIZER = flags.DEFINE_bool("with-optimizer", False, "With --checkpoint: the heads, the student and its optimizer.")
_OF_EXPORT = (_VERIFY, _LICENSE, _REPORT, _HEADS, _OPTIMIZER)
SPACINGS = 1_000_000  # slices at most, evenly over the corpus, whose pixel spacing the card sums up


class Mismatch(Exception):
    """PyTorch and JAX do not agree about an exported model."""


class Asked(NamedTuple):
    """What the flags say of an export."""

    verify: bool = False
    license: str = ""
    report: str = ""
    heads: bool = False
    optimizer: bool = False


def export(checkpoint: str, output: pathlib.Path, asked: Asked) -> None:
    """Teacher of `checkpoint` -> HF_DIR, which appears whole or not at all.

    Raises:
      UserError: no such checkpoint, an output that is something else, a model that transformers does not have, or a
        report of other weights.
      Mismatch: --verify found a difference; nothing is written.
    """
    run, step, config, teacher, meta = _teacher(checkpoint)
    model = recipe_from(config).model
    results = report.read(pathlib.Path(asked.report)) if asked.report else None
    preprocessing = processor.contract(config, meta)
    with output_folder(output, processor.is_export) as partial:
        huggingface.write(partial, teacher["backbone"], model, origin.metadata(preprocessing["source"]))
        processor.write(partial, preprocessing)
        (partial / origin.TRAINING_CONFIG).write_text(origin.training_config(config))
        _write_continuation(partial, run, step, teacher, origin.metadata(preprocessing["source"]), asked)
        largest = compare(partial, teacher["backbone"], model, preprocessing) if asked.verify else None
        scores = model_card.scores(results, asked.report, partial / huggingface.WEIGHTS) if results else None
        facts = model_card.Facts(asked.license, corpus_of(config, meta), scores, largest)
        model_card.write(partial, preprocessing, huggingface.model_config(model), facts)
    print(
        f"{output}: teacher of {run} at step {step}; transformers.AutoModel.from_pretrained({str(output)!r}) loads it"
    )
    if not asked.license:
        print(f"{output}: no license was named; before you hand the weights on, write --license=...")


def _write_continuation(
    folder: pathlib.Path,
    run: pathlib.Path,
    step: int,
    teacher: Mapping[str, Any],
    metadata: Mapping[str, str],
    asked: Asked,
) -> None:
    """--with-heads and --with-optimizer."""
    wanted = "with-optimizer" if asked.optimizer else "with-heads" if asked.heads else ""
    if wanted and "dino_head" not in teacher:
        raise UserError(f"--{wanted}: {run}@{step} has a backbone alone; leave it out, or write a checkpoint of a run")
    if wanted:
        continuation.write_heads(folder, teacher, metadata)
    if asked.optimizer:
        items = {name: checkpoints.open_item(run, step, name) for name in continuation.STATE_ITEMS}
        continuation.write_state(folder, items, metadata)


def corpus_of(config: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the card says of the corpus of a run, or None if it is not here any more, or another by now."""
    try:
        corpus = Corpus(config["data"]["corpus"])
        if corpus.contract["hash"] == meta.get("corpus"):
            rows = np.linspace(0, len(corpus) - 1, min(len(corpus), SPACINGS)).astype(np.int64)
            return model_card.corpus_summary(
                corpus.contracts, np.percentile(corpus.take("spacing_y", rows), [5, 50, 95]).tolist()
            )
    except UserError:
        pass
    print("the corpus of the run is not at hand, so the model card does not describe it")
    return None


def _teacher(checkpoint: str) -> tuple[pathlib.Path, int, dict, Mapping[str, Any], Mapping[str, Any]]:
    """Run, step, config, teacher and meta; RUN@0 is what the run began with, of which it keeps no checkpoint."""
    run = pathlib.Path(checkpoint.removesuffix("@0"))
    if checkpoint.endswith("@0") and 0 not in checkpoints.steps(run):
        config = checkpoints.read_config(run)
        return run, 0, config, {"backbone": began(recipe_from(config))}, {"step": 0}
    run, step = checkpoints.parse(checkpoint)
    return run, step, checkpoints.read_config(run), *checkpoints.open_teacher(run, step)


def restore(pretrained: str, output: pathlib.Path) -> None:
    """A folder or a file of weights -> a folder for `init_from`, which appears whole or not at all.

    Raises:
      UserError: `pretrained` is not there, damaged or another kind of model, or the output is something else.
    """
    with tempfile.TemporaryDirectory() as scratch:
        found = sources.read(pretrained, functools.partial(_unpickled, pathlib.Path(scratch)))
        meta = {"from_pretrained": pretrained, "model": found.model, "left_out": list(found.left_out)}
        params = found.params | continuation.read_heads(pathlib.Path(pretrained))  # heads of an export of ours
        with output_folder(output, _is_restored) as partial:
            checkpoints.save_init(partial, params, meta)
    heads = [name for name in params if name != "backbone"]
    print(f"{output}: the backbone" + "".join(f" and the {name}" for name in heads) + f" of {pretrained}")
    if found.left_out:
        print(f"{output}: left out: {', '.join(found.left_out)}")
    print(f"{output}: start from it with launch/main.py --config.init_from={output}")


def compare(folder: pathlib.Path, backbone: Mapping[str, Any], model: ViTConfig, told: Mapping[str, Any]) -> float:
    """Writes parity.json into the folder: PyTorch on the CPU against JAX at the highest precision, and the tensors.
    Returns the largest difference.

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
    backbone = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), backbone)  # once, for all that is computed
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
    return largest


def _in_torch(folder: pathlib.Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        given, found = pathlib.Path(scratch, "inputs.npz"), pathlib.Path(scratch, "found.npz")
        np.savez(given, allow_pickle=False, **inputs)
        script = pathlib.Path(__file__).with_name("torch_features.py")
        subprocess.run([sys.executable, str(script), str(folder), str(given), str(found)], check=True)
        with np.load(found) as arrays:
            return dict(arrays)


def _unpickled(scratch: pathlib.Path, path: pathlib.Path) -> dict[str, Later]:
    """The tensors of a PyTorch pickle, which another process writes into a file in `scratch`. Raises UserError."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{path}: PyTorch pickles need torch, not installed; run pip install 'curia2-jax[eval]'")
    out = scratch / f"{path.name}.safetensors"
    script = pathlib.Path(__file__).with_name("torch_weights.py")
    done = subprocess.run([sys.executable, str(script), str(path), str(out)], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"{path}: not read as a dict of tensors, and nothing in it was run ({said}); fetch it again")
    return tensors_file.read(out)


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
    if _PRETRAINED.value is not None and (wrong := [flag.name for flag in _OF_EXPORT if flag.value]):
        raise UserError(f"--{wrong[0]}: goes with --checkpoint, not with --from-pretrained; leave it out")
    output = pathlib.Path(command.required(_OUTPUT))
    try:
        if _CHECKPOINT.value is not None:
            license = model_card.checked_license(_LICENSE.value) if _LICENSE.value is not None else ""
            export(
                _CHECKPOINT.value,
                output,
                Asked(_VERIFY.value, license, _REPORT.value or "", _HEADS.value, _OPTIMIZER.value),
            )
        elif _PRETRAINED.value is not None:
            restore(_PRETRAINED.value, output)
    except Mismatch as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    command.start(run)
