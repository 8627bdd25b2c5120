"""Weights of others, in the forms that they are published in: the same features as PyTorch, or one line."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from curia2_jax.errors import UserError
from curia2_jax.export import huggingface, sources
from curia2_jax.models.vit import ViTConfig
from launch import convert, torch_weights
from tests.export.test_huggingface import assert_same, images_of, ours, theirs


def dinov2(registers: int, **changes) -> torch.nn.Module:
    """The geometry of dinov2-small and RAD-DINO, of two blocks, with random weights."""
    kind = transformers.Dinov2WithRegistersConfig if registers else transformers.Dinov2Config
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 70}
    extra = {"num_register_tokens": registers} if registers else {}
    model = transformers.AutoModel.from_config(kind(**(sizes | changes), **extra)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def facebook(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder of transformers under facebookresearch's names, query, key and value fused."""
    t = safetensors.torch.load_file(folder / huggingface.WEIGHTS)
    out = {
        name: t.pop(f"embeddings.{long}")
        for name, long in (
            ("cls_token", "cls_token"),
            ("mask_token", "mask_token"),
            ("pos_embed", "position_embeddings"),
            ("register_tokens", "register_tokens"),
            ("patch_embed.proj.weight", "patch_embeddings.projection.weight"),
            ("patch_embed.proj.bias", "patch_embeddings.projection.bias"),
        )
        if f"embeddings.{long}" in t
    }
    out |= {"norm.weight": t.pop("layernorm.weight"), "norm.bias": t.pop("layernorm.bias")}
    for i in range(2):
        for kind in ("weight", "bias"):
            names = [f"encoder.layer.{i}.attention.attention.{part}.{kind}" for part in ("query", "key", "value")]
            out[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([t.pop(name) for name in names])
    for name, value in t.items():
        name = name.replace("encoder.layer.", "blocks.").replace("attention.output.dense", "attn.proj")
        name = name.replace("layer_scale", "ls").replace("lambda1", "gamma")
        out[name.replace("weights_in", "w12").replace("weights_out", "w3")] = value
    return out


def no_pickle(path):
    raise AssertionError(f"{path} is no pickle")


FORMS = {
    "plain": lambda state: state,
    "chunked": lambda state: {k.replace("blocks.", f"blocks.{0}."): v for k, v in state.items()},
    "trained": lambda state: {
        "model": {f"teacher.backbone.{k}": v for k, v in state.items()}
        | {f"student.backbone.{k}": torch.zeros_like(v) for k, v in state.items()}
        | {"teacher.dino_head.mlp.0.weight": torch.ones(3, 3)},
        "iteration": 7,
    },
}


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_of_facebook_gives_the_same_tokens(tmp_path, form, registers):
    model = dinov2(registers, use_swiglu_ffn=bool(registers))
    model.save_pretrained(tmp_path)
    torch.save(FORMS[form](facebook(tmp_path)), tmp_path / "dinov2.pth")
    section, params = sources.read(str(tmp_path / "dinov2.pth"), unpickled_here(tmp_path))
    config = ViTConfig(**section, dtype="float32", remat="none", attention="xla")
    images = images_of(config, (70, 70))
    found = ours(config, jax.tree.map(jnp.asarray, params), jnp.asarray(images))
    np.testing.assert_allclose(found, theirs(model, images), rtol=0, atol=1e-5)
    assert_same(huggingface.read_weights(tmp_path, config), params)


def unpickled_here(tmp_path):
    def read(path):
        assert torch_weights.main(str(path), str(tmp_path / "t.safetensors")) == 0
        return sources.load(tmp_path / "t.safetensors")

    return read


def test_a_folder_with_pytorch_model_bin(tmp_path):
    """RAD-DINO's form of old: a pickle beside config.json."""
    model = dinov2(0)
    model.save_pretrained(tmp_path)
    config = ViTConfig(**huggingface.read_config(tmp_path))
    expected = huggingface.read_weights(tmp_path, config)
    torch.save(safetensors.torch.load_file(tmp_path / huggingface.WEIGHTS), tmp_path / "pytorch_model.bin")
    (tmp_path / huggingface.WEIGHTS).unlink()
    assert_same(sources.read(str(tmp_path), unpickled_here(tmp_path))[1], expected)


class Runs:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


def hostile(folder: pathlib.Path, kind: str) -> str:
    weights = folder / "weights.pth"
    if kind == "pickle with code":
        torch.save({"cls_token": Runs(folder / "was_run")}, weights)
    elif kind == "truncated pickle":
        torch.save({"cls_token": torch.zeros(1, 1, 64)}, weights)
        weights.write_bytes(weights.read_bytes()[:-200])
    elif kind == "no dict":
        torch.save([1, 2], weights)
    elif kind == "other names":
        torch.save({"cls_token": torch.zeros(1), "pos_embed": torch.zeros(1), "what": torch.zeros(1)}, weights)
    elif kind == "dinov3":
        torch.save({"cls_token": torch.zeros(1), "rope_embed.periods": torch.zeros(1)}, weights)
    else:
        dinov2(0).save_pretrained(folder)
        (folder / huggingface.WEIGHTS).rename(folder.parent / "outside.safetensors")
        names = {"a": "../outside.safetensors"} if kind == "traversal" else ["a"]
        (folder / huggingface.INDEX).write_text(json.dumps({"weight_map": names}))
        return str(folder)
    return str(weights)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pickle with code", "nothing in it was run"),
        ("truncated pickle", "nothing in it was run"),
        ("no dict", "holds a list"),
        ("other names", "what is no parameter of DINOv2"),
        ("dinov3", "rotary positions (RoPE)"),
        ("traversal", "which is no .safetensors file beside it"),
        ("no map", "no weight_map"),
    ],
)
def test_hostile_weights_are_one_line_and_leave_nothing(tmp_path, kind, words):
    (tmp_path / "in").mkdir()
    source = hostile(tmp_path / "in", kind)
    with pytest.raises(UserError) as told:
        convert.restore(source, tmp_path / "out")
    assert words in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "in" / "was_run").exists()


@pytest.mark.parametrize(
    ("source", "words"), [("facebook/dinov2-small", "hf download facebook/dinov2-small"), ("/nowhere/x", "not there")]
)
def test_what_is_not_there_says_how_to_get_it(tmp_path, source, words):
    with pytest.raises(UserError, match=words) as told:
        sources.read(source, no_pickle)
    assert "\n" not in str(told.value)
