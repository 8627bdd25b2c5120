"""Patch tokens as colors, which patches have one, and the labels beside them."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from curia2_jax.curiabench import tasks
from curia2_jax.curiabench.pages import tokens as pictures
from tests import small_benchmark
from tests.curiabench.test_pictures import decode


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


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Five slices of one patient with two structures each, and a volume with one: all of CT."""
    folder, rng = tmp_path_factory.mktemp("task"), np.random.default_rng(1)
    rows, left = [], np.arange(20)[None] < 10
    for number in range(5):
        image = np.full((40, 20), -1000, np.float32)
        image[8:32, 3:17] = 300 + rng.normal(0, 20, (24, 14))
        image[10 + number, 3:17] = -200
        rows += [(image, (image > 0) & side, label, "p", "CT") for label, side in enumerate((left, ~left))]
    volume = np.stack([rows[0][0] * 0, rows[0][0]], -1)
    rows.append((volume, volume > 0, 1, "p", "CT"))
    task = small_benchmark.write_task(folder / "t", {"train": rows, "test": rows[:1]}, {0: "a", 1: "b"})
    return tasks.read_task(task.parent, "t").train._replace(masked=True)


def test_pictures_of_slices_show_different_slices_in_their_window_and_shape(split, model):
    """Those with the most structures, CT in its window, the aspect ratio kept, each class in its color."""
    got = pictures.token_pictures(split, model, np.array(list("aabbccddeef")), labelled=True, count=6)
    assert len({one.slice for one in got}) == 5  # the volume shows the first slice again
    assert [one.classes for one in got] == [(0, 1)] * 5 + [(1,)]
    for one in got:
        shown = decode(one.slice)
        assert shown.shape == (256, 128)
        assert shown[0, 0] == 0  # air, below the window
        assert shown[100:180, 40:80].max() == 255  # 300 HU and more, its upper end
        assert decode(one.trained).shape == decode(one.random).shape == (256, 128, 3)
        assert (decode(one.trained)[0, 0] == 0).all()  # background
        assert (decode(one.trained)[128, 64] > 0).any()
        labels = decode(one.labels)
        assert tuple(labels[180, 100]) == pictures.color_of(1) and (labels[0, 0] == 0).all()
        assert (tuple(labels[180, 40]) == pictures.color_of(0)) == (0 in one.classes)
    without = pictures.token_pictures(split, model, np.array(list("aabbccddeef")), labelled=False, count=2)
    assert [one.labels for one in without] == ["", ""]


def test_slices_are_of_as_many_patients_as_there_are():
    """One each, spread over them, and the slice with the most samples."""
    slices = np.array(list("aabcdddeffghij"))
    patients = np.array(list("11112222334455"))
    chosen = pictures._chosen(slices, patients, 5)
    assert patients[chosen].tolist() == list("12345")
    assert slices[chosen].tolist()[:3] == ["a", "d", "f"]
    assert patients[pictures._chosen(slices, patients, 3)].tolist() == list("135")
    assert sorted(slices[pictures._chosen(slices, np.full(14, "1"), 2)].tolist()) == ["a", "d"]


def test_the_interior_is_every_patch_that_has_body_in_every_pixel():
    """Lungs and all; a body thinner than a patch is shown by what it touches, nothing at all by everything."""
    body = np.full((64, 64), -1000, np.float32)
    body[8:56, 12:60] = 40
    body[20:30, 20:30] = -800  # a lung
    inside = pictures.interior(body, "CT", 128, 16)
    expected = np.zeros((8, 8), bool)
    expected[1:7, 2:7] = True  # columns 24..119 of 128 hold patches 2 to 6 whole
    np.testing.assert_array_equal(inside, expected)
    thin = np.full((64, 64), -1000, np.float32)
    thin[30:34] = 40
    assert pictures.interior(thin, "CT", 128, 16).sum(1).tolist() == [0, 0, 0, 8, 8, 0, 0, 0]
    assert pictures.interior(np.full((64, 64), -1000, np.float32), "CT", 128, 16).all()


def test_bright_organs_do_not_hide_the_body_of_an_mr_slice():
    """Its threshold is that of ingest, which Otsu's of the plain values is not."""
    image = np.random.default_rng(0).uniform(0, 8, (64, 64)).astype(np.float32)
    image[8:56, 8:56] += 100
    image[20:40, 20:40] += 400
    inside = pictures.interior(image, "MR", 64, 8)
    assert inside[1:7, 1:7].all() and inside.sum() == 36


def test_neighboring_classes_have_colors_that_differ():
    """Of 54, no two are the same, and of two in a row the difference is seen."""
    colors = np.array([pictures.color_of(number) for number in range(54)])
    assert len(np.unique(colors, axis=0)) == 54
    assert (np.abs(np.diff(colors, axis=0)).max(1) > 60).all()


@pytest.mark.parametrize("modality", ["CT", "MR", ""])
def test_a_constant_slice_has_a_picture(tmp_path, model, modality):
    """Nothing divides by a spread of zero."""
    flat = np.full((16, 16), 50, np.float32)
    rows = [(flat, flat > 0, label, "p", modality) for label in (0, 1)]
    task = small_benchmark.write_task(tmp_path / "t", {"train": rows, "test": rows[:1]}, {0: "a", 1: "b"})
    got = pictures.token_pictures(tasks.read_task(task.parent, "t").test, model, np.array(["a"]), labelled=True)
    assert len(got) == 1


def test_one_bright_patch_has_a_picture():
    """Fewer foreground patches than components: the background stays black, the patch is shown."""
    tokens = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
    foreground = np.zeros((1, 4, 4), bool)
    foreground[0, 1, 2] = True
    colors = pictures.principal_colors(tokens, foreground)
    assert (colors[~foreground] == 0).all()
    assert (colors[foreground] >= 25).all()
