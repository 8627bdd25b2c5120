"""The cache: what is encoded once is not encoded again, what differs in anything is, and a killed run goes on."""

import numpy as np
import pytest
import torch

from curia2_jax.curiabench import encoded, forward, stream, tasks
from curia2_jax.curiabench.adapters.adapter import Adapter, Tokens, each
from curia2_jax.curiabench.aggregate import PRESETS
from curia2_jax.errors import UserError
from tests import small_benchmark

CHOICE = PRESETS["curia-2"]


def encode(split, adapter, cache, choice=CHOICE):
    (features,), made = encoded.encode(split, adapter, [choice], "cpu", cache)
    return features, made


def model(fingerprint="a" * 64, stop_at=None):
    """Says mean and largest of each slice; dies at a number of calls."""
    calls = []

    def tokens(batch, normed):
        calls.append(len(batch))
        if stop_at is not None and len(calls) > stop_at:
            raise KeyboardInterrupt
        return Tokens(torch.stack([batch.mean((1, 2, 3)), batch.amax((1, 2, 3))], 1), None)

    pixels = each(lambda volume: torch.from_numpy(np.ascontiguousarray(volume.voxels))[:, None])
    return Adapter("", "slice", pixels, tokens, fingerprint, ""), calls


def split_of(folder, n=9, seed=0, modality="CT"):
    images = np.random.default_rng(seed).normal(size=(n, 6, 5)).astype(np.float32)
    rows = [(image, None, number % 2, f"p{number}", modality) for number, image in enumerate(images)]
    small_benchmark.write_task(folder, {"train": rows, "test": [(*rows[0][:3], "q", "CT")]}, {0: "a", 1: "b"}, False)
    return tasks.read_task(folder.parent, folder.name).train, images


def test_a_second_run_encodes_nothing_and_says_the_same(tmp_path):
    split, images = split_of(tmp_path / "task")
    first, made = encode(split, model()[0], tmp_path / "cache")
    np.testing.assert_allclose(first, np.stack([images.mean((1, 2)), images.max((1, 2))], 1), atol=1e-6)
    adapter, calls = model()
    again, remade = encode(split, adapter, tmp_path / "cache")
    assert (made, remade, calls) == (9, 0, [])
    np.testing.assert_array_equal(first, again)


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    """Batches that were written are not encoded again; the one in which it died, and later ones, are."""
    monkeypatch.setattr(encoded, "SECONDS", 0.0)
    monkeypatch.setitem(forward.BATCH, "cpu", 2)
    monkeypatch.setattr(stream, "SLICES", 2)
    split, _ = split_of(tmp_path / "task")
    with pytest.raises(KeyboardInterrupt):
        encode(split, model(stop_at=3)[0], tmp_path / "cache")
    features, made = encode(split, model()[0], tmp_path / "cache")
    assert made == 9 - 3 * 2
    np.testing.assert_array_equal(features, encode(split, model()[0], None)[0])


@pytest.mark.parametrize("change", ["weights", "pooling", "pixels", "modality"])
def test_another_key_is_a_miss(tmp_path, change):
    split, _ = split_of(tmp_path / "one")
    encode(split, model()[0], tmp_path / "cache")
    other = split_of(tmp_path / "two", seed=int(change == "pixels"), modality="MR" if change == "modality" else "CT")[0]
    adapter = model("b" * 64 if change == "weights" else "a" * 64)[0]
    choice = PRESETS["curia-v1"] if change == "pooling" else CHOICE
    assert encode(other, adapter, tmp_path / "cache", choice)[1] == 9


def test_a_damaged_file_of_the_cache_is_a_miss(tmp_path):
    split, _ = split_of(tmp_path / "task")
    encode(split, model()[0], tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("*.npz")
    path.write_bytes(path.read_bytes()[:100])
    assert encode(split, model()[0], tmp_path / "cache")[1] == 9


@pytest.mark.filterwarnings("ignore:.*fork")
def test_workers_change_nothing(tmp_path, monkeypatch):
    """Two of them, as beside a GPU: the same features in the order of the table, and a fault is one line of theirs."""
    monkeypatch.setattr(stream, "SLICES", 2)
    split, _ = split_of(tmp_path / "task")
    expected, _ = encode(split, model()[0], None)
    monkeypatch.setattr(stream, "workers", lambda device: 2)
    features, made = encode(split, model()[0], None)
    assert made == 9
    np.testing.assert_array_equal(features, expected)
    split.images[7].unlink()
    with pytest.raises(UserError, match=r"sample_7.npy: not found") as told:
        encode(split, model()[0], None)
    assert "\n" not in str(told.value)


def test_slices_of_many_samples_are_one_batch_and_a_slice_of_many_samples_is_encoded_once(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, 6, 5)).astype(np.float32)
    rows = [(image, rng.random((6, 5)) > 0.5, 0, "p", "MR") for image in images for _ in range(3)]
    rows.append((np.stack(images, -1), np.ones((6, 5, 5)), 1, "p", "MR"))
    task = small_benchmark.write_task(tmp_path / "t", {"train": rows, "test": rows[:1]}, {0: "a", 1: "b"})
    adapter, calls = model()
    features, made = encode(tasks.read_task(task.parent, "t").train, adapter, None)
    assert made == 16 and sorted(calls) == [5, 5]  # the five slices, and the volume of them
    np.testing.assert_allclose(features[::3][:5], np.stack([images.mean((1, 2)), images.max((1, 2))], 1), atol=1e-6)
    np.testing.assert_allclose(features[15], features[:15].mean(0), atol=1e-6)


def test_a_network_of_volumes_gets_the_affine_and_its_mask_goes_where_the_voxels_go(tmp_path):
    """A network that turns volumes over: cells under the turned mask are pooled; another affine is another sample."""
    rng = np.random.default_rng(0)
    voxels, mask = rng.normal(size=(8, 6, 4)).astype(np.float32), np.zeros((8, 6, 4), bool)
    mask[:2, :3, 3] = True
    rows = [(voxels, mask, target, "p", "MR") for target in (0, 1)]
    task = small_benchmark.write_task(tmp_path / "t", {"train": rows, "test": rows[:1]}, {0: "a", 1: "b"})
    split = tasks.read_task(tmp_path, task.name).train
    affine = np.diag([5.0, 1, 1, 1])
    seen = []

    def carry(volume):
        return torch.from_numpy(np.ascontiguousarray(volume.voxels[::-1]))

    def prepare(volume, numbers):
        seen.append(volume.affine)
        yield carry(volume)[None, None]

    whole = Adapter("", "volume", prepare, lambda x, normed: Tokens(x.mean((2, 3, 4)), x.movedim(1, -1)), "c", "",
                    carry=carry)  # fmt: skip
    known = split._replace(affines=np.stack([affine, np.full((4, 4), np.nan)]))
    features, made = encode(known, whole, tmp_path / "cache")
    assert made == 2 and seen[1] is None
    np.testing.assert_array_equal(seen[0], affine)
    np.testing.assert_allclose(features[:, 0], voxels[mask].mean(), rtol=1e-5)
    assert encode(split, whole, tmp_path / "cache")[1] == 0  # both of an unknown affine
    assert encode(split._replace(affines=np.stack([affine * 2] * 2)), whole, tmp_path / "cache")[1] > 0
