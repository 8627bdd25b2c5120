"""Weights of others, in the forms that they are published in: the same features as PyTorch, or one line."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from curia2_jax.errors import UserError
from curia2_jax.export import dinov2_names, huggingface, sources, tensors_file
from curia2_jax.models.dino_head import DINOHead, HeadConfig, last_layer_kernel
from curia2_jax.models.vit import ViTConfig
from launch import convert, torch_weights
from tests.export.test_huggingface import assert_same, images_of, ours, theirs, weights_of


def dinov2(registers: int, **changes) -> torch.nn.Module:
    """The geometry of dinov2-small and RAD-DINO, of two blocks, with random weights."""
    kind = transformers.Dinov2WithRegistersConfig if registers else transformers.Dinov2Config
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 70}
    extra = {"num_register_tokens": registers} if registers else {}
    model = transformers.AutoModel.from_config(kind(**(sizes | changes), **extra)).eval()
    generator = torch.Generator().manual_seed(0)
    spread = 0.1 * 128 / model.config.hidden_size  # at published widths that of the initial weights, 0.02, or less
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
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


def read(path: pathlib.Path, unpickle) -> sources.Source:
    """With its parameters as arrays."""
    found = sources.read(str(path), unpickle)
    return dataclasses.replace(found, params=jax.tree.map(np.asarray, found.params))


def no_pickle(path):
    raise AssertionError(f"{path} is no pickle")


def head(prototypes: int) -> torch.nn.Module:
    """A projection head as facebookresearch's dino_head.py builds it."""
    torch.manual_seed(prototypes)
    gelu, linear = torch.nn.GELU, torch.nn.Linear
    module = torch.nn.Module()
    module.mlp = torch.nn.Sequential(linear(128, 24), gelu(), linear(24, 24), gelu(), linear(24, 16))
    last = linear(16, prototypes, bias=False)
    weight = last.weight.detach()
    module.last_layer = torch.nn.Module()  # the names of weight norm as DINOv2's release of PyTorch has them
    module.last_layer.weight_g = torch.nn.Parameter(1 + 0.1 * torch.rand(prototypes, 1))
    module.last_layer.weight_v = torch.nn.Parameter(weight)
    return module


HEADS = {"dino_head": head(20), "ibot_head": head(12)}


def trained(state: dict[str, torch.Tensor]) -> dict:
    """A checkpoint of training: student and teacher with their heads, centers, and what is no tensor."""
    heads = {f"teacher.{name}.{k}": v for name, one in HEADS.items() for k, v in one.state_dict().items()}
    return {
        "model": {f"teacher.backbone.{k}": v for k, v in state.items()}
        | {f"student.backbone.{k}": torch.zeros_like(v) for k, v in state.items()}
        | heads
        | {"dino_loss.center": torch.ones(1, 20)},
        "iteration": 7,
    }


FORMS = {
    "plain": lambda state: state,
    "chunked": lambda state: {re.sub(r"^blocks\.(\d)", r"blocks.\1.\1", k): v for k, v in state.items()},
    "trained": trained,
    "teacher alone": lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()}},
}


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_of_facebook_gives_the_same_tokens(tmp_path, form, registers):
    model = dinov2(registers, use_swiglu_ffn=bool(registers))
    model.save_pretrained(tmp_path)
    torch.save(FORMS[form](facebook(tmp_path)), tmp_path / "dinov2.pth")
    found = read(tmp_path / "dinov2.pth", unpickled_here(tmp_path))
    config = ViTConfig(**found.model, dtype="float32", remat="none", attention="xla")
    images = images_of(config, (70, 70))
    tokens = ours(config, jax.tree.map(jnp.asarray, found.params["backbone"]), jnp.asarray(images))
    np.testing.assert_allclose(tokens, theirs(model, images), rtol=0, atol=1e-5)
    assert_same(weights_of(tmp_path, config), found.params["backbone"])
    assert found.params.keys() == {"backbone"} | (HEADS.keys() if form == "trained" else set())
    assert found.left_out == (("dino_loss", "student") if form == "trained" else ())


