"""Pooling of volumes against the public trainer's rules, written out here on random weights."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import torch
import transformers

from curia2_jax.curiabench import aggregate, encoded, tasks
from curia2_jax.curiabench.adapters import load
from curia2_jax.curiabench.adapters.adapter import Tokens
from curia2_jax.curiabench.aggregate import PRESETS
from curia2_jax.errors import UserError
from tests import small_benchmark


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curia")
    torch.manual_seed(1)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8, num_channels=1
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": 32, "clip_below_air": True}))
    return folder


def reference_mask(mask):
    """(H, W) -> (4, 4): resized with antialiasing, cut at a half or at half of its maximum, largest of each patch."""
    weight = torch.nn.functional.interpolate(
        torch.from_numpy(mask.astype(np.float32))[None, None], (32, 32), mode="bilinear", antialias=True
    )
    inside = weight > 0.5 if (weight > 0.5).any() else weight > 0.5 * weight.max()
    return inside.reshape(4, 8, 4, 8).amax((1, 3))


def reference_feature(folder, voxels, mask, num_slices=None, batch=64, mended=""):
    """The public trainer's feature of an image (S, H, W), of the average over the volume; S = 1 is its 2-D path.

    Pixels: int16, / 32767, bicubic, one mean and spread. 2-D: tokens after the norm; the mean under the mask, or the
    class token. 3-D: a window of slices around the lower median of those with a mask, by numbers that may be negative;
    tokens of the last block before the norm, or after it where there are more slices than a batch has; all that lie
    under the mask, or all patches; one mean over all of them. One of this may be `mended`.
    """
    model = transformers.Dinov2Model.from_pretrained(folder).eval()
    pixels = torch.from_numpy(voxels.astype(np.int16).astype(np.float32) / 32767)[:, None]
    pixels = torch.nn.functional.interpolate(pixels, (32, 32), mode="bicubic", antialias=True)
    pixels = (pixels - pixels.mean()) / pixels.std()
    with torch.no_grad():
        if len(voxels) == 1:
            hidden = model(pixels).last_hidden_state[0]
            return hidden[0] if mask is None else hidden[1:][reference_mask(mask[0]).flatten()].mean(0)
        numbers = list(range(len(voxels)))
        if num_slices is not None:
            filled = [z for z in numbers if mask[z].any()] if mask is not None else None
            middle = filled[(len(filled) - 1) // 2] if filled else len(voxels) // 2
            numbers = range(middle - num_slices // 2, middle - num_slices // 2 + num_slices)
            numbers = [z for z in numbers if z >= 0] if mended == "edges" else numbers
        found = model(pixels, output_hidden_states=True)
        after = mended == "norm" or (len(voxels) > batch and mended != "chunk")
        hidden = found.last_hidden_state if after else found.hidden_states[-1]
        kept = []
        for z in numbers:
            if mask is None:
                kept.append(hidden[z, :1] if mended == "unmasked" else hidden[z, 1:])
            elif mask[z].any():
                kept.append(hidden[z, 1:][reference_mask(mask[z]).flatten()])
    return torch.stack([one.mean(0) for one in kept]).mean(0) if mended == "over" else torch.cat(kept).mean(0)


def feature(folder, adapter, voxels, mask, choice, modality="MR"):
    """Of a scan (S, H, W) in a file, or of a slice where S is 1."""
    last = [None if one is None else np.moveaxis(one, 0, 2) if len(one) > 1 else one[0] for one in (voxels, mask)]
    rows = [(*last, target, "p", modality) for target in (0, 1)]
    task = small_benchmark.write_task(
        folder / "task", {"train": rows, "test": rows[:1]}, {0: "a", 1: "b"}, mask is not None
    )
    split = tasks.read_task(folder, "task").test
    (found,), _ = encoded.encode(split, adapter, [choice], "cpu", None)
    shutil.rmtree(task)
    return found[0]


def study(depth, masked, seed=0):
    """A scan, and boxes of different sizes on some slices."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(0, 300, (depth, 40, 30)).astype(np.float32)
    mask = np.zeros(voxels.shape, bool)
    for z in masked:
        top, left = rng.integers(0, 20), rng.integers(0, 12)
        mask[z, top : top + 1 + 3 * z, left : left + 2 + 2 * z] = True
    return voxels, mask if masked else None


@pytest.mark.parametrize("depth, masked, num_slices", [
    (1, [0], None), (1, [], None), (6, [1, 2, 5], None), (6, [], None), (6, [1, 2, 3, 5], 3), (7, [], 3),
    (40, [2, 35], None),
])  # fmt: skip
def test_curia_v1_is_the_public_trainers_feature(tmp_path, folder, depth, masked, num_slices):
    voxels, mask = study(depth, masked)
    adapter = load.load(f"curia:{folder}", "cpu", False)
    got = feature(tmp_path, adapter, voxels, mask, PRESETS["curia-v1"]._replace(window=num_slices or 0))
    np.testing.assert_allclose(got, reference_feature(folder, voxels, mask, num_slices), atol=2e-5)


