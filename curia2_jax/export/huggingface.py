"""Backbone parameters <-> a folder that `transformers.AutoModel.from_pretrained` loads, without PyTorch.

Without registers the folder is a stock `Dinov2Model`, with them a stock `Dinov2WithRegistersModel`, with rotary
positions a stock `DINOv3ViTModel` (dinov3.py). The names are those
on disk, which every release of transformers reads and writes, whatever it calls its modules in memory. Weights are
float32 and are only transposed, split or joined: the way there and back is exact to the bit.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from curia2_jax.errors import UserError
from curia2_jax.export import dinov3, tensors_file
from curia2_jax.export.names_on_disk import axes, is_half, name_of
from curia2_jax.export.tensors_file import Later, Piece
from curia2_jax.files import is_plain
from curia2_jax.models.vit import ViT, ViTConfig

Tree = dict[str, Any]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LAYER_NORM_EPS = 1e-6


def shapes(model: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every backbone parameter, e.g. "blocks/attn/query/kernel" -> (L, D, D). Computes nothing."""
    anywhere = ViT(dataclasses.replace(model, attention="xla"))  # other implementations ask for a GPU or a TPU
    image = (1, model.image_size, model.image_size, model.in_channels)
    params = jax.eval_shape(lambda: anywhere.init(jax.random.key(0), jnp.zeros(image)))["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}


def pieces(backbone: Mapping[str, Any], model: ViTConfig) -> Iterator[Piece]:
    """The tensors of `shapes_on_disk`, float32 and contiguous, in PyTorch's layout; gate and up are halves of one.

    Args:
      backbone: nested dict (the `backbone` of a teacher), blocks stacked on axis 0. What is not an array yet is read
        when its turn comes, and one at a time.
    Raises:
      UserError: a parameter is missing, unexpected, or of another shape or dtype than `model` says.
    """
    flat = flatten_dict(backbone, sep="/")
    _check("the checkpoint's backbone", {path: leaf.shape for path, leaf in flat.items()}, shapes(model))
    for path, leaf in flat.items():
        if leaf.dtype != np.float32:
            raise UserError(f"the checkpoint's backbone: {path} is {leaf.dtype}; only float32 is exported")
    on_disk = shapes_on_disk(model)
    for path in flat:
        leaf = np.asarray(flat[path])
        for i, one in enumerate(leaf) if path.startswith("blocks/") else [(None, leaf)]:
            name = name_of(path, model).format(i=i)
            values = np.ascontiguousarray(one.transpose(axes(path)))
            second = "/up/" in path and is_half(path, model)
            yield Piece(name, len(values) if second else 0, values.reshape(-1, *on_disk[name][1:]))


def from_huggingface(tensors: Mapping[str, Any], model: ViTConfig, where: str) -> Tree:
    """The inverse of `pieces`: nested dict of float32 parameters, blocks stacked on axis 0, which NumPy reads from
    `tensors` when it asks for them.

    Half-precision weights become the same numbers in float32.

    Args:
      tensors: name on disk -> array, or what NumPy reads when its turn comes.
      where: what to call the source in errors.
    Raises:
      UserError: names missing or unexpected, of another shape than `model` says; when read, not floating point.
    """
    _check(where, {name: tensor.shape for name, tensor in tensors.items()}, shapes_on_disk(model))
    leaf = {path: functools.partial(_leaf, path, shape, model, tensors, where) for path, shape in shapes(model).items()}
    flat = {path: Later(shape, leaf[path]) for path, shape in shapes(model).items()}
    return unflatten_dict(flat, sep="/")


def _leaf(path: str, shape: tuple[int, ...], model: ViTConfig, tensors: Mapping[str, Any], where: str) -> np.ndarray:
    """One parameter of ours."""
    leaf = np.empty(shape, np.float32)
    for i in range(shape[0]) if path.startswith("blocks/") else [None]:
        name = name_of(path, model).format(i=i)
        tensor = np.asarray(tensors[name])
        if tensor.dtype.name not in ("float32", "float16", "bfloat16"):
            raise UserError(f"{where}: {name} is {tensor.dtype}; write float32, float16 or bfloat16 weights")
        tensor = tensor.reshape(tensor.shape[-len(axes(path)) :]).transpose(np.argsort(axes(path)))
        if is_half(path, model):
            tensor = np.split(tensor, 2, axis=-1)["/up/" in path]
        leaf[... if i is None else i] = tensor
    return leaf


def model_config(model: ViTConfig) -> dict[str, Any]:
    """What goes into config.json.

    Raises:
      UserError: transformers would interpolate the position table otherwise than this model was trained with.
    """
    if model.rotary:
        return dinov3.model_config(model)
    form = "antialias" if model.registers else "size"
    if model.position_form != form:
        raise UserError(
            f"config.model.interpolation: {model.position_form!r} with {model.registers} registers has no counterpart "
            f"in transformers, which resizes the position table in the form {form!r}; export a run trained with that"
        )
    config = {
        "architectures": ["Dinov2WithRegistersModel" if model.registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if model.registers else "dinov2",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "use_swiglu_ffn": model.ffn == "swiglu",
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_channels": model.in_channels,
        "qkv_bias": True,
        "layerscale_value": model.layerscale,
        "layer_norm_eps": LAYER_NORM_EPS,
        "drop_path_rate": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "dtype": "float32",
        "torch_dtype": "float32",  # its name before release 5 of transformers
    }
    return config | ({"num_register_tokens": model.registers} if model.registers else {"use_mask_token": True})


def model_section(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments of `ViTConfig` that describe the model of a config.json.

    Raises:
      UserError: another kind of model, or a variant that DINOv2 does not have.
    """
    kind = config.get("model_type")
    if kind == dinov3.KIND:
        return dinov3.model_section(config, where)
    if kind not in ("dinov2", "dinov2_with_registers"):
        raise UserError(
            f"{where}: model_type is {kind!r}; write a folder of a dinov2, dinov2_with_registers or dinov3_vit model"
        )
    fixed = {"mlp_ratio": 4, "hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": LAYER_NORM_EPS}
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise UserError(f"{where}: {key} is {config[key]!r}; only models with {value!r} can be read")
    defaults = {"image_size": 224, "num_channels": 3, "layerscale_value": 1.0, "use_swiglu_ffn": False}
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    for key in needed:
        if key not in config:
            raise UserError(f"{where}: no {key}; write a folder with a whole config.json")
    got = defaults | dict(config)
    for key in (*needed, "image_size", "num_channels"):
        if not isinstance(got[key], int):
            raise UserError(f"{where}: {key} is {got[key]!r}; only one whole number (a square) can be read")
    return {
        "width": got["hidden_size"],
        "depth": got["num_hidden_layers"],
        "heads": got["num_attention_heads"],
        "patch_size": got["patch_size"],
        "in_channels": got["num_channels"],
        "image_size": got["image_size"],
        "ffn": "swiglu" if got["use_swiglu_ffn"] else "mlp",
        "registers": got.get("num_register_tokens", 4) if kind == "dinov2_with_registers" else 0,
        "layerscale": float(got["layerscale_value"]),
    }


def write(
    directory: pathlib.Path, backbone: Mapping[str, Any], model: ViTConfig, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes config.json and model.safetensors into an existing folder, one parameter at a time.

    Args:
      metadata: of the safetensors file, beside the format that transformers asks for.
    Raises:
      UserError: as `model_config` and `pieces` do.
    """
    config = model_config(model)
    like = {name: tensors_file.Like(shape, np.dtype(np.float32)) for name, shape in shapes_on_disk(model).items()}
    tensors_file.write(directory / WEIGHTS, like, pieces(backbone, model), {"format": "pt", **(metadata or {})})
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_config(directory: pathlib.Path) -> dict[str, Any]:
    """The arguments of `ViTConfig` for the model of a folder.

    Raises:
      UserError: config.json is missing or damaged, or describes another kind of model.
    """
    path = directory / "config.json"
    return model_section(_json(path), str(path))


def open_weights(directory: pathlib.Path, model: ViTConfig) -> Tree:
    """The backbone parameters of a folder, as `from_huggingface` gives them.

    Reads model.safetensors, or the shards that model.safetensors.index.json names.
    Raises:
      UserError: files missing or damaged, or not the weights of `model`.
    """
    files = weight_files(directory)
    tensors = {name: tensor for file in files for name, tensor in tensors_file.read(file).items()}
    return from_huggingface(tensors, model, str(files[0] if len(files) == 1 else directory / INDEX))


def weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """model.safetensors of a folder, or the shards that its index names. Raises UserError."""
    index = directory / INDEX
    if (directory / WEIGHTS).exists() or not index.exists():
        return [directory / WEIGHTS]
    return shards(index, ".safetensors")


def shards(index: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """The files that an index names, all of them beside it and with that suffix. Raises UserError."""
    said = _json(index)
    named = said.get("weight_map") if isinstance(said, dict) else None
    if not isinstance(named, dict) or not named:
        raise UserError(f"{index}: no weight_map of names to files; fetch it again")
    names = [*named.values()]
    if wrong := [name for name in names if not is_plain(name) or not name.endswith(suffix)]:
        raise UserError(f"{index}: names {wrong[0]!r}, which is no {suffix} file beside it; fetch it again")
    return [index.with_name(name) for name in sorted(set(names))]


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not there; write a folder made by save_pretrained or by --checkpoint") from None
    except ValueError as e:
        raise UserError(f"{path}: not JSON ({e}); fetch it again") from None


def shapes_on_disk(model: ViTConfig) -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {}
    if model.rotary and not model.registers:  # an empty tensor there
        out["embeddings.register_tokens"] = (1, 0, model.width)
    for path, shape in shapes(model).items():
        stacked = path.startswith("blocks/")
        one = shape[1:] if stacked else shape
        if is_half(path, model):
            one = (*one[:-1], 2 * one[-1])
        one = tuple(one[axis] for axis in axes(path))
        if path == "mask_token" and model.rotary:
            one = (1, *one)
        out |= {name_of(path, model).format(i=i): one for i in range(model.depth if stacked else 1)}
    return out


def _check(where: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    def some(names: list[str]) -> str:
        return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")

    if missing := sorted(expected.keys() - found.keys()):
        raise UserError(f"{where}: no {some(missing)}; the config says {len(expected)} parameters, found {len(found)}")
    if unexpected := sorted(found.keys() - expected.keys()):
        raise UserError(f"{where}: {some(unexpected)} has no place in the model that the config describes")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise UserError(f"{where}: {name} is {tuple(found[name])}, the config says {shape}")
