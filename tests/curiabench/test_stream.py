"""What reaches the device: the same whether workers send it or not, and by whichever way they do."""

import multiprocessing

import numpy as np
import pytest
import torch

from curia2_jax.curia_image_processor import CuriaImageProcessor
from curia2_jax.curiabench import slots, stream, tasks
from curia2_jax.curiabench.adapters import folders
from curia2_jax.curiabench.adapters.adapter import Adapter, Volume, each
from curia2_jax.curiabench.aggregate import PRESETS
from curia2_jax.curiabench.stages import Stages
from curia2_jax.errors import UserError
from tests import small_benchmark

ADAPTER = Adapter("", "slice", each(folders._as_they_are), None, "", "", side=8)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Slices of two sizes, whole numbers and not, on some of which two samples lie; and a volume."""
    rng = np.random.default_rng(0)
    images = [rng.integers(-1000, 1500, (9 + number % 2, 7)).astype(np.float32) for number in range(12)]
    images[3] += 0.5
    volume = rng.integers(0, 9, (9, 7, 5)).astype(np.float32)
    rows = [(image, rng.random(image.shape) > 0.5, number % 2, f"p{number % 5}", "CT")
            for number, image in enumerate([*images, *images[:4], volume])]  # fmt: skip
    splits = {"train": rows, "test": [(*rows[0][:3], "q", "CT")]}
    folder = small_benchmark.write_task(tmp_path_factory.mktemp("t") / "t", splits, {0: "a", 1: "b"})
    return tasks.read_task(folder.parent, "t").train


def told(split):
    """By sample: its key, and pixels and mask of each of its uses."""
    keys, uses = {}, {}
    for part in stream.parts(split, ADAPTER, PRESETS["curia-2"], frozenset(), "cpu", Stages()):
        keys |= {sample: (key, number) for sample, key, number in part.began}
        for use, (row, sample) in enumerate(zip(part.rows, part.samples, strict=True)):
            uses.setdefault(int(sample), []).append((part.pixels[row].clone(), part.masks[use].clone()))
    return keys, uses


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("way", ["slots", "too large for a slot", "no slot is given back"])
def test_workers_send_what_is_prepared_without_them(split, monkeypatch, way):
    monkeypatch.setattr(stream, "GROUP", 6)
    monkeypatch.setattr(stream, "SLICES", 2)
    keys, uses = told(split)
    assert set(uses) == set(range(len(split.images))) and len(uses[16]) == 5
    assert uses[3][0][0].dtype == torch.float32 and uses[0][0][0].dtype == torch.int16
    taken, give_back = [], slots.Slots.give_back

    def given_back(self, sent):
        taken.append(sent)
        for view in self.views(sent):
            view[...] = 0  # as the worker that gets it may
        if way == "slots":
            give_back(self, sent)

    monkeypatch.setattr(slots.Slots, "give_back", given_back)
    monkeypatch.setattr(slots, "SLOT_BYTES", 64 if way == "too large for a slot" else slots.SLOT_BYTES)
    monkeypatch.setattr(stream, "workers", lambda device: 2)
    sent_keys, sent = told(split)
    assert {"slots": len(taken) > 2 * slots.SLOTS, "too large for a slot": not taken,
            "no slot is given back": 0 < len(taken) <= 2 * slots.SLOTS}[way]  # fmt: skip
    assert keys == sent_keys
    for sample, expected in uses.items():
        for ours, theirs in zip(expected, sent[sample], strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("end", ["fault", "early"])
def test_workers_end_with_the_stream(split, monkeypatch, end):
    """At once; PyTorch waits five seconds for each worker that does not hear of it."""
    monkeypatch.setattr(stream, "GROUP", 2)
    monkeypatch.setattr(stream, "workers", lambda device: 2)
    if end == "fault":
        split = split._replace(images=[*split.images[:-1], split.images[0].with_name("missing.npy")])
        with pytest.raises(UserError, match=r"missing.npy: not found"):
            told(split)
    else:
        parts = stream.parts(split, ADAPTER, PRESETS["curia-2"], frozenset(), "cpu", Stages())
        next(parts)
        parts.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([-32768, 0, 32767], torch.int16),
        ([-32768, 0.5, 3], torch.float32),
        ([0, 32768, 1], torch.float32),
        ([-32769, 0, 1], torch.float32),
        ([1e30, -1e30, 0], torch.float32),
    ],
)
def test_slices_are_sent_as_int16_where_that_says_the_same(values, dtype):
    voxels = np.array(values, np.float32).reshape(1, 1, 3)
    (sent,) = ADAPTER.prepare(Volume(voxels, "CT"), [0])
    assert sent.dtype == dtype
    np.testing.assert_array_equal(sent.float().numpy()[:, 0], voxels)


def test_the_processor_makes_the_same_of_int16():
    voxels = np.random.default_rng(0).integers(-1500, 2000, (3, 40, 30)).astype(np.float32)
    (sent,) = ADAPTER.prepare(Volume(voxels, "CT"), [0, 1, 2])
    processor = CuriaImageProcessor(16)
    assert sent.dtype == torch.int16
    ours, theirs = (processor(list(x), modality="CT")["pixel_values"] for x in (sent[:, 0], voxels))
    assert torch.equal(ours, theirs)