@pytest.mark.parametrize("names", ["weight_g", "parametrizations"])
@pytest.mark.parametrize("which", HEADS)
def test_the_heads_of_a_state_dict_give_the_same_logits(which, names):
    module = HEADS[which]
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    if names == "parametrizations":
        state["last_layer.parametrizations.weight.original0"] = state.pop("last_layer.weight_g")
        state["last_layer.parametrizations.weight.original1"] = state.pop("last_layer.weight_v")
    params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), dinov2_names.projection_head(state))
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = torch.nn.functional.normalize(module.mlp(x), dim=-1)
        g, v = module.last_layer.weight_g, module.last_layer.weight_v
        logits = torch.nn.functional.linear(features, g * v / v.norm(dim=1, keepdim=True))
    config = HeadConfig(len(g), bottleneck=16, hidden=24, dtype="float32")
    found = DINOHead(config).apply({"params": params}, jnp.asarray(x.numpy())) @ last_layer_kernel(params)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {"mlp.1.weight": np.ones(24), "mlp.1.bias": np.ones(24)},
        lambda s: {k: v for k, v in s.items() if k != "mlp.2.bias"},
        lambda s: {k.replace("mlp.4", "mlp.6"): v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if not k.startswith("last_layer")},
    ],
)
def test_a_head_of_another_kind_is_left_out(change):
    state = {name: tensor.numpy() for name, tensor in HEADS["dino_head"].state_dict().items()}
    assert dinov2_names.projection_head(state) is not None
    assert dinov2_names.projection_head(change(state)) is None


def unpickled_here(tmp_path):
    def read(path):
        out = tmp_path / f"{path.name}.safetensors"
        assert torch_weights.main(str(path), str(out)) == 0
        return tensors_file.read(out)

    return read


SHARDS = {1: lambda names: {"pytorch_model.bin": names}, 2: lambda names: {"a.bin": names[::2], "b.bin": names[1::2]}}


@pytest.mark.parametrize("shards", SHARDS)
def test_a_folder_with_pytorch_model_bin(tmp_path, shards):
    """RAD-DINO's form of old: a pickle beside config.json, or several with an index."""
    model = dinov2(0)
    model.save_pretrained(tmp_path)
    config = ViTConfig(**huggingface.read_config(tmp_path))
    expected = weights_of(tmp_path, config)
    tensors = safetensors.torch.load_file(tmp_path / huggingface.WEIGHTS)
    (tmp_path / huggingface.WEIGHTS).unlink()
    names = sorted(tensors)
    for file, some in SHARDS[shards](names).items():
        torch.save({name: tensors[name] for name in some}, tmp_path / file)
    if shards > 1:
        of = {name: file for file, some in SHARDS[shards](names).items() for name in some}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": of}))
    assert_same(read(tmp_path, unpickled_here(tmp_path)).params["backbone"], expected)


@pytest.mark.parametrize("registers", [0, 4])
def test_a_classifier_is_its_backbone(tmp_path, registers):
    """Its folder has the model under a prefix and the classifier beside it, which is left out and said to be."""
    model = dinov2(registers)
    config = model.config
    config.num_labels = 3
    kind = "Dinov2WithRegistersForImageClassification" if registers else "Dinov2ForImageClassification"
    classifier = getattr(transformers, kind)(config).eval()
    getattr(classifier, "dinov2_with_registers" if registers else "dinov2").load_state_dict(model.state_dict())
    classifier.save_pretrained(tmp_path / "classifier")
    model.save_pretrained(tmp_path / "model")
    found = read(tmp_path / "classifier", no_pickle)
    assert found.left_out == ("classifier.bias", "classifier.weight")
    assert_same(found.params, read(tmp_path / "model", no_pickle).params)


