"""Frozen features against transformers, and against arithmetic on the files."""

import tracemalloc
import weakref

import numpy as np
import pytest
import torch
import transformers

from curia2_jax import curia_image_processor
from curia2_jax.curiabench import encoded, features, forward, stream, tasks
from curia2_jax.curiabench import model as model_file
from curia2_jax.curiabench.adapters.adapter import Adapter, Tokens, each
from curia2_jax.curiabench.aggregate import PRESETS, parse
from curia2_jax.curiabench.model import load_model
from curia2_jax.curiabench.others import Others, load_all
from tests import small_benchmark


def image(seed, shape=(40, 30)):
    return np.random.default_rng(seed).normal(0, 300, shape).astype(np.float32)


def reference_pixels(native, clip=True, resolution=32):
    """What the model was trained on, in PyTorch alone: bicubic to the square, clipped at air, native z-score."""
    air = -1000 if clip else -torch.inf
    clipped = torch.from_numpy(native).clamp(min=air)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(native)[None, None], (resolution, resolution), mode="bicubic", antialias=True
    )
    return (resized.clamp(min=air) - clipped.mean()) / clipped.std(correction=0)


def extract(split, model):
    return features.extract([split], model)[0]


def samples_of(tmp_path, rows, mask=True):
    """rows: [(image, mask, modality), ...]; the classes do not matter here."""
    train = [(one, under, number % 2, "p", modality) for number, (one, under, modality) in enumerate(rows)]
    test = [(rows[0][0], rows[0][1], 1, "q", "CT")]
    task = small_benchmark.write_task(tmp_path / "task", {"train": train, "test": test}, {0: "a", 1: "b"}, mask)
    return tasks.read_task(task.parent, "task").train


@pytest.mark.parametrize("registers", [0, 3])
def test_masked_features_are_the_mean_of_the_tokens_that_transformers_gives_under_the_mask(tmp_path, registers):
    """Patches named by hand, tokens by transformers, with and without registers."""
    folder = small_benchmark.write_model(tmp_path / "model", registers=registers)
    # One native pixel is one pixel of the model here, so that the patches under the mask can be named by hand.
    first, second = image(1, (32, 32)), image(2, (32, 32))
    corner, across = np.zeros((32, 32), bool), np.zeros((32, 32), bool)
    corner[:3, :3] = True  # patch (0, 0)
    across[15:18, 24:30] = True  # patches (1, 3) and (2, 3)
    rows = [(first, corner, "CT"), (first, across, "CT"), (second, across, "CT")]
    model = load_model(folder, "cpu")
    got = extract(samples_of(tmp_path, rows), model)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = [reference(reference_pixels(one)).last_hidden_state[0, 1 + registers :] for one in (first, second)]
    expected = [hidden[0][0], hidden[0][[4 + 3, 8 + 3]].mean(0), hidden[1][[4 + 3, 8 + 3]].mean(0)]
    np.testing.assert_allclose(got.rows["trained"][0], torch.stack(expected), atol=2e-5)
    assert got.slices[0] == got.slices[1] != got.slices[2]


def test_features_without_masks_are_class_tokens_and_do_not_depend_on_the_batch_size(
    tmp_path, folder, model, monkeypatch
):
    """The pooler output of transformers, one slice or five at a time."""
    rows = [(image(seed), None, "CT") for seed in range(5)]
    split = samples_of(tmp_path, rows, mask=False)
    got = extract(split, model)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = torch.cat([reference(reference_pixels(row[0])).pooler_output for row in rows])
    np.testing.assert_allclose(got.rows["trained"][0], expected, atol=2e-5)
    monkeypatch.setitem(forward.BATCH, "cpu", 1)
    monkeypatch.setattr(stream, "SLICES", 2)
    np.testing.assert_allclose(extract(split, model).rows["random"][1], got.rows["random"][1], atol=2e-5)


def test_a_volume_is_the_average_of_its_slices_that_have_a_mask(tmp_path, model):
    """In all three rows; slices without a masked pixel are left out."""
    volume, mask = image(3, (40, 30, 4)), np.zeros((40, 30, 4), bool)
    mask[10:20, 5:9, 1] = mask[20:33, 8:20, 3] = True
    rows = [(volume, mask, "MR"), (volume[..., 1], mask[..., 1], "MR"), (volume[..., 3], mask[..., 3], "MR")]
    got = extract(samples_of(tmp_path, rows), model)
    assert sorted(got.rows) == ["mask-only", "pixels", "pixels-linear", "random", "trained"]
    for row in got.rows.values():
        for seed in row:
            np.testing.assert_allclose(seed[0], seed[1:].mean(0), rtol=1e-4, atol=1e-5)


