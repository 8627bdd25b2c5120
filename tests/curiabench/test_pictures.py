"""Pictures of slices and of their tokens."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from curia2_jax.curiabench import pictures, tasks
from curia2_jax.curiabench.model import load_model
from tests import small_benchmark


def decode(uri):
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_colors_are_the_principal_components_of_the_foreground():
    """scikit-learn's components, stretched; the background neither moves them nor shows."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 6, 6, 10)).astype(np.float32) * np.linspace(3, 0.1, 10, dtype=np.float32)
    foreground = rng.random((2, 6, 6)) > 0.4
    tokens[~foreground] = 1e3  # what lies outside must not move the axes
    colors = pictures.principal_colors(tokens, foreground)
    components = PCA(3).fit_transform(tokens[foreground])
    for channel in range(3):
        shown = colors[foreground][:, channel]
        inside = (shown > 25) & (shown < 255)  # the ends are cut
        r = np.corrcoef(shown[inside], components[inside, channel])[0, 1]
        assert abs(r) > 0.9999
    assert (colors[~foreground] == 0).all()
    assert colors[foreground].min() == 25
    assert colors[foreground].max() == 255


def test_png_keeps_pixels_when_it_enlarges_them():
    """No pixel is lost or invented."""
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(decode(pictures.png(array)), array)
    np.testing.assert_array_equal(decode(pictures.png(array, (8, 6))), array.repeat(2, 0).repeat(2, 1))


def test_pictures_of_slices_show_different_slices_in_their_window_and_shape(tmp_path):
    """Slices spread over the split, CT in its window, the aspect ratio kept."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(5):
        image = np.full((40, 20), -1000, np.float32)
        image[10:30, 5:15] = 300 + rng.normal(0, 20, (20, 10))
        image[10 + number, 5:15] = -200
        rows += [(image, image > 0, label, "p", "CT") for label in (0, 1)]  # two samples a slice
    volume = np.stack([rows[0][0] * 0, rows[0][0]], -1)
    rows.append((volume, volume > 0, 1, "p", "CT"))
    task = small_benchmark.write_task(tmp_path / "t", {"train": rows, "test": rows[:1]}, {0: "a", 1: "b"})
    split = tasks.read_task(task.parent, "t").train._replace(masked=True)
    model = load_model(small_benchmark.write_model(tmp_path / "model"), "cpu")
    slices = np.array(list("aabbccddeef"))
    got = pictures.token_pictures(split, model, slices, count=3)
    assert len(got) == 3
    assert len({one.slice for one in got}) == 3
    for one in got:
        shown = decode(one.slice)
        assert shown.shape == (256, 128)
        assert shown[0, 0] == 0  # air, below the window
        assert shown[100:180, 40:80].max() == 255  # 300 HU and more, its upper end
        assert decode(one.trained).shape == decode(one.random).shape == (256, 128, 3)
        assert (decode(one.trained)[0, 0] == 0).all()  # background
        assert (decode(one.trained)[128, 64] > 0).any()


@pytest.mark.parametrize("modality", ["CT", "MR", ""])
def test_a_constant_slice_has_a_picture(tmp_path, modality):
    """Nothing divides by a spread of zero."""
    flat = np.full((16, 16), 50, np.float32)
    rows = [(flat, flat > 0, label, "p", modality) for label in (0, 1)]
    task = small_benchmark.write_task(tmp_path / "t", {"train": rows, "test": rows[:1]}, {0: "a", 1: "b"})
    model = load_model(small_benchmark.write_model(tmp_path / "model"), "cpu")
    got = pictures.token_pictures(tasks.read_task(task.parent, "t").test, model, np.array(["a"]))
    assert len(got) == 1


def test_one_bright_patch_has_a_picture():
    """Fewer foreground patches than components: the background stays black, the patch is shown."""
    tokens = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
    foreground = np.zeros((1, 4, 4), bool)
    foreground[0, 1, 2] = True
    colors = pictures.principal_colors(tokens, foreground)
    assert (colors[~foreground] == 0).all()
    assert (colors[foreground] >= 25).all()