@pytest.mark.parametrize("key, masked, changes, asked", [
    ("norm", [1, 2, 5], {}, {}), ("over", [1, 2, 5], {}, {}), ("unmasked", [], {}, {}),
    ("chunk", [1, 2, 5], {"chunk": 5}, {"batch": 5}),
    ("edges", [0, 5], {"window": 3}, {"num_slices": 3}), ("edges", [], {"window": 4}, {"num_slices": 4}),
])  # fmt: skip
def test_every_defect_of_the_public_trainer_goes_by_its_name(tmp_path, folder, key, masked, changes, asked):
    """With it the feature is the trainer's; mended it is that of a trainer without it, and another one."""
    voxels, mask = study(3 if not masked and changes else 6, masked)
    adapter = load.load(f"curia:{folder}", "cpu", False)
    mended = next(defect.mended for defect in aggregate.DEFECTS if defect.key == key)
    texts = [",".join(["curia-v1", *(f"{name}={value}" for name, value in changes.items())])]
    texts.append(f"{texts[0]},{mended}")
    got = [feature(tmp_path, adapter, voxels, mask, aggregate.parse(text)) for text in texts]
    for one, without in zip(got, ("", key), strict=True):
        np.testing.assert_allclose(one, reference_feature(folder, voxels, mask, **asked, mended=without), atol=2e-5)
    assert np.abs(got[0] - got[1]).max() > 1e-3


def test_defects_are_named_until_none_is_left():
    """In the result, and in the table of the documentation; curia-v1 without any is curia-2."""
    names = [defect.mended for defect in aggregate.DEFECTS]
    for number in range(len(names) + 1):
        choice = aggregate.parse(",".join(["curia-v1", *names[:number]]))
        assert list(aggregate.defects(choice).values()) == [one.changes for one in aggregate.DEFECTS[number:]]
    assert choice == PRESETS["curia-2"] and "chunk=64" in aggregate.defects(PRESETS["curia-v1"])
    text = (pathlib.Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    for defect in aggregate.DEFECTS:
        assert f"| `{defect.key}={defect.found}` | {defect.changes} | `{defect.mended}` |" in text


@pytest.mark.parametrize("masked", [[1, 2, 5], []])
def test_curia_2_is_the_mean_of_what_each_slice_says_alone(tmp_path, folder, masked):
    voxels, mask = study(6, masked)
    adapter, choice = load.load(f"curia-2:{folder}", "cpu", False), PRESETS["curia-2"]
    got = feature(tmp_path, adapter, voxels, mask, choice)
    alone = [
        feature(tmp_path, adapter, voxels[[z]], None if mask is None else mask[[z]], choice)
        for z in (masked or range(6))
    ]
    np.testing.assert_allclose(got, np.mean(alone, 0), atol=1e-5)


@pytest.mark.parametrize("middle, size, expected", [(0, 3, (0, 2)), (9, 4, (7, 10)), (4, 3, (3, 6)), (4, 50, (0, 10))])
def test_a_window_ends_where_the_volume_does(middle, size, expected):
    """Beyond it the public trainer breaks; before it, it wraps around, if asked to."""
    mask = np.zeros((10, 2, 2), bool)
    mask[middle] = True
    choice = PRESETS["curia-2"]._replace(window=size)
    assert aggregate.window(mask, 10, choice) == list(range(*expected))
    assert aggregate.window(None, 10, choice._replace(window=3)) == [4, 5, 6]
    wrapped = [z for z in range(middle - size // 2, expected[1]) if z >= -10]
    assert aggregate.window(mask, 10, choice._replace(edges="wrap")) == np.arange(10)[wrapped].tolist()


@pytest.mark.parametrize("text, changed", [
    ("curia-2", {}), ("curia-2,window=3", {"window": 3}),
    ("curia-2,over=tokens,norm=before", {"over": "tokens", "norm": "before"}),
    ("curia-2,norm=never", "norm=after|before"), ("curia-3", "curia-2 or curia-v1"),
    ("curia-2,window=-1", "window=SLICES"),
])  # fmt: skip
def test_every_choice_has_a_name_and_another_is_one_line(text, changed):
    if isinstance(changed, dict):
        assert aggregate.parse(text) == PRESETS["curia-2"]._replace(**changed)
        return
    with pytest.raises(UserError) as told:
        aggregate.parse(text)
    assert changed in str(told.value) and "\n" not in str(told.value)


def test_a_long_volume_is_encoded_a_few_slices_at_a_time(tmp_path, folder):
    """A thousand slices, and never more than 32 of them at the size of the model."""
    adapter, sizes = load.load(f"curia-2:{folder}", "cpu", False), []

    def encode(batch, normed):
        sizes.append(len(batch))
        return Tokens(batch.flatten(1)[:, :3], None)

    voxels = np.zeros((1000, 8, 8), np.float32)
    voxels[:, 0] = np.arange(1000)[:, None]
    got = feature(tmp_path, adapter._replace(encode=encode), voxels, None, PRESETS["curia-2"])
    assert sum(sizes) == 1000 and max(sizes) == 32 and np.isfinite(got).all()