def test_ct_is_clipped_below_air_and_mr_is_not_even_in_the_same_slice(tmp_path, folder, model):
    """The modality of the sample decides, not the file."""
    native, mask = image(4) * 10, np.ones((40, 30), bool)
    assert native.min() < -5000
    got = extract(samples_of(tmp_path, [(native, mask, m) for m in ("CT", "MR", "CT")]), model)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        clipped, whole = (
            reference(reference_pixels(native, clip)).last_hidden_state[0, 1:].mean(0) for clip in (True, False)
        )
    np.testing.assert_allclose(got.rows["trained"][0], torch.stack([clipped, whole, clipped]), atol=5e-5)
    assert (clipped - whole).abs().max() > 0.05


def test_a_sample_without_a_modality_is_treated_as_the_processor_says(model):
    """Clipped where preprocessor_config.json says so, and not where it does not."""
    native = image(4) * 10
    pixels = {modality: features.to_pixels(model.processor, native, modality) for modality in ("CT", "MR", "")}
    assert torch.equal(pixels[""], pixels["CT"]) and not torch.equal(pixels[""], pixels["MR"])
    whole = curia_image_processor.CuriaImageProcessor(crop_size=32, clip_below_air=False)
    assert torch.equal(features.to_pixels(whole, native, ""), pixels["MR"])


def test_patch_mask_by_hand():
    """A square that is exactly one patch is that patch."""
    mask = np.zeros((64, 64), bool)
    mask[0:16, 48:64] = True  # at half of the resolution: rows 0-7, columns 24-31, exactly patch (0, 3)
    expected = np.zeros((4, 4), bool)
    expected[0, 3] = True
    np.testing.assert_array_equal(features.patch_mask(mask, 32, 8), expected)


def test_the_smallest_structure_still_has_a_patch():
    """One pixel of 512 x 512 is cut at half of its own weight, not at one half."""
    mask = np.zeros((512, 512), bool)
    mask[300, 41] = True  # shrunk eightfold no pixel of the model's resolution reaches one half
    expected = np.zeros((8, 8), bool)
    expected[300 // 64, 41 // 64] = True
    np.testing.assert_array_equal(features.patch_mask(mask, 64, 8), expected)
    mask = np.zeros((512, 512), bool)
    mask[60, 41] = True  # a sixteenth of its weight falls on the next patch: less than half of the most
    expected = np.zeros((8, 8), bool)
    expected[0, 0] = True
    np.testing.assert_array_equal(features.patch_mask(mask, 64, 8), expected)


def test_raw_pixels_are_native(tmp_path, model):
    """Mean and spread of the values in the file, neither clipped nor scaled."""
    native, mask = image(5), image(6) > 200
    got = extract(samples_of(tmp_path, [(native, mask, "CT")] * 2), model).rows["pixels"][0]
    np.testing.assert_allclose(got[0], [native[mask].mean(), native[mask].std()], rtol=1e-5)


def test_beside_class_tokens_stand_the_means_of_the_patches(tmp_path, folder, model):
    """Of the trained and of every random backbone, in tasks without masks; and no row of masks."""
    rows = [(image(seed), None, "CT") for seed in range(3)]
    got = extract(samples_of(tmp_path, rows, mask=False), model).rows
    assert sorted(got) == ["pixels", "pixels-linear", "random", "random-patches", "trained", "trained-patches"]
    assert len(got["random"]) == len(got["random-patches"]) == 3
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = torch.cat([reference(reference_pixels(row[0])).last_hidden_state for row in rows])
    np.testing.assert_allclose(got["trained-patches"][0], hidden[:, 1:].mean(1), atol=2e-5)


def test_projected_pixels_are_the_normed_projection_of_each_patch(tmp_path, model):
    """No block adds to them: patch embedding, position and final norm by hand."""
    got = extract(samples_of(tmp_path, [(image(7), None, "CT")] * 2, mask=False), model).rows
    net = model.linear.model
    with torch.no_grad():
        patches = net.embeddings(reference_pixels(image(7)))[:, 1:]
        expected = net.layernorm(patches).mean(1)
    np.testing.assert_allclose(got["pixels-linear"][0][:1], expected, atol=1e-3)


def test_the_mask_alone_is_its_patches_size_and_place(tmp_path, model):
    """No pixel: the same under any image, and the numbers are those of the mask."""
    mask = np.zeros((40, 30), bool)
    mask[10:20, 15:30] = True
    rows = [(image(8), mask, "CT"), (image(9), mask, "MR")]
    got = extract(samples_of(tmp_path, rows), model).rows["mask-only"][0]
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[0, :16].reshape(4, 4), features.patch_mask(mask, 32, 8).numpy())
    expected = [150 / 1200, 14.5 / 40, 10 / 40, 19 / 40, 22 / 30, 15 / 30, 29 / 30]
    np.testing.assert_allclose(got[0, 16:], expected, rtol=1e-6)


