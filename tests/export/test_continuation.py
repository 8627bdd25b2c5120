"""Heads and the training state beside an export: what PyTorch makes of them, and the way back."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

from curia2_jax.errors import UserError
from curia2_jax.export import continuation
from curia2_jax.models.dino_head import DINOHead, HeadConfig, last_layer_kernel
from tests.export.test_huggingface import assert_same


def params_of(**changes) -> tuple[HeadConfig, dict]:
    config = HeadConfig(prototypes=24, bottleneck=8, hidden=20, dtype="float32", **changes)
    params = DINOHead(config).init(jax.random.key(0), jnp.zeros((1, 16)))["params"]
    draw = np.random.default_rng(0)
    return config, jax.tree.map(lambda a: draw.normal(0.2, 0.5, a.shape).astype(np.float32), params)


class FacebookHead(torch.nn.Module):
    """DINOv2's head as its paper and its state dicts describe it: an MLP with GELU, unit length, weight norm."""

    def __init__(self, config: HeadConfig):
        super().__init__()
        sizes = [16, *[config.hidden] * (config.layers - 1), config.bottleneck]
        layers = [torch.nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
        between = [part for layer in layers for part in (layer, torch.nn.GELU())][:-1]
        self.mlp = torch.nn.Sequential(*between) if len(layers) > 1 else layers[0]
        self.last_layer = torch.nn.Linear(config.bottleneck, config.prototypes, bias=False)
        if config.weight_norm:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch has a newer form, in which DINOv2's state dicts are not
                self.last_layer = torch.nn.utils.weight_norm(self.last_layer)

    def forward(self, x):
        return self.last_layer(torch.nn.functional.normalize(self.mlp(x), dim=-1))


@pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"weight_norm": False}, {"layers": 2}], ids=str)
def test_facebooks_head_takes_them_and_they_come_back_to_the_bit(tmp_path, changes):
    config, params = params_of(**changes)
    continuation.write_heads(tmp_path, {"backbone": {}, "dino_head": params, "ibot_head": params}, {"step": "3"})
    state = safetensors.torch.load_file(tmp_path / "training" / "heads.safetensors")
    head = FacebookHead(config)
    for name in ("dino_head", "ibot_head"):
        head.load_state_dict({k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(name)})
    x = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    ours = DINOHead(config).apply({"params": params}, jnp.asarray(x)) @ last_layer_kernel(
        jax.tree.map(jnp.asarray, params)
    )
    np.testing.assert_allclose(head(torch.from_numpy(x)).detach(), ours, rtol=0, atol=2e-5)
    assert_same(continuation.read_heads(tmp_path), {"dino_head": params, "ibot_head": params})


def state_of() -> dict:
    student = {"dino_head": params_of()[1]}
    mu, nu = (jax.tree.map(lambda a, by=by: a * np.float32(by), student) for by in (0.1, 0.3))
    moments = {"count": np.array(7, np.int32), "mu": mu, "nu": nu}
    return {"params": student, "opt_state": moments, "centers": {"dino": np.arange(4, dtype=np.float32)}}


@pytest.mark.parametrize(
    ("changes", "step", "words"),
    [
        ({"what": {"x": np.ones(2, np.float32)}}, "7", "no student with Adam's moments"),
        ({"opt_state": {"count": np.array(7, np.int32)}}, "7", "no student with Adam's moments"),
        ({"params": {"dino_head": {"x": np.ones(2, np.float32)}}}, "7", "no student with Adam's moments"),
        ({}, "../7", "its header says no step"),
    ],
)
def test_a_state_of_something_else_is_one_line(tmp_path, changes, step, words):
    continuation.write_state(tmp_path, state_of() | changes, {"step": step})
    with pytest.raises(UserError, match=words) as told:
        continuation.read_state(tmp_path)
    assert "\n" not in str(told.value)


def test_the_state_comes_back_to_the_bit(tmp_path):
    """Integers, too."""
    state = state_of()
    continuation.write_state(tmp_path, state, {"step": "7"})
    read = continuation.read_state(tmp_path)
    assert read.metadata["step"] == "7"
    found = jax.tree.map(np.asarray, read.items)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_an_export_without_them_has_none_and_another_file_is_one_line(tmp_path):
    assert continuation.read_heads(tmp_path) == {} and continuation.read_state(tmp_path) is None
    (tmp_path / "training").mkdir()
    file = tmp_path / "training" / "heads.safetensors"
    for tensors, words in (
        ({"dino_head.what.weight": torch.zeros(2, 2)}, "dino_head.what.weight"),
        ({"dino_head.mlp.0.weight": torch.zeros(2, 2, dtype=torch.float64)}, "float64"),
    ):
        safetensors.torch.save_file(tensors, file)
        with pytest.raises(UserError, match=words) as told:
            continuation.read_heads(tmp_path)
        assert "\n" not in str(told.value)
    file.write_bytes(b"damaged")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        continuation.read_heads(tmp_path)
