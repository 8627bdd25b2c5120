"""Weights and features against transformers' own models."""

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
import transformers

from curia2_jax.errors import UserError
from curia2_jax.export import huggingface, names_on_disk
from curia2_jax.models.vit import ViT, ViTConfig

MODELS = [  # ffn, channels, registers: both classes, both feed-forward nets, 1 and 3 channels
    ("swiglu", 1, 0),
    ("mlp", 3, 0),
    ("swiglu", 3, 4),
    ("mlp", 1, 4),
]
SIZES = [(48, 48), (80, 80), (32, 64)]  # native, larger, smaller and not square


def config_of(ffn="swiglu", channels=1, registers=0, **changes) -> ViTConfig:
    shape = {"width": 64, "depth": 3, "heads": 2, "patch_size": 8, "image_size": 48}
    shape |= {"ffn": ffn, "in_channels": channels, "registers": registers}
    return ViTConfig(**shape, dtype="float32", remat="none", attention="xla", **changes)


def config_from(folder) -> ViTConfig:
    return dataclasses.replace(config_of(), **huggingface.read_config(folder))


def random_params(config: ViTConfig, seed: int = 0) -> dict:
    """Parameters far from their initial values, so that each of them matters."""
    config = dataclasses.replace(config, attention="xla")
    images = jnp.zeros((1, config.image_size, config.image_size, config.in_channels))
    shapes = jax.eval_shape(ViT(config).init, jax.random.key(0), images)["params"]
    draw = np.random.default_rng(seed)
    leaf = lambda path, s: np.float32(draw.normal("scale" in jax.tree_util.keystr(path), 0.15, s.shape))  # noqa: E731
    return jax.tree_util.tree_map_with_path(leaf, shapes)


def ours(config: ViTConfig, params: dict, images: np.ndarray) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        variables = {"params": jax.tree.map(jnp.asarray, params)}
        out = ViT(config).apply(variables, jnp.asarray(images.transpose(0, 2, 3, 1)))
    return np.concatenate([out["cls"][:, None], out["registers"], out["patches"]], axis=1)


def theirs(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(images)).last_hidden_state.numpy()


def assert_same(a: dict, b: dict) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype == np.float32
        assert np.array_equal(x, y), jax.tree_util.keystr(path)


def weights_of(folder: pathlib.Path, config: ViTConfig) -> dict:
    return jax.tree.map(np.asarray, huggingface.open_weights(folder, config))


def on_disk(params: dict, config: ViTConfig) -> dict[str, np.ndarray]:
    """What a folder holds, in memory."""
    out = {name: np.full(shape, np.nan, np.float32) for name, shape in huggingface.shapes_on_disk(config).items()}
    for name, row, values in huggingface.pieces(params, config):
        out[name][row : row + len(values)] = values
    return out


def images_of(config: ViTConfig, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, config.in_channels, *size)).astype(np.float32)


@pytest.mark.parametrize(("ffn", "channels", "registers"), MODELS)
def test_export_gives_the_same_tokens(tmp_path, ffn, channels, registers):
    """Ours in PyTorch: every token at three resolutions, and the way back to the bit."""
    config = config_of(ffn, channels, registers)
    params = random_params(config)
    huggingface.write(tmp_path, params, config)
    model, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model).__name__ == ("Dinov2WithRegistersModel" if registers else "Dinov2Model")
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert model.dtype == transformers.AutoConfig.from_pretrained(tmp_path).dtype == torch.float32
    for size in SIZES:
        images = images_of(config, size)
        expected = theirs(model, images)
        assert np.abs(expected).max() > 1  # features, not zeros
        np.testing.assert_allclose(ours(config, params, images), expected, rtol=0, atol=1e-5)
    assert_same(weights_of(tmp_path, config), params)
    assert config_from(tmp_path) == config


