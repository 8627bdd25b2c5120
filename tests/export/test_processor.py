"""The exported image processor against PIL, against the views of training, and inside transformers."""

import importlib.util
import json
import subprocess
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from curia2_jax import curia_image_processor
from curia2_jax.export import processor
from curia2_jax.training import augment, class_tokens, resample

CONFIG = {
    "crops": {"global_size": 48},
    "model": {"in_channels": 1},
    "augment": {"normalize": "slice", "window": ()},
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
    mean, std = augment.slice_statistics(augment.clip_ct(raw, is_ct), extent)
    crops = augment.clip_ct(resample.crop_and_resize(raw, extent, boxes, size), is_ct)
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
    """Bicubic of PIL, clip, and z-score of the slice as it came, larger and smaller than the square."""
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
    extent = jnp.asarray(shapes, jnp.int32)
    ours = np.asarray(whole_slice(jnp.asarray(batch), extent, jnp.asarray(is_ct), 48))[..., 0]
    for row, image in enumerate(images):
        theirs = curia(image, clip_below_air=bool(is_ct[row]))["pixel_values"][0, 0]
        np.testing.assert_allclose(theirs, ours[row], rtol=0, atol=5e-5)


def test_scale_and_offset_of_mr_do_not_matter(curia):
    """Scanner units and stored numbers give the same pixels."""
    image = scan((60, 50), ct=False).astype(np.float64)
    stored = curia(image, clip_below_air=False)["pixel_values"]
    scanner = curia(image * 0.37 - 11, clip_below_air=False)["pixel_values"]
    np.testing.assert_allclose(scanner, stored, rtol=0, atol=1e-4)


def test_ct_is_clipped_at_air(curia):
    """How far below air the padding lies changes nothing, unless the call says so."""
    image = scan((48, 48))
    padded = np.where(image <= -1000, np.int16(-3000), image)
    assert torch.equal(curia(image)["pixel_values"], curia(padded)["pixel_values"])
    assert not torch.equal(curia(image)["pixel_values"], curia(image, clip_below_air=False)["pixel_values"])


def test_a_window_is_that_of_training(tmp_path):
    """Clipped at both ends before and after the resizing, CT only, and told in both files."""
    window = (-250.0, 350.0)
    told = processor.contract(CONFIG | {"augment": {"normalize": "slice", "window": window}}, META)
    processor.write(tmp_path, told)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert told["clip"]["CT"] == {"min": -250.0, "max": 350.0} and settings["window"] == [-250.0, 350.0]
    windowed = curia_image_processor.CuriaImageProcessor(**settings)
    for ct in (True, False):
        image = scan((60, 52), ct)
        pixels = np.asarray(Image.fromarray(image.astype(np.float32)).resize((48, 48), Image.Resampling.BICUBIC))
        native = image.astype(np.float64)
        if ct:
            pixels, native = pixels.clip(*window), native.clip(*window)
        expected = (pixels - native.mean()) / native.std()
        theirs = windowed(image, clip_below_air=ct)["pixel_values"][0, 0]
        np.testing.assert_allclose(theirs, expected, rtol=0, atol=2e-5)
        canvas, extent = np.zeros((1, 60, 60), np.int16), jnp.array([[60, 52]], jnp.int32)
        canvas[0, :, :52] = image
        ours = class_tokens.pixels(jnp.asarray(canvas), extent, jnp.array([ct]), 48, window)[0, ..., 0]
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=5e-5)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64, ">i2"])
def test_any_real_dtype_and_tensors(curia, dtype):
    """Integers, floats, foreign byte orders, negative strides, tensors: the same pixels."""
    image = scan((40, 52))
    expected = curia(image)["pixel_values"]
    for same in (image.astype(dtype), image.astype(dtype)[::-1][::-1], np.asfortranarray(image.astype(dtype))):
        assert torch.equal(curia(same)["pixel_values"], expected)
    if dtype != ">i2":
        assert torch.equal(curia(torch.from_numpy(image.astype(dtype)))["pixel_values"], expected)


def test_nothing_wraps_and_nothing_truncates(curia):
    """The published processor of Curia goes through int16: values above 32,767 wrap, those in [0, 1] vanish."""
    bright = np.linspace(0, 65535, 48 * 48).reshape(48, 48).astype(np.uint16)
    pixels = curia(bright, modality="MR")["pixel_values"].flatten()
    assert (pixels.diff() > 0).all()
    np.testing.assert_allclose(
        curia(bright / 65535, modality="MR")["pixel_values"].flatten(), pixels, rtol=0, atol=1e-4
    )


def test_a_volume_is_its_slices(curia):
    """(S, H, W), a list and single slices are the same rows; sizes may be mixed."""
    volume = np.stack([scan((40, 52), seed=seed) for seed in range(3)])
    expected = torch.cat([curia(one)["pixel_values"] for one in volume])
    assert torch.equal(curia(volume)["pixel_values"], expected)
    assert torch.equal(curia(torch.from_numpy(volume))["pixel_values"], expected)
    assert torch.equal(curia(list(volume))["pixel_values"], expected)
    assert torch.equal(curia(volume[:1])["pixel_values"], expected[:1])
    mixed = curia([volume[0], scan((30, 30))])["pixel_values"]
    assert mixed.shape == (2, 1, 48, 48) and torch.equal(mixed[:1], expected[:1])


