"""Slices as pictures."""

import base64
import io

import numpy as np
from PIL import Image

from curia2_jax.curiabench import pictures


def decode(uri):
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_png_keeps_pixels_when_it_enlarges_them():
    """No pixel is lost or invented."""
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(decode(pictures.png(array)), array)
    np.testing.assert_array_equal(decode(pictures.png(array, (8, 6))), array.repeat(2, 0).repeat(2, 1))


def test_the_outline_lies_around_the_mask_and_not_on_it():
    """What is asked about keeps its pixels, in the size of the report; all else but the line does, too."""
    gray = np.full((32, 64), 90, np.uint8)
    mask = np.zeros((32, 64), bool)
    mask[8:16, 20:40] = True
    shown = pictures.outlined(gray, mask)
    assert shown.shape == (128, 256, 3)
    line = (shown == pictures.OUTLINE).all(-1)
    inside = mask.repeat(4, 0).repeat(4, 1)
    assert line.sum() == 2 * (32 + 80) and not (line & inside).any()
    assert (shown[~line] == 90).all()
    assert (pictures.outlined(gray, None) == 90).all()


def test_the_middle_of_a_volume_is_where_its_mask_is_largest():
    """Without a mask, the slice in the middle; a slice is itself."""
    volume, mask = np.arange(24.0).reshape(2, 3, 4), np.zeros((2, 3, 4), bool)
    mask[:, 1, 3] = True
    image, under = pictures.middle(volume, mask)
    np.testing.assert_array_equal(image, volume[..., 3])
    np.testing.assert_array_equal(under, mask[..., 3])
    np.testing.assert_array_equal(pictures.middle(volume, None)[0], volume[..., 2])
    assert pictures.middle(volume[..., 0], None)[0] is not None