def test_a_model_without_a_mask_token_begins_with_zeros(tmp_path):
    dinov2(0, use_mask_token=False).save_pretrained(tmp_path)
    found = read(tmp_path, no_pickle).params["backbone"]["mask_token"]
    np.testing.assert_array_equal(found, np.zeros((1, 128), np.float32))


class Runs:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


def written(folder: pathlib.Path, **changes) -> pathlib.Path:
    """A folder of a small model, `changes` in its config.json."""
    dinov2(0).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def of_index(folder: pathlib.Path, said: object, index: str = huggingface.INDEX) -> pathlib.Path:
    (written(folder) / huggingface.WEIGHTS).rename(folder.parent / "outside.safetensors")
    (folder / index).write_text(json.dumps(said))
    return folder


def of_pickles(folder: pathlib.Path, name: str) -> pathlib.Path:
    """An index of pickles, which names `name`; a.bin is there and has code in it."""
    torch.save({"a": Runs(folder / "was_run")}, folder / "a.bin")
    return of_index(folder, {"weight_map": {"a": name}}, "pytorch_model.bin.index.json")


def of_pickle(folder: pathlib.Path, state: object, cut: int = 0) -> pathlib.Path:
    torch.save(state, folder / "weights.pth")
    whole = (folder / "weights.pth").read_bytes()
    (folder / "weights.pth").write_bytes(whole[: len(whole) - cut])
    return folder / "weights.pth"


def of_state(folder: pathlib.Path, change) -> pathlib.Path:
    """A state dict of facebookresearch's that `change` has damaged, in a file that needs no process to be read."""
    state = facebook(written(folder))
    change(state)
    safetensors.torch.save_file(
        {name: tensor.clone() for name, tensor in state.items()}, folder / "weights.safetensors"
    )
    return folder / "weights.safetensors"


def of_tensors(folder: pathlib.Path, change) -> pathlib.Path:
    tensors = safetensors.torch.load_file(written(folder) / huggingface.WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / huggingface.WEIGHTS)
    return folder


def of_bytes(folder: pathlib.Path, name: str, change) -> pathlib.Path:
    path = written(folder) / name
    path.write_bytes(change(path.read_bytes()))
    return folder