@pytest.mark.parametrize(("ffn", "channels", "registers"), MODELS)
def test_import_gives_the_same_tokens(tmp_path, ffn, channels, registers):
    """Theirs in JAX, from several files, and back, bit for bit."""
    kind = transformers.Dinov2WithRegistersConfig if registers else transformers.Dinov2Config
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "image_size": 48}
    model = transformers.AutoModel.from_config(kind(**sizes, num_channels=channels, use_swiglu_ffn=ffn == "swiglu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.eval().save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / huggingface.INDEX).exists()  # several files

    config = config_from(tmp_path)
    assert (config.ffn, config.in_channels, config.registers) == (ffn, channels, registers)
    params = weights_of(tmp_path, config)
    for size in SIZES:
        images = images_of(config, size)
        np.testing.assert_allclose(ours(config, params, images), theirs(model, images), rtol=0, atol=1e-5)

    # And back: every tensor of theirs, bit for bit.
    again = on_disk(params, config)
    stored = {}
    for file in tmp_path.glob("*.safetensors"):
        stored |= safetensors.numpy.load_file(file)
    assert again.keys() == stored.keys()
    assert all(np.array_equal(again[name], stored[name]) and again[name].dtype == stored[name].dtype for name in stored)


def test_every_parameter_has_a_shape_and_a_name():
    """Shapes come from the model itself, for any attention and without a computation; each of them has a name."""
    for ffn, channels, registers in MODELS:
        config = dataclasses.replace(config_of(ffn, channels, registers), attention="cudnn", dtype="bfloat16")
        found = huggingface.shapes(config)
        assert found["pos_embed"] == (1, 1 + 6 * 6, 64)
        assert found["patch_embed/kernel"] == (8, 8, channels, 64)
        assert found["blocks/attn/query/kernel"] == (3, 64, 64)
        assert ("register_tokens" in found) == bool(registers)
        assert found.keys() <= names_on_disk.DINOV2.keys()
        assert sum(int(np.prod(shape)) for shape in found.values()) == sum(
            leaf.size for leaf in jax.tree.leaves(random_params(config))
        )


def test_half_precision_becomes_the_same_numbers(tmp_path):
    """bfloat16 weights are read as the float32 numbers they are."""
    config = config_of()
    model = transformers.AutoModel.from_config(transformers.Dinov2Config(**_plain(config))).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    params = weights_of(tmp_path, config)
    expected = dict(model.named_parameters())["embeddings.cls_token"].detach().float().numpy()
    assert np.array_equal(params["cls_token"], expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def _plain(config: ViTConfig) -> dict:
    full = huggingface.model_config(config)
    return {key: full[key] for key in full if key not in ("architectures", "model_type", "dtype")}


@pytest.mark.parametrize(("registers", "interpolation"), [(0, "offset"), (0, "antialias"), (4, "size"), (4, "offset")])
def test_refuses_what_transformers_would_interpolate_otherwise(tmp_path, registers, interpolation):
    """A position table that transformers would resize differently is not exported."""
    config = config_of(registers=registers, interpolation=interpolation)
    with pytest.raises(UserError, match="interpolation") as error:
        huggingface.write(tmp_path, random_params(config), config)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def _drop(tensors):
    del tensors["encoder.layer.1.mlp.weights_in.bias"]


def _add(tensors):
    tensors["classifier.weight"] = np.zeros(3, np.float32)


def _reshape(tensors):
    tensors["layernorm.weight"] = np.zeros(65, np.float32)


def _widen(tensors):
    tensors["layernorm.weight"] = tensors["layernorm.weight"].astype(np.float64)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_drop, r"no encoder\.layer\.1\.mlp\.weights_in\.bias"),
        (_add, r"classifier\.weight has no place"),
        (_reshape, r"layernorm\.weight is \(65,\), the config says \(64,\)"),
        (_widen, r"layernorm\.weight is float64"),
    ],
)
def test_refuses_other_weights(tmp_path, damage, words):
    """Missing, unexpected, misshapen and double-precision weights, each by name."""
    config = config_of()
    tensors = on_disk(random_params(config), config)
    damage(tensors)
    safetensors.numpy.save_file(tensors, tmp_path / huggingface.WEIGHTS)
    with pytest.raises(UserError, match=words) as error:
        weights_of(tmp_path, config)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_refuses_damaged_files(tmp_path):
    """No file, half a file, no JSON."""
    config = config_of()
    with pytest.raises(UserError, match="not there"):
        weights_of(tmp_path, config)
    huggingface.write(tmp_path, random_params(config), config)
    weights = tmp_path / huggingface.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        weights_of(tmp_path, config)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        huggingface.read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "vit"}, "model_type is 'vit'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps"),
        ({"image_size": [48, 64]}, "image_size"),
    ],
)
def test_refuses_other_models(tmp_path, change, words):
    """Another architecture, or a variant of it that ours is not."""
    config = huggingface.model_config(config_of()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=words):
        huggingface.read_config(tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o007])
def test_files_are_read_by_whom_umask_says(tmp_path, umask):
    """safetensors' own writer makes files that only their owner can read."""
    config = config_of()
    before = os.umask(umask)
    try:
        huggingface.write(tmp_path, random_params(config), config)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_the_file_says_what_it_is(tmp_path):
    """Metadata that the library of the format reads, and a dtype under the names of both releases."""
    config = config_of()
    huggingface.write(tmp_path, random_params(config), config, {"step": "7"})
    with safetensors.safe_open(tmp_path / huggingface.WEIGHTS, "np") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["dtype"] == said["torch_dtype"] == "float32"


def test_refuses_a_checkpoint_of_another_shape():
    """A backbone that is not what its config says."""
    config = config_of()
    params = random_params(config)
    with pytest.raises(UserError, match=r"blocks/attn/key/bias is \(3, 64\), the config says \(4, 64\)|blocks/"):
        on_disk(params, dataclasses.replace(config, depth=4))
    with pytest.raises(UserError, match="float64"):
        on_disk({**params, "cls_token": params["cls_token"].astype(np.float64)}, config)