def test_a_constant_slice_is_centered(curia):
    """Nothing is divided by a spread of zero."""
    pixels = curia(np.full((20, 30), 7.0))["pixel_values"]
    np.testing.assert_allclose(pixels, np.zeros((1, 1, 48, 48)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "empty list"),
        (np.zeros(5), r"\(5,\)"),
        (np.zeros((2, 2, 3, 4)), r"\(2, 2, 3, 4\)"),
        (np.zeros((0, 3, 4)), "without slices"),
        (np.zeros((64, 64, 30)), "last axis; write slice_axis=-1"),
        (np.zeros((320, 260, 48)), "last axis; write slice_axis=-1"),
        (np.zeros((40, 50, 1)), "last axis"),
        (np.zeros((40, 50, 3)), r"color image \(RGB\)"),
        (torch.zeros(40, 50, 4), r"color image \(RGB\)"),
        (np.zeros((3, 40, 50), np.uint8), r"color image \(RGB\)"),
        (torch.zeros(3, 40, 50, dtype=torch.uint8), r"color image \(RGB\)"),
        ([np.zeros((40, 50, 3))], r"images\[0\] has shape \(40, 50, 3\), which looks like a color image"),
        ([[[0.0, np.inf]]], "NaN"),
        ([np.zeros((2, 3, 4))], r"images\[0\]"),
        ([np.zeros((4, 4)), np.zeros(4)], r"images\[1\] has shape \(4,\)"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.zeros((0, 4)), "empty slice"),
        (np.zeros((4, 4), complex), "complex"),
        (torch.zeros(4, 4, dtype=torch.complex64), "complex"),
        (Image.new("RGB", (4, 4), (1, 2, 3)), "color image of mode RGB"),
        ([Image.new("RGBA", (4, 4), (1, 1, 1, 255))], "color image of mode RGBA"),
    ],
)
def test_refuses_what_it_cannot_read(curia, images, words):
    """Shapes, dtypes and values that have no meaning, each in words."""
    with pytest.raises(ValueError, match=words) as told:
        curia(images)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("shape", "said", "words"),
    [
        ((4, 4, 4), {"slice_axis": 3}, "slice_axis: found 3"),
        ((4, 4), {"slice_axis": -1}, "slice_axis: goes with one array of three axes"),
        ((4, 4), {"modality": "ct"}, "modality: found 'ct'; write 'CT' or 'MR'"),
    ],
)
def test_refuses_words_that_it_does_not_know(curia, shape, said, words):
    with pytest.raises(ValueError, match=words):
        curia(np.zeros(shape), **said)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_slices_on_another_axis_are_said_so(curia, kind):
    """(H, W, S) and (H, S, W) by name; a thin volume that is slices first after all; three slices are no colors."""
    volume = np.stack([scan((40, 52), seed=seed) for seed in range(3)])
    expected = curia(volume)["pixel_values"]
    for axis in (-1, 2, 1, 0, -3):
        moved = np.ascontiguousarray(np.moveaxis(volume, 0, axis))
        assert torch.equal(curia(kind(moved), slice_axis=axis)["pixel_values"], expected)
    thin = kind(np.ascontiguousarray(volume[:, :, :2].repeat(8, 0)))
    assert curia(thin, slice_axis=0)["pixel_values"].shape == (24, 1, 48, 48)


UNITS = [  # values of a slice, what is said, what is warned of
    (lambda x: (x + 1024) / 4095, {}, "within 0 to 1: .*Hounsfield units"),
    (lambda x: (x + 1024) / 4095, {"modality": "CT"}, "within 0 to 1: .*Hounsfield units"),
    (lambda x: ((x + 1024) / 4095 * 255).astype(np.uint8), {}, "within 0 to 255: .*Hounsfield units"),
    (lambda x: ((x + 1024) / 4095 * 255).round(), {"clip_below_air": True}, "within 0 to 255: .*Hounsfield units"),
    (lambda x: x + 1024, {"modality": "CT"}, "without values under -500 HU .*RescaleIntercept"),
    (lambda x: x / 3000, {"modality": "CT"}, "without values under -500 HU"),
    (lambda x: x + 1024, {}, None),  # may be MR
    (lambda x: x, {"modality": "CT"}, None),
    (lambda x: (x + 1024) / 4095, {"modality": "MR"}, None),
    (lambda x: (x + 1024) / 4095, {"clip_below_air": False}, None),
]


@pytest.mark.parametrize(("change", "said", "words"), UNITS)
def test_warns_of_ct_that_is_not_in_hounsfield_units(curia, change, said, words):
    values = change(np.maximum(scan((40, 52)), -1024).astype(np.float64))
    if words is None:
        curia(values, **said)  # a warning would be an error
        return
    with pytest.warns(UserWarning, match=words):
        curia(values, **said)
    with pytest.warns(UserWarning, match=words):  # of the whole call: one slice of a volume has air, or none has
        curia(np.stack([values, values]), **said)