TABLE, NORM, QKV = "embeddings.position_embeddings", "layernorm.weight", "blocks.0.attn.qkv.weight"
HOSTILE = {
    "pickle with code": (lambda f: of_pickle(f, {"cls_token": Runs(f / "was_run")}), "nothing in it was run"),
    "truncated pickle": (lambda f: of_pickle(f, {"cls_token": torch.zeros(1, 1, 64)}, 200), "nothing in it was run"),
    "no dict": (lambda f: of_pickle(f, [1, 2]), "holds a list"),
    "no tensors": (lambda f: of_pickle(f, {"iteration": 3}), "no cls_token and pos_embed"),
    "other names": (lambda f: of_state(f, lambda s: s.update(what=torch.zeros(1))), "what is no parameter of DINOv2"),
    "dinov3 state": (
        lambda f: of_state(f, lambda s: s.update({"rope_embed.periods": torch.zeros(1)})),
        "a state dict of DINOv3; write a folder of its DINOv3ViTModel",
    ),
    "dinov3 in name": (lambda f: written(f, model_type="dinov3_vit"), "intermediate_size is None"),
    "another model": (lambda f: written(f, model_type="bert"), "model_type is 'bert'"),
    "block twice": (
        lambda f: of_state(f, lambda s: s.update({"blocks.1.0.norm1.bias": s["blocks.0.norm1.bias"]})),
        "are the same block",
    ),
    "qkv in halves": (lambda f: of_state(f, lambda s: s.update({QKV: s[QKV][:-1]})), "no query, key and value"),
    "flat table": (lambda f: of_state(f, lambda s: s.update(pos_embed=torch.zeros(9))), "pos_embed is (9,)"),
    "empty table": (lambda f: of_state(f, lambda s: s.update(pos_embed=torch.zeros(1, 0, 128))), "square tables"),
    "block missing": (lambda f: of_state(f, lambda s: s.pop("blocks.1.norm1.bias")), "no encoder.layer.1.norm1.bias"),
    "wrong shape": (lambda f: of_tensors(f, lambda t: t.update({NORM: torch.zeros(7)})), "is (7,), the config says"),
    "missing": (lambda f: of_tensors(f, lambda t: t.pop(NORM)), f"no {NORM}"),
    "not finite": (
        lambda f: of_tensors(f, lambda t: t.update({NORM: torch.full((128,), torch.nan)})),
        "norm/scale has values that are not finite",
    ),
    "integers": (lambda f: of_tensors(f, lambda t: t.update({NORM: t[NORM].int()})), "is int32; write float32"),
    "8 bits": (lambda f: of_tensors(f, lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)})), "float8_e4m3fn"),
    "truncated": (lambda f: of_bytes(f, huggingface.WEIGHTS, lambda b: b[:-100]), "not a whole safetensors file"),
    "long header": (
        lambda f: of_bytes(f, huggingface.WEIGHTS, lambda b: b"\xff" * 8 + b[8:]),
        "not a whole safetensors file",
    ),
    "empty": (lambda f: of_bytes(f, huggingface.WEIGHTS, lambda b: b""), "not a whole safetensors file"),
    "no json": (lambda f: of_bytes(f, "config.json", lambda b: b[:40]), "not JSON"),
    "other bytes": (lambda f: of_bytes(f, "config.json", lambda b: b"\xff\xfe\x00"), "config.json"),
    "a list": (lambda f: of_bytes(f, "config.json", lambda b: b"[1]"), "no config of a model"),
    "no number": (lambda f: written(f, layerscale_value="x"), "no config of a model"),
    "no heads": (lambda f: written(f, num_attention_heads=0), "heads would be 0"),
    "no patches": (lambda f: written(f, patch_size=0), "patch_size would be 0"),
    "less than no width": (lambda f: written(f, hidden_size=-128), "width would be -128"),
    "endless": (lambda f: written(f, num_hidden_layers=10**12), "depth would be 1000000000000"),
    "huge": (lambda f: written(f, hidden_size=2**40), "width would be"),
    "traversal": (
        lambda f: of_index(f, {"weight_map": {"a": "../outside.safetensors"}}),
        "which is no .safetensors file beside it",
    ),
    "absolute": (
        lambda f: of_index(f, {"weight_map": {"a": f"{f.parent}/outside.safetensors"}}),
        "which is no .safetensors file beside it",
    ),
    "pickled traversal": (lambda f: of_pickles(f, "../in/a.bin"), "which is no .bin file beside it"),
    "pickled absolute": (lambda f: of_pickles(f, f"{f}/a.bin"), "which is no .bin file beside it"),
    "pickled, of another kind": (lambda f: of_pickles(f, "config.json"), "which is no .bin file beside it"),
    "pickled shard missing": (lambda f: of_pickles(f, "b.bin"), "b.bin: not there"),
    "pickled shard with code": (lambda f: of_pickles(f, "a.bin"), "nothing in it was run"),
    "no map": (lambda f: of_index(f, {"weight_map": ["a"]}), "no weight_map"),
    "shard missing": (lambda f: of_index(f, {"weight_map": {"a": "b.safetensors"}}), "b.safetensors: not there"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_weights_are_one_line_and_leave_nothing(tmp_path, kind):
    make, words = HOSTILE[kind]
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError) as told:
        convert.restore(str(make(tmp_path / "in")), tmp_path / "out")
    assert words in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "in" / "was_run").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "outside.safetensors"}


@pytest.mark.parametrize(
    ("source", "words"), [("facebook/dinov2-small", "hf download facebook/dinov2-small"), ("/nowhere/x", "not there")]
)
def test_what_is_not_there_says_how_to_get_it(tmp_path, source, words):
    with pytest.raises(UserError, match=words) as told:
        sources.read(source, no_pickle)
    assert "\n" not in str(told.value)
