"""The proof of an export finds every fault it is there for, at the LayerScale of a real run."""

import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from flax.traverse_util import flatten_dict

from curia2_jax.export import huggingface, parity
from curia2_jax.models.vit import ViTConfig
from launch import torch_features
from tests.export.test_huggingface import config_of, on_disk, random_params

BLIND = {"blocks/attn/key/bias"}  # the softmax cancels it: no forward pass shows it
MODELS = {"swiglu": ("swiglu", 1, 0), "mlp with registers": ("mlp", 3, 4)}
KINDS = [(kind, path) for kind, model in MODELS.items() for path in huggingface.shapes(config_of(*model))]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """PyTorch's threads and those of JAX fight over the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def as_trained(config: ViTConfig) -> dict:
    """Random parameters, of which LayerScale is what a run begins with."""
    params = random_params(config)
    for name in ("ls1", "ls2"):
        params["blocks"][name]["gamma"] = np.full((config.depth, config.width), 1e-5, np.float32)
    return params


@functools.cache
def case(kind: str) -> tuple:
    config = config_of(*MODELS[kind])
    # The native size is enough for a fault of a weight; all three are in the test of what is right.
    inputs = {name: value for name, value in parity.questions(config).items() if name.endswith("/48")}
    return config, as_trained(config), inputs


def largest(folder, params, config, inputs) -> float:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    theirs = torch_features.features(model, inputs)
    return parity.worst(parity.differences(params, config, inputs, theirs), {})[0]


def damaged(folder, config, params, path: str, fault) -> None:
    """Writes a folder in which one parameter is not that of the run."""
    wrong = jax.tree.map(np.copy, params)
    *sections, last = path.split("/")
    section = functools.reduce(dict.__getitem__, sections, wrong)
    section[last] = fault(section[last])
    huggingface.write(folder, wrong, config)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_right_is_far_below_the_tolerance(tmp_path, kind):
    config, params, _ = case(kind)
    huggingface.write(tmp_path, params, config)
    inputs = {k: v for k, v in parity.questions(config).items() if "slice" not in k}
    assert largest(tmp_path, params, config, inputs) < parity.TOLERANCE / 5
    assert parity.unequal(tmp_path, params, config) == []


@pytest.mark.parametrize(("kind", "path"), KINDS)
def test_a_thousandth_in_any_tensor_is_found(tmp_path, kind, path):
    config, params, inputs = case(kind)
    signs = np.random.default_rng(3)
    damaged(
        tmp_path, config, params, path, lambda x: x + np.float32(1e-3) * signs.choice([-1, 1], x.shape).astype("f4")
    )
    assert (largest(tmp_path, params, config, inputs) > parity.TOLERANCE) == (path not in BLIND)
    assert parity.unequal(tmp_path, params, config) == [path]


@pytest.mark.parametrize("path", ["blocks/attn/query/kernel", "blocks/attn/key/kernel", "blocks/attn/out/kernel"])
def test_transposed_and_zeroed_matrices_are_found(tmp_path, path):
    config, params, inputs = case("swiglu")
    for fault in (lambda x: x.swapaxes(1, 2), np.zeros_like):
        damaged(tmp_path, config, params, path, fault)
        assert largest(tmp_path, params, config, inputs) > parity.TOLERANCE


def test_swapped_gate_and_up_are_found(tmp_path):
    config, params, inputs = case("swiglu")
    ffn = params["blocks"]["ffn"]
    swapped = {**params["blocks"], "ffn": {**ffn, "gate": ffn["up"], "up": ffn["gate"]}}
    huggingface.write(tmp_path, {**params, "blocks": swapped}, config)
    assert largest(tmp_path, params, config, inputs) > parity.TOLERANCE


@pytest.mark.parametrize("kind", MODELS)
def test_another_eps_is_found(tmp_path, kind):
    config, params, inputs = case(kind)
    huggingface.write(tmp_path, params, config)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_norm_eps": 1e-5}))
    assert largest(tmp_path, params, config, inputs) > parity.TOLERANCE


def test_the_mask_token_and_the_positions_at_another_size_are_asked_for():
    config, _, _ = case("swiglu")
    inputs = parity.questions(config)
    sizes = {name.partition("/")[2] for name in inputs if name.startswith("images/")}
    assert sizes == {"24", "48", "72"}
    assert all(0 < inputs[f"mask/{size}"].mean() < 1 for size in sizes)


def test_the_probes_change_the_same_parameters_on_both_sides(tmp_path):
    """What PyTorch has after each probe, written by transformers, is what ours has."""
    config, params, _ = case("mlp with registers")
    huggingface.write(tmp_path, params, config)
    model = transformers.AutoModel.from_pretrained(tmp_path)
    for probe in parity.PROBES:
        torch_features.change(model, probe)
        model.save_pretrained(tmp_path / probe)
        stored = safetensors.numpy.load_file(tmp_path / probe / huggingface.WEIGHTS)
        ours = on_disk(parity.changed(params, probe), config)
        assert all(np.array_equal(ours[name], stored[name]) for name in stored)
    assert len(flatten_dict(params)) == len(huggingface.shapes(config))