def test_the_modality_says_whether_air_is_clipped(curia):
    image = scan((40, 52))
    expected = {clip: curia(image, clip_below_air=clip)["pixel_values"] for clip in (True, False)}
    assert torch.equal(curia(image, modality="CT")["pixel_values"], expected[True])
    assert torch.equal(curia(image, modality="MR")["pixel_values"], expected[False])
    assert torch.equal(curia(image, modality="CT", clip_below_air=False)["pixel_values"], expected[False])


def test_more_slices_than_are_worked_on_at_once(curia):
    """Rows keep their order over stacks, and over sizes that alternate."""
    volume = np.stack([scan((10, 12), seed=seed) for seed in range(150)])
    found = curia(volume)["pixel_values"]
    assert torch.equal(found, torch.cat([curia(one)["pixel_values"] for one in volume]))
    other = scan((9, 9))
    mixed = curia([image for one in volume[:70] for image in (one, other)])["pixel_values"]
    assert torch.equal(mixed[::2], found[:70]) and torch.equal(mixed[1::2], curia([other] * 70)["pixel_values"])


def test_loads_in_transformers_and_without(folder, curia, tmp_path, monkeypatch):
    """AutoImageProcessor, saving and loading again, and a process without transformers."""
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


def test_return_tensors_and_device_mean_what_they_mean_in_transformers(curia):
    """PyTorch by default and by name, NumPy by name; calling and `preprocess` are one."""
    image = scan((40, 52))
    expected = curia(image)["pixel_values"]
    assert isinstance(expected, torch.Tensor)
    for same in (
        curia(image, return_tensors="pt"),
        curia(images=image, return_tensors="pt", device="cpu"),
        curia.preprocess(image, return_tensors="pt"),
        curia.preprocess(image, None, "pt"),
    ):
        assert torch.equal(same["pixel_values"], expected)
    array = curia(image, return_tensors="np")["pixel_values"]
    assert isinstance(array, np.ndarray) and array.dtype == np.float32
    np.testing.assert_array_equal(array, expected.numpy())
    assert curia(torch.from_numpy(image), device=torch.device("cpu"))["pixel_values"].device.type == "cpu"
    with pytest.raises(ValueError, match="found 'tf'; write 'pt' or 'np'"):
        curia(image, return_tensors="tf")
    with pytest.warns(UserWarning, match="ignored clip_bellow_air, do_resize"):
        pixels = curia(image, do_resize=False, clip_bellow_air=False)["pixel_values"]
    assert torch.equal(pixels, expected)


@pytest.mark.parametrize("mode", ["L", "I;16", "I", "F", "RGB", "P"])
def test_gray_pil_images_are_their_numbers(curia, mode):
    """Of any gray mode, and as three equal colors, which is what the pipelines of transformers make of them."""
    gray = (np.arange(40 * 52).reshape(40, 52) % 251).astype(np.uint8)
    made = {"I;16": lambda: Image.fromarray(gray.astype(np.uint16)), "P": lambda: Image.fromarray(gray).convert("P")}
    image = made.get(mode, lambda: Image.fromarray(gray).convert(mode))()
    assert image.mode == mode
    expected = curia(gray, modality="MR")["pixel_values"]
    assert torch.equal(curia(image, modality="MR")["pixel_values"], expected)
    assert torch.equal(curia([image, gray], modality="MR")["pixel_values"], torch.cat([expected, expected]))


def test_is_the_image_processor_of_a_pipeline(folder, curia, tmp_path, monkeypatch):
    """By name and by object: the tokens are those of the model on the processor's pixels."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    settings = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_channels": 1}
    model = transformers.Dinov2Model(transformers.Dinov2Config(**settings, image_size=48, patch_size=8)).eval()
    whole = tmp_path / "whole"
    model.save_pretrained(whole)
    processor.write(whole, processor.contract(CONFIG, META))
    image = Image.fromarray((np.arange(40 * 52).reshape(40, 52) % 251).astype(np.uint8))
    warnings.filterwarnings("ignore", "CuriaImageProcessor: all values lie within 0 to 255")  # MR, which is not said
    with torch.no_grad():
        expected = model(**curia(image)).last_hidden_state
    auto = transformers.AutoImageProcessor.from_pretrained(whole, trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(model(**auto(image, return_tensors="pt")).last_hidden_state, expected)
    for one in (str(whole), auto):
        extract = transformers.pipeline(
            "image-feature-extraction", model=str(whole), image_processor=one, trust_remote_code=True, device="cpu"
        )
        np.testing.assert_allclose(extract(image, return_tensors=True), expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(extract([image, image], batch_size=2)[1], expected, rtol=0, atol=1e-5)


def test_the_contract_says_what_the_processor_does(folder, curia):
    """preprocessing.json names the numbers that the code and training use."""
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
