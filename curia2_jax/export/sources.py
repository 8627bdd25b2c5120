"""Where weights may come from: a folder of transformers, sharded or not, or one file of a DINOv2 state dict."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from curia2_jax.errors import UserError
from curia2_jax.export import dinov2_names, huggingface, tensors_file
from curia2_jax.export.tensors_file import Later
from curia2_jax.models.vit import ViTConfig

Tensors = dict[str, Later]
Unpickle = Callable[[pathlib.Path], Tensors]
_PICKLES = (".pth", ".pt", ".bin")
_LARGEST = {
    "width": 2**16,
    "depth": 2**10,
    "heads": 2**10,
    "patch_size": 2**10,
    "image_size": 2**14,
    "registers": 2**10,
}
_MASK_TOKEN = "embeddings.mask_token"


@dataclasses.dataclass(frozen=True)
class Source:
    """What was read."""

    model: dict[str, Any]  # arguments of `ViTConfig`
    params: dict[str, Any]  # {backbone[, dino_head, ibot_head]}: float32 parameters that NumPy reads in their turn
    left_out: tuple[str, ...]  # names or modules, some with a reason


def read(source: str, unpickle: Unpickle) -> Source:
    """The weights of what the user names.

    Args:
      source: a folder, a .safetensors, .pth, .pt or .bin file.
      unpickle: opens a PyTorch pickle without running what is in it. Raises UserError.
    Raises:
      UserError: nothing is there, or it is damaged or no DINOv2.
    """
    path = pathlib.Path(source)
    if not path.exists():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise UserError(
                f"--from-pretrained {source}: no folder here; if it is a hub id, fetch it first: hf download {source} "
                "--local-dir FOLDER, and write FOLDER"
            )
        raise UserError(f"--from-pretrained {source}: not there; write a folder or a file of weights")
    if not path.is_dir() and path.suffix not in (".safetensors", *_PICKLES):
        raise UserError(f"{path}: write a folder, a .safetensors file or a .pth file")
    found = _of_folder(path, unpickle) if path.is_dir() else _of_file(path, unpickle)
    for name, leaf in flatten_dict(found.params, sep="/").items():
        if not np.isfinite(np.asarray(leaf)).all():
            raise UserError(f"{path}: {name} has values that are not finite; fetch it again")
    return found


def _of_file(path: pathlib.Path, unpickle: Unpickle) -> Source:
    """A state dict of facebookresearch's, with the heads of its training where they are."""
    parts = dinov2_names.take_apart(unpickle(path) if path.suffix in _PICKLES else tensors_file.read(path))
    tensors = dinov2_names.to_huggingface(parts.backbone, str(path))
    section = _bounded(dinov2_names.model_section(tensors, str(path)), path)
    heads = {name: dinov2_names.projection_head(of) for name, of in parts.heads.items()}
    kept = {name: head for name, head in heads.items() if head is not None}
    other = tuple(f"{name} (no head of linear layers with a weight norm)" for name in heads.keys() - kept.keys())
    return _source(section, tensors, str(path), kept, parts.left_out + other)


def _of_folder(folder: pathlib.Path, unpickle: Unpickle) -> Source:
    """A folder of transformers. A classifier's has the model under the name `dinov2`, and its head beside it."""
    try:
        section = _bounded(huggingface.read_config(folder), folder / "config.json")
    except (AttributeError, TypeError, ValueError) as e:
        raise UserError(f"{folder / 'config.json'}: no config of a model ({e}); fetch it again") from None
    files = _pickled(folder) or huggingface.weight_files(folder)
    where = str(files[0] if len(files) == 1 else folder)
    state: Tensors = {}
    for file in files:
        state |= unpickle(file) if file.suffix in _PICKLES else tensors_file.read(file)
    # A classifier's prefix, and the encoder's as release 5 of transformers has it in memory, of DINOv3.
    plain = {re.sub(r"^(dinov2(_with_registers)?\.|model\.(?=layer\.))", "", k): tensor for k, tensor in state.items()}
    left_out = tuple(sorted(name for name in plain if name.startswith("classifier.")))
    tensors = {name: tensor for name, tensor in plain.items() if name not in left_out}
    return _source(section, tensors, where, {}, left_out)


def _pickled(folder: pathlib.Path) -> list[pathlib.Path]:
    """pytorch_model.bin of a folder, or the shards that its index names; none where there are safetensors."""
    whole, index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    if any((folder / name).exists() for name in (huggingface.WEIGHTS, huggingface.INDEX)):
        return []
    files = [whole] if whole.exists() else huggingface.shards(index, ".bin") if index.exists() else []
    if missing := [file for file in files if not file.exists()]:
        raise UserError(f"{missing[0]}: not there, though {index.name} names it; fetch it again")
    return files


def _source(section: dict[str, Any], tensors: Tensors, where: str, heads: Mapping[str, Any], left_out: tuple) -> Source:
    model = ViTConfig(**section)
    if _MASK_TOKEN not in tensors:  # a model that was made with use_mask_token=False; a new one begins with zeros
        shape = huggingface.shapes_on_disk(model)[_MASK_TOKEN]
        tensors |= {_MASK_TOKEN: Later(shape, lambda: np.zeros(shape, np.float32))}
    backbone = huggingface.from_huggingface(tensors, model, where)
    return Source(section, {"backbone": backbone, **heads}, left_out)


def _bounded(section: dict[str, Any], where: pathlib.Path) -> dict[str, Any]:
    """The same, if it is a model that can be. Raises UserError."""
    for key, most in _LARGEST.items():
        if not (0 if key == "registers" else 1) <= section[key] <= most:
            raise UserError(f"{where}: {key} would be {section[key]}; no such model can be read; fetch it again")
    return section
