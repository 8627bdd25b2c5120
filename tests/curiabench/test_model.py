"""Loading an exported folder: whole or refused, and without running its code."""

import hashlib
import json

import numpy as np
import pytest
import torch
import transformers

from curia2_jax import curia_image_processor
from curia2_jax.curiabench.model import load_model, load_processor
from curia2_jax.errors import UserError
from tests import small_benchmark


def test_random_backbones_have_the_shape_but_not_the_weights_and_are_the_same_every_time(folder, model):
    """Each is drawn from a seed of its own, not from what ran before, and every block of it counts."""
    again = load_model(folder, "cpu").randoms
    trained = model.trained.model.state_dict()
    name, scale = "embeddings.patch_embeddings.projection.weight", "encoder.layer.1.layer_scale2.lambda1"
    for one, same in zip(model.randoms, again, strict=True):
        random, twin = one.model.state_dict(), same.model.state_dict()
        assert {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in random.items()}
        assert all(torch.equal(random[key], twin[key]) for key in random)
        assert not torch.allclose(trained[name], random[name])
        assert (random[scale] == 1).all()
    first, second, third = (one.model.state_dict()[name] for one in model.randoms)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert (model.linear.model.state_dict()[scale] == torch.tensor(1e-5)).all()
    assert model.parameters == sum(v.numel() for v in trained.values())


def test_weights_that_a_run_began_with_are_the_random_row(folder, tmp_path):
    """As many as are given, with the weights of their folders."""
    torch.manual_seed(8)
    began = small_benchmark.write_model(tmp_path / "began")
    (one,) = load_model(folder, "cpu", began=[began]).randoms
    expected = transformers.AutoModel.from_pretrained(began).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in one.model.state_dict().items())


def test_facts_of_the_folder_and_full_precision(folder, model):
    """The hash is that of the weights' bytes; convolutions of a GPU are not rounded to TF32."""
    assert model.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (model.trained.patch_size, model.trained.prefix) == (model.linear.patch_size, model.linear.prefix) == (8, 1)
    assert not torch.backends.cudnn.allow_tf32
    for backbone in (model.trained, *model.randoms, model.linear):
        assert not backbone.model.training
        assert {(p.dtype, p.requires_grad) for p in backbone.model.parameters()} == {(torch.float32, False)}


def test_loading_writes_nothing_into_the_folder(folder, model):
    """No byte code, no cache."""
    names = {"config.json", "model.safetensors", "preprocessing.json"}
    assert {path.name for path in folder.iterdir()} == names | {"preprocessor_config.json", "curia_image_processor.py"}


def test_a_folder_that_is_not_a_whole_model_is_refused(tmp_path):
    """Every missing or damaged file is named, and a GPU that is not there."""

    def spoilt(name):
        return small_benchmark.write_model(tmp_path / name)

    folder = spoilt("a")
    (folder / "curia_image_processor.py").unlink()
    with pytest.raises(UserError, match=r"has no curia_image_processor\.py"):
        load_model(folder, "cpu")
    folder = spoilt("b")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_model(folder, "cpu")
    folder = spoilt("c")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot load"):
        load_model(folder, "cpu")
    folder = spoilt("d")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"weights do not fit config\.json, first encoder\.layer\.2"):
        load_model(folder, "cpu")
    folder = spoilt("f")
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match=r"preprocessor_config\.json: not JSON"):
        load_model(folder, "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="PyTorch sees no GPU; write --device cpu"):
            load_model(spoilt("e"), "cuda")


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A model whose processor is not ours: it takes air at -500 and leaves a file behind where it runs."""
    folder = small_benchmark.write_model(tmp_path / "edited")
    source = (folder / "curia_image_processor.py").read_text()
    assert "AIR = -1000.0" in source
    mark = f"\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (folder / "curia_image_processor.py").write_text(source.replace("AIR = -1000.0", "AIR = -500.0") + mark)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def test_code_of_the_folder_is_not_run_unless_it_is_trusted(edited, tmp_path):
    """The refusal is one line that names the file and the flag; trusted, it is that code that makes the pixels."""
    with pytest.raises(UserError, match=r"curia_image_processor\.py: not the .* write --trust-remote-code") as error:
        load_model(edited, "cpu")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    theirs = load_model(edited, "cpu", trust_remote_code=True).processor
    assert (tmp_path / "ran").exists()
    image = np.linspace(-1000, 1000, 40 * 30, dtype=np.float32).reshape(40, 30)
    ours = load_processor(small_benchmark.write_model(tmp_path / "own"))
    assert not torch.equal(theirs(image)["pixel_values"], ours(image)["pixel_values"])
    assert torch.equal(
        theirs(np.maximum(image, -500))["pixel_values"][..., 16:, :], theirs(image)["pixel_values"][..., 16:, :]
    )


def test_our_own_processor_is_that_of_the_package_with_the_settings_of_the_folder(folder, model):
    """Same file, so no second copy of the module."""
    assert type(model.processor) is curia_image_processor.CuriaImageProcessor
    assert (model.processor.crop_size, model.processor.clip_below_air, model.processor.eps) == (32, True, 1e-6)
    assert load_processor(folder, trust_remote_code=True).__class__ is curia_image_processor.CuriaImageProcessor


def test_trusted_code_that_does_not_load_is_one_line(edited):
    """Whatever it raises."""
    (edited / "curia_image_processor.py").write_text("raise RuntimeError('first\\nsecond')")
    with pytest.raises(UserError, match=r"transformers cannot load it: first$"):
        load_processor(edited, trust_remote_code=True)


def test_code_of_a_model_is_not_run_either(tmp_path):
    """A config that names a class of its own is refused without a question, trusted or not."""
    folder = small_benchmark.write_model(tmp_path / "model")
    (folder / "other.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Other: pass\nclass Config: pass"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "other", "auto_map": {"AutoModel": "other.Other", "AutoConfig": "other.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    for trusted in (False, True):
        with pytest.raises(UserError, match="transformers cannot load"):
            load_model(folder, "cpu", trusted)
    assert not (tmp_path / "ran").exists()
