"""What comes from others is read as data: hostile code, pickles, kernels and paths are refused, and nothing is run."""

import json
import pathlib
import pickle

import numpy as np
import pytest
import torch

from curia2_jax.curiabench.model import load_model
from curia2_jax.curiabench.splits import read_sample
from curia2_jax.curiabench.tasks import read_task
from curia2_jax.errors import UserError
from curia2_jax.export import huggingface
from curia2_jax.models.vit import ViTConfig
from tests import small_benchmark


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return pathlib.Path.touch, (self.file,)


@pytest.fixture
def folder(tmp_path):
    return small_benchmark.write_model(tmp_path / "model")


@pytest.fixture
def ran(tmp_path):
    """A file that is there after any hostile code was run."""
    return tmp_path / "ran"


def with_code(folder, ran):
    with (folder / "curia_image_processor.py").open("a") as file:
        file.write(f"\nimport pathlib\npathlib.Path({str(ran)!r}).touch()\n")


def with_model_code(folder, ran):
    """A model of a class of its own, whose code lies in the folder."""
    (folder / "modeling_evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "modeling_evil.C", "AutoModel": "modeling_evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))


def with_pickle(folder, ran):
    """Weights as a pickle, beside a safetensors file that no one asks for."""
    torch.save({"a": Hostile(ran)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "other.safetensors")


def with_pickle_as_weights(folder, ran):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Hostile(ran)))


def with_foreign_path(folder, ran):
    """An index that names a file elsewhere, which is a whole one."""
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    (folder / "a.safetensors").write_bytes(b"")
    names = {"embeddings.cls_token": "../secret.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (with_code, "not the image processor of this version"),
        (with_model_code, "transformers cannot load"),
        (with_pickle, "transformers cannot load"),
        (with_pickle_as_weights, "transformers cannot load"),
        (with_foreign_path, "names '../secret.safetensors', which is no file beside it"),
    ],
)
def test_a_hostile_model_is_refused_in_one_line(folder, ran, harm, words):
    harm(folder, ran)
    with pytest.raises(UserError, match=words) as refused:
        load_model(folder, "cpu")
    assert "\n" not in str(refused.value) and not ran.exists()


def test_stock_models_keep_to_stock_code(folder, ran):
    """Code and kernels that the config of a stock model names are not looked at."""
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "evil.Model"}, "attn_implementation": "somebody/kernel"}
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(folder, "cpu")
    assert type(model.trained.model).__module__.startswith("transformers.models.dinov2.")
    assert model.trained.model.config._attn_implementation == "sdpa" and not ran.exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b", "..", "", None, 3, "a\\b"])
def test_an_index_names_files_beside_it_only(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=r"is no \.safetensors file beside it"):
        huggingface.open_weights(tmp_path, ViTConfig(width=24, depth=1, heads=3))


def test_a_pickle_among_the_images_of_a_benchmark_is_not_opened(tmp_path, ran):
    rows = [(np.zeros((8, 8)), np.ones((8, 8)), target, "p", "CT") for target in (0, 1)]
    task = small_benchmark.write_task(tmp_path / "task", {"train": rows, "test": rows}, {0: "a", 1: "b"})
    with (task / "train" / "images" / "sample_0.npy").open("wb") as file:
        np.save(file, np.array([Hostile(ran)], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"sample_0\.npy: not a NumPy array"):
        read_sample(read_task(tmp_path, "task").train, 0)
    assert not ran.exists()