def test_the_trained_row_is_pooled_and_kept_as_the_others_are(tmp_path, folder, model, monkeypatch):
    """A window of one slice, the mean of its patches before the norm; a second call encodes nothing, of any row."""
    volume = image(10, (40, 30, 3))
    split = samples_of(tmp_path, [(volume, None, "CT")] * 2, mask=False)
    asked = Others(choice=parse("curia-v1,window=1"), cache=tmp_path / "cache")
    (got,) = features.extract([split], model, asked)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = reference(reference_pixels(np.ascontiguousarray(volume[..., 1])), output_hidden_states=True)
    np.testing.assert_allclose(got.rows["trained"][0][:1], hidden.hidden_states[-1][:, 1:].mean(1), atol=2e-5)
    np.testing.assert_allclose(got.rows["pixels"][0][0], [volume[..., 1].mean(), volume[..., 1].std()], rtol=1e-4)
    said = []
    monkeypatch.setattr(forward, "encode", None)
    (again,) = features.extract([split], model, asked, said.append)
    assert len(said) == 5 and all(": 0 of 2 samples encoded" in line for line in said)
    for row, seeds in got.rows.items():
        np.testing.assert_array_equal(seeds, again.rows[row])


def test_one_backbone_is_in_memory_at_a_time(tmp_path, folder, monkeypatch):
    """When any of them is loaded, the last one has gone: ours, random ones and other people's."""
    beside = load_all([f"random:{folder}@7", f"pixels-linear:{folder}"], "cpu", False, "curia-2", None)
    split = samples_of(tmp_path, [(image(1), None, "CT")] * 2, mask=False)
    made, alive = [], []

    def counted(load):
        def loading(*arguments):
            alive.append(sum(one() is not None for one in made))
            network = load(*arguments)
            made.append(weakref.ref(network))
            return network

        return loading

    for name in ("load_weights", "initial"):
        monkeypatch.setattr(model_file, name, counted(getattr(model_file, name)))
    features.extract([split], load_model(folder, "cpu"), beside)
    assert alive == [0] * 8 and not any(one() for one in made)  # one to see that it can be loaded, then each row


def test_memory_holds_one_long_volume_and_a_mask_whatever_their_number(tmp_path, model):
    """Two of 1,000 slices: never both at once, nor a copy of one; what is at the size of the model is 32 slices."""
    volume, mask = np.zeros((48, 48, 1000), np.float32), np.zeros((48, 48, 1000), bool)
    volume[:, :, ::7], mask[20:40, 20:40, ::5] = 1, True
    split = samples_of(tmp_path, [(volume + number, mask, "MR") for number in range(2)])
    one = volume.nbytes + mask.nbytes
    del volume, mask
    tracemalloc.start()
    features.without_network(split, model, PRESETS["curia-2"])
    encoded.encode(split, plain(), [PRESETS["curia-2"]], "cpu", None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert one < peak < 1.6 * one


def plain():
    """A model that is no network: the mean of each slice."""
    pixels = each(lambda volume: torch.from_numpy(np.ascontiguousarray(volume.voxels))[:, None])
    return Adapter("", "slice", pixels, lambda batch, normed: Tokens(batch.mean((2, 3)), None), "", "")
