"""The exported image processor against PIL, against the views of training, and inside transformers."""

import importlib.util
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from curia2_jax.export import processor
from curia2_jax.training import augment, resample

CONFIG = {
    "crops": {"global_size": 48},
    "model": {"in_channels": 1},
    "augment": {"normalize": "slice"},
}
META = {"step": 7, "corpus": "c" * 64}


def whole_slice(slices, extent, is_ct, size):
    """What a view is with the whole slice as its box and no augmentation: the exported image processor does the same.

    Args:
      slices: (B, S, S) int16. extent: (B, 2). is_ct: (B,).
    Returns:
      (B, size, size, 1) float32.
    """
    raw = slices.astype(jnp.float32)
    corner = jnp.zeros_like(extent)
    boxes = jnp.concatenate([corner, extent], 1)[:, None].astype(jnp.float32)
    mean, std = augment.slice_statistics(augment.clip_air(raw, is_ct), extent)
    crops = augment.clip_air(resample.crop_and_resize(raw, extent, boxes, size), is_ct)
    return augment.z_score(crops, mean[:, None, None, None], std[:, None, None, None]).reshape(-1, size, size, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What an export holds beside the weights."""
    path = tmp_path_factory.mktemp("export")
    processor.write(path, processor.contract(CONFIG, META))
    return path


@pytest.fixture(scope="module")
def curia(folder):
    """The processor as somebody without transformers would load it."""
    spec = importlib.util.spec_from_file_location("curia_image_processor", folder / "curia_image_processor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CuriaImageProcessor(**json.loads((folder / "preprocessor_config.json").read_text()))


def scan(shape, ct=True, seed=0):
    """int16 with sharp edges, and in CT padding far below air."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    inside = ((y / shape[0] - 0.5) ** 2 + (x / shape[1] - 0.4) ** 2) < 0.16
    values = np.where(inside, draw.normal(60, 200, shape), -1000 if ct else 5)
    values[:4, :7] = -3024 if ct else -2000  # no MR value is clipped
    return values.round().astype(np.int16)


def by_pil(image, size, ct):
    image = image.astype(np.float32)
    pixels = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC), np.float64)
    native = image.astype(np.float64)
    if ct:
        pixels, native = np.maximum(pixels, -1000), np.maximum(native, -1000)
    return (pixels - native.mean()) / native.std()


@pytest.mark.parametrize("ct", [True, False])
@pytest.mark.parametrize("shape", [(64, 64), (200, 131), (31, 90), (48, 48)])
def test_equals_pil(curia, shape, ct):
    image = scan(shape, ct)
    pixels = curia(image, clip_below_air=ct)["pixel_values"]
    assert pixels.shape == (1, 1, 48, 48) and pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels[0, 0], by_pil(image, 48, ct), rtol=0, atol=2e-5)


def test_equals_the_views_of_training(curia):
    """Slices of several sizes in the corner of a canvas, CT and MR in one batch."""
    shapes, canvas = [(64, 64), (57, 33), (20, 64), (64, 64)], 64
    is_ct = np.array([True, True, False, False])
    images = [scan(shape, ct, seed) for seed, (shape, ct) in enumerate(zip(shapes, is_ct, strict=True))]
    batch = np.full((len(images), canvas, canvas), 12345, np.int16)  # the padding must not be seen
    for row, image in enumerate(images):
        batch[row, : image.shape[0], : image.shape[1]] = image
    ours = np.asarray(whole_slice(batch, np.array(shapes, np.int32), is_ct, 48))[..., 0]
    for row, image in enumerate(images):
        theirs = curia(image, clip_below_air=bool(is_ct[row]))["pixel_values"][0, 0]
        np.testing.assert_allclose(theirs, ours[row], rtol=0, atol=5e-5)


def test_scale_and_offset_of_mr_do_not_matter(curia):
    image = scan((60, 50), ct=False).astype(np.float64)
    stored = curia(image, clip_below_air=False)["pixel_values"]
    scanner = curia(image * 0.37 - 11, clip_below_air=False)["pixel_values"]
    np.testing.assert_allclose(scanner, stored, rtol=0, atol=1e-4)


