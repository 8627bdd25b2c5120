"""Adapters on random weights made on the spot: tokens of the model called by hand, preprocessing by formula."""

import itertools
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from curia2_jax.curiabench import forward
from curia2_jax.curiabench.adapters import folders, intensities, load, monai_networks
from curia2_jax.curiabench.adapters.adapter import Volume
from curia2_jax.errors import UserError
from tests import small_benchmark

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}


def scan(depth=3, seed=0):
    return np.random.default_rng(seed).normal(0, 400, (depth, 40, 30)).astype(np.float32)


def write(folder, kind, channels=3, **settings):
    """A folder of random weights, with mean and spread of its own."""
    torch.manual_seed(3)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.for_model(kind, num_channels=channels, **SIZES, **settings)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    facts = {
        "crop_size": {"height": 32},
        "image_mean": [0.5, 0.4, 0.3][:channels],
        "image_std": [0.2, 0.3, 0.4][:channels],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize("kind, settings", [
    ("dinov2", {}), ("dinov2_with_registers", {"num_register_tokens": 2}), ("dinov3_vit", {"num_register_tokens": 2}),
])  # fmt: skip
def test_a_folder_of_transformers_sees_gray_pictures_in_its_own_mean_and_spread(tmp_path, kind, settings):
    folder = write(tmp_path / "model", kind, **settings)
    adapter = load.load(str(folder), "cpu", trust_remote_code=False)
    voxels = scan()
    (batch,) = adapter.prepare(Volume(voxels, "CT"), [2, 0])
    unit = torch.from_numpy(((voxels[[2, 0]] + 1000) / 2000).clip(0, 1))[:, None]
    unit = torch.nn.functional.interpolate(unit, (32, 32), mode="bicubic", antialias=True)
    mean, spread = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    np.testing.assert_allclose(batch, (unit - mean[:, None, None]) / spread[:, None, None], atol=1e-5)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = reference(batch, output_hidden_states=True)
    after, before = adapter.encode(batch, True), adapter.encode(batch, False)
    prefix = 1 + settings.get("num_register_tokens", 0)
    np.testing.assert_allclose(after.whole, hidden.last_hidden_state[:, 0], atol=1e-6)
    np.testing.assert_allclose(after.patches.reshape(2, 16, 24), hidden.last_hidden_state[:, prefix:], atol=1e-6)
    norm = getattr(reference, "layernorm", None) or reference.norm
    np.testing.assert_allclose(norm(before.whole.clone()).detach(), after.whole, atol=1e-5)
    assert (before.whole - after.whole).abs().max() > 1e-2


def test_rad_dino_has_the_range_of_each_slice(tmp_path):
    folder = write(tmp_path / "rad-dino", "dinov2")
    (batch,) = load.load(f"rad-dino:{folder}", "cpu", False).prepare(
        Volume(scan()[:1] * np.array([1, 2, 9])[:, None, None], ""), [0, 1, 2]
    )
    np.testing.assert_allclose(batch[0], batch[2], atol=1e-4)


def test_an_mr_volume_has_no_window():
    """Scale and offset of the scanner do not matter; every slice has percentiles of its own."""
    voxels = scan()
    once, again = intensities.unit_range(voxels, "MR"), intensities.unit_range(voxels * 7 + 300, "MR")
    np.testing.assert_allclose(once, again, atol=1e-5)
    assert once.min() == 0 and once.max() == 1


@pytest.mark.parametrize("depth", [1, 70])
def test_curias_first_processor_cuts_to_int16_and_has_one_spread_for_a_volume(tmp_path, depth):
    """By its published steps, on the whole volume at once; numbers below air are not clipped, whatever it says."""
    folder = write(tmp_path / "curia", "dinov2", channels=1)
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": 32, "clip_below_air": True}))
    adapter = load.load(f"curia:{folder}", "cpu", False)
    voxels = scan(depth) * 5
    whole = torch.from_numpy(voxels.astype(np.int16).astype(np.float32) / 32767)[:, None]
    whole = torch.nn.functional.interpolate(whole, (32, 32), mode="bicubic", antialias=True)
    expected = (whole - whole.mean()) / whole.std()
    numbers = list(range(depth))[-40:]
    got = list(adapter.prepare(Volume(voxels, "CT"), numbers))
    assert max(map(len, got)) <= 32
    np.testing.assert_allclose(torch.cat(got), expected[numbers], atol=2e-4)
    (tensor, *_) = load.load(f"curia-tensor:{folder}", "cpu", False).prepare(Volume(voxels, "CT"), numbers)
    assert (tensor - got[0]).abs().max() > 0.1


def test_curias_later_processor_clips_and_has_a_spread_for_each_slice(tmp_path):
    folder = write(tmp_path / "curia", "dinov2", channels=1)
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": 32, "clip_below_air": True}))
    (got,) = load.load(f"curia-2:{folder}", "cpu", False).prepare(Volume(scan() * 5, "CT"), [0, 1])
    for number in range(2):
        one = torch.from_numpy(scan()[number] * 5)[None, None]
        one = torch.nn.functional.interpolate(one, (32, 32), mode="bicubic", antialias=True).clamp(min=-1000)
        np.testing.assert_allclose(got[number], ((one - one.mean()) / one.std())[0], atol=1e-5)


@pytest.mark.parametrize("word", ["", "curia:", "curia-2:", "rad-dino:", "random:", "ours"])
def test_a_larger_input_is_the_same_weights_on_what_a_larger_crop_size_would_show(tmp_path, monkeypatch, word):
    """As of a folder whose settings say so, without reading the weights again."""
    folder = tmp_path / "model"
    if word in ("ours", "random:"):
        small_benchmark.write_model(folder)
    else:
        write(folder, "dinov2", channels=1 if "curia" in word else 3)
    twice = shutil.copytree(folder, tmp_path / "twice" / "model")
    settings = json.loads((twice / "preprocessor_config.json").read_text()) | {"crop_size": 64}
    (twice / "preprocessor_config.json").write_text(json.dumps(settings))
    if "curia" in word:
        settings["crop_size"] = 32
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    word = word.removesuffix("ours")
    adapter, expected = (load.load(f"{word}{place}", "cpu", False) for place in (folder, twice))
    monkeypatch.setattr(folders.models, "load_weights", None)
    got = adapter.larger(2)
    assert got.side == expected.side and got.fingerprint != adapter.fingerprint
    pixels = [next(forward.prepared(one, Volume(scan(), "CT"), [0, 2], "cpu")) for one in (got, expected)]
    assert torch.equal(*pixels) and pixels[0].shape[2:] == (64, 64)
    patches = [one.encode(pixels[0], True).patches for one in (got, expected)]
    assert torch.equal(*patches) and patches[0].shape == (2, 8, 8, 24)


def test_ours_is_the_folder_that_convert_writes_and_random_is_its_architecture(tmp_path):
    folder = small_benchmark.write_model(tmp_path / "ours")
    adapter = load.load(str(folder), "cpu", False)
    (batch,) = (adapter.finish(part, "CT") for part in adapter.prepare(Volume(scan(), "CT"), [0, 1, 2]))
    assert batch.shape == (3, 1, adapter.side, adapter.side) == (3, 1, 32, 32)
    zero, one = (load.load(f"random:{folder}@{seed}", "cpu", False) for seed in (0, 1))
    assert torch.equal(zero.finish(next(zero.prepare(Volume(scan(), "CT"), [1])), "CT"), batch[1:2])
    tokens = [each.encode(batch, True).patches for each in (adapter, zero, one)]
    assert all((a - b).abs().max() > 0.1 for a, b in itertools.pairwise(tokens))
    linear = load.load(f"pixels-linear:{folder}", "cpu", False).encode(batch, True)
    assert linear.whole.std(0).max() < 1e-4
    assert len({each.fingerprint for each in (adapter, zero, one)}) == 3


def test_a_model_of_timm_on_disk(tmp_path):
    timm = pytest.importorskip("timm")
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments).eval()
    facts = {"input_size": [3, 32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": arguments, "pretrained_cfg": facts}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    adapter = load.load(f"timm:{tmp_path}", "cpu", False)
    (batch,) = adapter.prepare(Volume(scan(), "CT"), [0, 1])
    with torch.no_grad():
        hidden = network.forward_features(batch)
    got = adapter.encode(batch, True)
    np.testing.assert_allclose(got.whole, hidden[:, 0], atol=1e-6)
    np.testing.assert_allclose(got.patches.reshape(2, 16, 24), hidden[:, 1:], atol=1e-6)


def test_a_network_of_monai_sees_the_volume_in_its_window(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nets = pytest.importorskip("monai.networks.nets")
        arguments = {"spatial_dims": 3, "init_filters": 8, "in_channels": 1, "out_channels": 2}
        torch.manual_seed(0)
        network = nets.SegResNet(**arguments).eval()
        facts = {"network": "SegResNet", "arguments": arguments, "window": [-175, 250], "spacing": [2, 2, 2]}
        (tmp_path / "config.json").write_text(json.dumps(facts))
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        adapter = load.load(f"monai:{tmp_path}", "cpu", False)
    voxels = scan()
    (batch,) = adapter.prepare(Volume(voxels, "CT"), [0, 1, 2])
    assert batch.shape == (1, 1, 64, 32, 32) and adapter.takes == "volume"
    np.testing.assert_allclose(batch[0, 0, :40, :30, 1], ((voxels[1] + 175) / 425).clip(0, 1), atol=1e-6)
    with torch.no_grad():
        deepest = network.encode(batch)[0]
    np.testing.assert_allclose(adapter.encode(batch, True).patches[0].movedim(-1, 0), deepest[0], atol=1e-5)


def test_a_volume_with_an_affine_goes_to_ras_at_the_spacing_that_was_asked_for():
    """Axial slices from the feet up, rows to posterior, columns to left: right, front and top grow in the result."""
    voxels = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = 5.0, 2.0, 2.0, 1.0  # (slice, row, column) -> L, P, S in mm
    got = monai_networks.ras(Volume(voxels, "CT", affine), None)
    np.testing.assert_array_equal(got, voxels.transpose(2, 1, 0)[::-1, ::-1])
    assert monai_networks.ras(Volume(voxels, "CT", affine), [2.0, 2.0, 2.5]).shape == (4, 3, 4)


CODE = """
from curia2_jax.curiabench.adapters.adapter import Adapter, Tokens, each
import torch
def model(device):
    pixels = lambda volume: torch.from_numpy(volume.voxels)[:, None]
    return Adapter("", "slice", each(pixels), lambda batch, normed: Tokens(batch.mean((2, 3)), None), "1", "none")
"""


def test_code_is_run_only_where_it_is_trusted(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    with pytest.raises(UserError, match="--trust-remote-code"):
        load.load(f"{path}:model", "cpu", trust_remote_code=False)
    adapter = load.load(f"{path}:model", "cpu", trust_remote_code=True)
    (batch,) = adapter.prepare(Volume(scan(), ""), [1])
    np.testing.assert_allclose(adapter.encode(batch, True).whole[0, 0], scan()[1].mean(), rtol=1e-4)
    path.write_text(CODE + "# another\n")
    assert load.load(f"{path}:model", "cpu", True).fingerprint != adapter.fingerprint


@pytest.mark.parametrize("word, said", [
    ("nowhere", "no folder"), ("curia:nowhere", "no folder"), ("new:HERE", "write a folder"), ("HERE", "config.json"),
    ("timm:HERE", "config.json"), ("monai:HERE", "config.json"), ("HERE/none.py:model", "no file"),
])  # fmt: skip
def test_what_is_no_model_is_one_line(tmp_path, word, said):
    if word.startswith("timm"):
        pytest.importorskip("timm")
    if word.startswith("monai"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("monai.networks")
    with pytest.raises(UserError, match=said) as told:
        load.load(word.replace("HERE", str(tmp_path)), "cpu", trust_remote_code=True)
    assert "\n" not in str(told.value)


def test_the_processor_of_others_is_not_looked_at(tmp_path):
    folder = write(tmp_path / "model", "dinov2", channels=1)
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": {"AutoImageProcessor": "x.Y"}}))
    (folder / "x.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match=f"curia:{folder}"):
        load.load(str(folder), "cpu", trust_remote_code=True)


def test_a_model_of_another_kind_is_told_what_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"'bert'.*dinov3_vit"):
        folders.natural(tmp_path, "cpu")
