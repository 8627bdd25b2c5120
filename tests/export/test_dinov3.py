"""A DINOv3ViTModel of transformers: token by token, there and back, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from curia2_jax.errors import UserError
from curia2_jax.export import dinov3 as dinov3_of
from curia2_jax.export import huggingface, parity, sources
from curia2_jax.models.vit import ViT, ViTConfig
from curia2_jax.training.look import attention_entropy
from tests.export.test_huggingface import assert_same, config_of, on_disk, weights_of
from tests.export.test_model_card import card
from tests.export.test_parity import as_trained, largest
from tests.export.test_sources import no_pickle

SIZES = [(48, 48), (32, 64)]  # native, and neither that nor square
SMALL = {
    "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8,
    "image_size": 48, "num_register_tokens": 4,
}  # fmt: skip
VARIANTS = {
    "as released": {},
    "no registers": {"num_register_tokens": 0},
    "gated": {"use_gated_mlp": True, "hidden_act": "silu", "intermediate_size": 176},
}


def dinov3(folder, **changes) -> torch.nn.Module:
    """A model of random weights, saved; no LayerScale, bias or norm is what it begins as."""
    model = transformers.AutoModel.from_config(transformers.DINOv3ViTConfig(**(SMALL | changes))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # At published widths that of the initial weights, or less.
            parameter.add_(
                0.1 * min(1, 128 / model.config.hidden_size) * torch.randn(parameter.shape, generator=generator)
            )
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_token_is_theirs(tmp_path, variant):
    """At two sizes, with masked patches; a folder in several files, and back to the bit."""
    model = dinov3(tmp_path, **VARIANTS[variant])
    found = sources.read(str(tmp_path), no_pickle)
    config = ViTConfig(**found.model, dtype="float32", remat="none", attention="xla")
    assert (config.positions, config.registers) == ("rope", model.config.num_register_tokens)
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), found.params["backbone"])
    for height, width in SIZES:
        images = np.random.default_rng(1).standard_normal((2, 3, height, width), np.float32)
        mask = np.arange(2 * height * width // 64).reshape(2, -1) % 3 == 0
        with jax.default_matmul_precision("highest"):
            out = jax.jit(ViT(config).apply)({"params": params}, jnp.asarray(images.transpose(0, 2, 3, 1)), mask)
        with torch.no_grad():
            expected = model(torch.from_numpy(images), bool_masked_pos=torch.from_numpy(mask)).last_hidden_state
        tokens = np.concatenate([out["cls"][:, None], out["registers"], out["patches"]], axis=1)
        np.testing.assert_allclose(tokens, expected, rtol=0, atol=1e-5)
    stored, again = safetensors.numpy.load_file(tmp_path / huggingface.WEIGHTS), on_disk(params, config)
    assert again.keys() == stored.keys()
    assert all(again[name].tobytes() == stored[name].tobytes() for name in stored)


def test_an_export_is_read_by_transformers_and_proven(tmp_path):
    """And comes back to the bit; a position that turns otherwise, and another eps, are found."""
    config = config_of("swiglu", 1, 4, positions="rope")
    params = as_trained(config)
    huggingface.write(tmp_path, params, config)
    inputs = {name: value for name, value in parity.questions(config).items() if name.endswith(("/48", "/72"))}
    assert largest(tmp_path, params, config, inputs) < parity.TOLERANCE / 5
    assert parity.unequal(tmp_path, params, config) == []
    assert_same(weights_of(tmp_path, config), params)
    assert dataclasses.replace(config, **huggingface.read_config(tmp_path)) == config
    path = tmp_path / "config.json"
    whole = path.read_text()
    for change in ({"rope_theta": 101.0}, {"layer_norm_eps": 1e-6}):
        path.write_text(json.dumps(json.loads(whole) | change))
        assert largest(tmp_path, params, config, inputs) > parity.TOLERANCE


def test_what_a_run_says_of_its_attention_is_that_of_their_weights(tmp_path):
    model = dinov3(tmp_path)
    model.set_attn_implementation("eager")
    found = sources.read(str(tmp_path), no_pickle)
    config = ViTConfig(**found.model, dtype="float32", remat="none", attention="xla")
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), found.params["backbone"])
    images = np.random.default_rng(1).standard_normal((2, 3, 48, 48), np.float32)
    with torch.no_grad():
        weights = model(torch.from_numpy(images), output_attentions=True).attentions
    expected = [float(-(w * w.log()).sum(-1).mean() / np.log(w.shape[-1])) for w in weights]
    entropy = attention_entropy(params, jnp.asarray(images.transpose(0, 2, 3, 1)), ViT(config))
    np.testing.assert_allclose(entropy, expected, rtol=1e-4)
    assert max(expected) < 0.99


def test_the_card_names_its_class_and_net(tmp_path):
    text = card(tmp_path, model=dinov3_of.model_config(config_of("swiglu", 1, 4, positions="rope")))
    assert "# DINOv3ViTModel: 3 blocks of width 64" in text and "| feed-forward | SwiGLU |" in text
    assert "\n- dinov3\n" in text and "registers 1 to 4" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_theta": 10_000.0}, "rope_theta is 10000.0; only models with 100.0"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
        ({"key_bias": True}, "key_bias is True"),
        ({"intermediate_size": 128}, "intermediate_size is 128; only models with 256"),
        ({"use_gated_mlp": True, "hidden_act": "silu"}, "intermediate_size is 256; only models with 176"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"image_size": [48, 32]}, "image_size is [48, 32]; only one whole number"),
        ({"num_attention_heads": 32}, "heads of 2 channels"),
    ],
)
def test_what_the_backbone_has_not_is_refused_by_its_key(changes, words):
    with pytest.raises(UserError) as told:
        ViTConfig(**huggingface.model_section(SMALL | {"model_type": "dinov3_vit"} | changes, "config.json"))
    assert words in str(told.value) and "\n" not in str(told.value)
