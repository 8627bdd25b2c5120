"""Weights of others: converted, adapted to one channel and another patch, trained three steps, exported, in PyTorch."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from curia2_jax.export import huggingface
from curia2_jax.parallel.mesh import make_mesh
from curia2_jax.training import checkpoints, initial, prepare
from curia2_jax.training.loop import DONE, train
from curia2_jax.training.recipe import recipe_from
from launch import convert
from tests.data.small_corpus import write_small_corpus
from tests.export.test_dinov3 import dinov3
from tests.export.test_huggingface import images_of, ours, theirs
from tests.export.test_sources import dinov2, facebook, trained
from tests.training.tiny import tiny_config

# As configs/continue.py has them, and for the registers what each of the two stories wants.
RULES = "channels:sum,patch:resample,positions:interpolate,heads:new"
BASE = {"hidden_size": 768, "num_attention_heads": 12, "patch_size": 14, "image_size": 518}
GEOMETRIES = {  # the published ones, but for the depth: two blocks
    "dinov2-small": (BASE | {"hidden_size": 384, "num_attention_heads": 6}, 0),
    "dinov2-base": (BASE, 0),
    "dinov2-giant": (BASE | {"hidden_size": 1536, "num_attention_heads": 24, "use_swiglu_ffn": True}, 0),
    "dinov2-with-registers-base": (BASE, 4),
    "rad-dino": (BASE, 0),
    "dinov3-small": (
        {
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_attention_heads": 6,
            "patch_size": 16,
            "image_size": 224,
            "num_register_tokens": 4,
            "num_hidden_layers": 2,
        },
        4,
    ),
    "curia-b": (BASE | {"patch_size": 16, "image_size": 512, "use_swiglu_ffn": True, "num_channels": 1}, 0),
}
SMALL = {"hidden_size": 128, "num_attention_heads": 2, "patch_size": 14, "image_size": 70}


def config_for(sizes: dict, corpus: pathlib.Path, weights: pathlib.Path, **changes) -> dict:
    config = tiny_config(
        data__corpus=str(corpus), data__global_batch=2, data__group_size=1, init_from=str(weights), init__adapt=RULES,
        model__width=sizes["hidden_size"], model__heads=sizes["num_attention_heads"],
        model__ffn="swiglu" if sizes.get("use_swiglu_ffn") else "mlp", masks__probability=1.0, **changes,
    )  # fmt: skip
    return config | {"total_steps": 3}


def travels(tmp_path: pathlib.Path, monkeypatch, source: pathlib.Path, model: torch.nn.Module, sizes, changes) -> dict:
    """The whole way of one folder or file; returns init.json of the run."""
    write_small_corpus(tmp_path / "corpus")
    convert.restore(str(source), tmp_path / "weights")

    # As they came: the same features, and the same bytes when they are written again.
    config = config_for(sizes, tmp_path / "corpus", tmp_path / "weights", **changes)
    kind = recipe_from(config).model
    native = {"patch_size": sizes["patch_size"], "image_size": sizes["image_size"]}
    native |= {"in_channels": model.config.num_channels, "registers": changes.get("model__registers", 0)}
    kind = dataclasses.replace(kind, **native, attention="xla", remat="none")
    backbone = checkpoints.restore_item(tmp_path / "weights", 0, "teacher")["backbone"]
    images = images_of(kind, (sizes["image_size"], sizes["image_size"]))[:1]
    found = ours(kind, jax.tree.map(jnp.asarray, backbone), jnp.asarray(images))
    np.testing.assert_allclose(found, theirs(model, images), rtol=0, atol=1e-5)
    (tmp_path / "again").mkdir()
    model.save_pretrained(tmp_path / "stock")
    huggingface.write(tmp_path / "again", backbone, kind)
    before, after = (safetensors.numpy.load_file(tmp_path / f / huggingface.WEIGHTS) for f in ("stock", "again"))
    assert before.keys() == after.keys() and all(before[k].tobytes() == after[k].tobytes() for k in before)

    # Adapted, trained, exported.
    monkeypatch.setattr(prepare, "make_mesh", lambda c: make_mesh(c, jax.devices()[:1]))
    run = tmp_path / "run"
    assert train(config, run) == DONE
    recipe = recipe_from(config)
    begun = initial.pretrained(recipe).teacher["backbone"]
    teacher, _ = checkpoints.restore_teacher(run, 3)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (begun, teacher["backbone"])), strict=True)]
    assert 0 < max(moved) < 0.01
    (tmp_path / "hf").mkdir()
    huggingface.write(tmp_path / "hf", teacher["backbone"], recipe.model)
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    assert (model.config.num_channels, model.config.patch_size) == (1, recipe.model.patch_size)
    kind = dataclasses.replace(recipe.model, attention="xla", remat="none", drop_path=0.0)
    images = images_of(kind, (kind.image_size, kind.image_size))[:1]
    found = ours(kind, jax.tree.map(jnp.asarray, teacher["backbone"]), jnp.asarray(images))
    np.testing.assert_allclose(found, theirs(model.eval(), images), rtol=0, atol=1e-5)
    return json.loads((run / "init.json").read_text())


@pytest.mark.soak
def test_a_checkpoint_of_facebook_with_registers_and_heads(tmp_path, monkeypatch, capsys):
    """The iBOT head fits and stays; the DINO head and the registers of this config are drawn anew."""
    model = dinov2(4, **SMALL)
    model.save_pretrained(tmp_path / "stock")
    torch.save(trained(facebook(tmp_path / "stock")), tmp_path / "teacher.pth")
    sizes = {"heads__hidden": 24, "heads__dino_prototypes": 48, "heads__ibot_prototypes": 12}
    changes = sizes | {"model__registers": 4}
    record = travels(tmp_path, monkeypatch, tmp_path / "teacher.pth", model, SMALL, changes)
    assert record["adapted"] == [
        "channels: sum of 3", "patch: 14 resampled to 8 pixels", "positions: 5 x 5 interpolated to 4 x 4",
    ]  # fmt: skip
    assert record["drawn anew"] == ["dino_head"]
    assert record["left out"] == ["dino_loss", "student", "dino_head"]
    out = capsys.readouterr().out
    assert "the backbone and the dino_head and the ibot_head of" in out and "left out: dino_loss, student" in out
    (line,) = [line for line in out.splitlines() if line.startswith("weights: ")]
    assert f"{tmp_path / 'weights'} at step 0; adapted: channels: sum of 3, patch: 14 resampled" in line


@pytest.mark.soak
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_published_geometries(tmp_path, monkeypatch, name):
    """At 256 pixels and patches of 16, as a run of configs/continue.py has them."""
    sizes, registers = GEOMETRIES[name]
    rotary = name == "dinov3-small"
    model = dinov3(tmp_path / "source", **sizes) if rotary else dinov2(registers, **sizes)
    model.save_pretrained(tmp_path / "source")
    changes = {"crops__global_size": 256, "crops__local_size": 96, "model__patch_size": 16}
    changes |= {"model__positions": "rope"} if rotary else {}
    record = travels(
        tmp_path, monkeypatch, tmp_path / "source", model, sizes, changes | {"model__registers": registers}
    )
    assert record["drawn anew"] == ["dino_head", "ibot_head"]
    if rotary:
        assert record["adapted"] == ["channels: sum of 3"]
        return
    resampled = name != "curia-b"
    assert record["adapted"] == [
        *["channels: sum of 3", "patch: 14 resampled to 16 pixels"][: 2 * resampled],
        f"positions: {37 if resampled else 32} x {37 if resampled else 32} interpolated to 16 x 16",
    ]
