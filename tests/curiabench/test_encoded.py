"""The cache: what is encoded once is not encoded again, what differs in anything is, and a killed run goes on."""

import numpy as np
import pytest
import torch

from curia2_jax.curiabench import encoded, tasks
from curia2_jax.curiabench.adapters.adapter import Adapter, Tokens, each
from curia2_jax.curiabench.aggregate import PRESETS
from tests import small_benchmark

CHOICE = PRESETS["curia-2"]


def model(fingerprint="a" * 64, stop_at=None):
    """Says mean and largest of each slice; dies at a number of calls."""
    calls = []

    def encode(batch, normed):
        calls.append(len(batch))
        if stop_at is not None and len(calls) > stop_at:
            raise KeyboardInterrupt
        return Tokens(torch.stack([batch.mean((1, 2, 3)), batch.amax((1, 2, 3))], 1), None)

    pixels = each(lambda volume: torch.from_numpy(np.ascontiguousarray(volume.voxels))[:, None])
    return Adapter("", "slice", pixels, encode, fingerprint, ""), calls


def split_of(folder, n=9, seed=0, modality="CT"):
    images = np.random.default_rng(seed).normal(size=(n, 6, 5)).astype(np.float32)
    rows = [(image, None, number % 2, f"p{number}", modality) for number, image in enumerate(images)]
    small_benchmark.write_task(folder, {"train": rows, "test": [(*rows[0][:3], "q", "CT")]}, {0: "a", 1: "b"}, False)
    return tasks.read_task(folder.parent, folder.name).train, images


def test_a_second_run_encodes_nothing_and_says_the_same(tmp_path):
    split, images = split_of(tmp_path / "task")
    first, made = encoded.encode(split, model()[0], CHOICE, tmp_path / "cache")
    np.testing.assert_allclose(first, np.stack([images.mean((1, 2)), images.max((1, 2))], 1), atol=1e-6)
    adapter, calls = model()
    again, remade = encoded.encode(split, adapter, CHOICE, tmp_path / "cache")
    assert (made, remade, calls) == (9, 0, [])
    np.testing.assert_array_equal(first, again)


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "ROWS", 2)
    split, _ = split_of(tmp_path / "task")
    with pytest.raises(KeyboardInterrupt):
        encoded.encode(split, model(stop_at=5)[0], CHOICE, tmp_path / "cache")
    features, made = encoded.encode(split, model()[0], CHOICE, tmp_path / "cache")
    assert made == 9 - 4
    np.testing.assert_array_equal(features, encoded.encode(split, model()[0], CHOICE, None)[0])


@pytest.mark.parametrize("change", ["weights", "pooling", "pixels", "modality"])
def test_another_key_is_a_miss(tmp_path, change):
    split, _ = split_of(tmp_path / "one")
    encoded.encode(split, model()[0], CHOICE, tmp_path / "cache")
    other = split_of(tmp_path / "two", seed=int(change == "pixels"), modality="MR" if change == "modality" else "CT")[0]
    adapter = model("b" * 64 if change == "weights" else "a" * 64)[0]
    choice = PRESETS["curia-v1"] if change == "pooling" else CHOICE
    assert encoded.encode(other, adapter, choice, tmp_path / "cache")[1] == 9


def test_a_damaged_file_of_the_cache_is_a_miss(tmp_path):
    split, _ = split_of(tmp_path / "task")
    encoded.encode(split, model()[0], CHOICE, tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("*.npz")
    path.write_bytes(path.read_bytes()[:100])
    assert encoded.encode(split, model()[0], CHOICE, tmp_path / "cache")[1] == 9
