"""Where weights may come from: a folder of transformers, sharded or not, or one file of a DINOv2 state dict."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from curia2_jax.errors import UserError
from curia2_jax.export import dinov2_names, huggingface
from curia2_jax.models.vit import ViTConfig

Unpickle = Callable[[pathlib.Path], dict[str, np.ndarray]]
_PICKLES = (".pth", ".pt", ".bin")


def read(source: str, unpickle: Unpickle) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments of `ViTConfig`, backbone parameters) of what the user names.

    Args:
      source: a folder, a .safetensors, .pth, .pt or .bin file.
      unpickle: reads a PyTorch pickle without running what is in it. Raises UserError.
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
    if path.is_dir():
        return _of_folder(path, unpickle)
    if path.suffix not in (".safetensors", *_PICKLES):
        raise UserError(f"{path}: write a folder, a .safetensors file or a .pth file")
    state = unpickle(path) if path.suffix in _PICKLES else load(path)
    tensors = dinov2_names.to_huggingface(dinov2_names.backbone_of(state), str(path))
    section = dinov2_names.model_section(tensors, str(path))
    return section, huggingface.from_huggingface(tensors, ViTConfig(**section), str(path))


def _of_folder(folder: pathlib.Path, unpickle: Unpickle) -> tuple[dict[str, Any], dict[str, Any]]:
    section = huggingface.read_config(folder)
    model = ViTConfig(**section)
    pickled = folder / "pytorch_model.bin"
    if pickled.exists() and not any((folder / name).exists() for name in (huggingface.WEIGHTS, huggingface.INDEX)):
        return section, huggingface.from_huggingface(_without_prefix(unpickle(pickled)), model, str(pickled))
    return section, huggingface.read_weights(folder, model)


def _without_prefix(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A classifier's folder has the model under the name `dinov2`, and its head beside it."""
    return {re.sub(r"^dinov2(_with_registers)?\.", "", name): value for name, value in state.items()}


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file. Raises UserError."""
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as e:
        raise UserError(f"{path}: not a whole safetensors file ({e}); fetch it again") from None