def test_ct_is_clipped_at_air(curia):
    image = scan((48, 48))
    padded = np.where(image <= -1000, np.int16(-3000), image)
    assert torch.equal(curia(image)["pixel_values"], curia(padded)["pixel_values"])
    assert not torch.equal(curia(image)["pixel_values"], curia(image, clip_below_air=False)["pixel_values"])


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64, ">i2"])
def test_any_real_dtype_and_tensors(curia, dtype):
    image = scan((40, 52))
    expected = curia(image)["pixel_values"]
    for same in (image.astype(dtype), image.astype(dtype)[::-1][::-1], np.asfortranarray(image.astype(dtype))):
        assert torch.equal(curia(same)["pixel_values"], expected)
    if dtype != ">i2":
        assert torch.equal(curia(torch.from_numpy(image.astype(dtype)))["pixel_values"], expected)


def test_nothing_wraps_and_nothing_truncates(curia):
    """The published processor of Curia goes through int16: values above 32,767 wrap, those in [0, 1] vanish."""
    bright = np.linspace(0, 65535, 48 * 48).reshape(48, 48).astype(np.uint16)
    pixels = curia(bright)["pixel_values"].flatten()
    assert (pixels.diff() > 0).all()
    np.testing.assert_allclose(curia(bright / 65535)["pixel_values"].flatten(), pixels, rtol=0, atol=1e-4)


def test_a_volume_is_its_slices(curia):
    volume = np.stack([scan((40, 52), seed=seed) for seed in range(3)])
    expected = torch.cat([curia(one)["pixel_values"] for one in volume])
    assert torch.equal(curia(volume)["pixel_values"], expected)
    assert torch.equal(curia(torch.from_numpy(volume))["pixel_values"], expected)
    assert torch.equal(curia(list(volume))["pixel_values"], expected)
    assert torch.equal(curia(volume[:1])["pixel_values"], expected[:1])
    mixed = curia([volume[0], scan((30, 30))])["pixel_values"]
    assert mixed.shape == (2, 1, 48, 48) and torch.equal(mixed[:1], expected[:1])


def test_a_constant_slice_is_centred(curia):
    pixels = curia(np.full((20, 30), 7.0))["pixel_values"]
    np.testing.assert_allclose(pixels, np.zeros((1, 1, 48, 48)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "empty list"),
        (np.zeros(5), r"\(5,\)"),
        (np.zeros((2, 2, 3, 4)), r"\(2, 2, 3, 4\)"),
        (np.zeros((0, 3, 4)), "without slices"),
        (np.zeros((64, 64, 30)), "last axis"),
        ([np.zeros((2, 3, 4))], r"images\[0\]"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.zeros((0, 4)), "empty slice"),
        (np.zeros((4, 4), complex), "complex"),
        (torch.zeros(4, 4, dtype=torch.complex64), "complex"),
    ],
)
def test_refuses_what_it_cannot_read(curia, images, words):
    with pytest.raises(ValueError, match=words):
        curia(images)


def test_loads_in_transformers_and_without(folder, curia, tmp_path, monkeypatch):
    image = scan((40, 52))
    expected = curia(image)["pixel_values"]
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    auto = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    assert isinstance(auto, transformers.BaseImageProcessor)
    out = auto(image)
    assert isinstance(out, transformers.BatchFeature) and torch.equal(out["pixel_values"], expected)
    auto.save_pretrained(tmp_path / "again")
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(image)["pixel_values"], expected)

    np.save(tmp_path / "image.npy", image)
    code = (
        "import sys, json; sys.modules['transformers'] = None\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import numpy, torch, curia_image_processor as c\n"
        "p = c.CuriaImageProcessor(**json.load(open(sys.argv[1] + '/preprocessor_config.json')))\n"
        "numpy.save(sys.argv[2] + '/out.npy', p(numpy.load(sys.argv[2] + '/image.npy'))['pixel_values'].numpy())\n"
    )
    subprocess.run([sys.executable, "-B", "-c", code, str(folder), str(tmp_path)], check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected.numpy())


def test_the_contract_says_what_the_processor_does(folder, curia):
    told = json.loads((folder / "preprocessing.json").read_text())
    assert told["resize"]["size"] == curia.crop_size == 48
    assert told["z_score"]["eps"] == curia.eps == augment.EPS
    assert told["clip"]["CT"]["min"] == augment.CT_AIR
    assert {plane: told["orientation"][plane] for plane in ("axial", "coronal", "sagittal")} == {
        "axial": "PL",
        "coronal": "IL",
        "sagittal": "IP",
    }
    assert told["source"]["step"] == 7 and told["source"]["corpus_contract_sha256"] == "c" * 64
    assert processor.is_export(folder) and not processor.is_export(folder.parent)
    other = {**CONFIG, "crops": {"global_size": 64}}
    hashes = {processor.contract(c, META)["source"]["training_config_sha256"] for c in (CONFIG, other)}
    assert len(hashes) == 2
