"""Pictures have what they are to show."""

import dataclasses

import numpy as np
from PIL import Image

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.crops import placement, preview
from curia2_jax.data.crops.masks import MasksConfig
from curia2_jax.data.ingest import bodies, ingest, plan
from tests.data.crops.test_placement import CROPS
from tests.data.small_studies import body, write_nifti

CONFIG = dataclasses.replace(CROPS, num_local=8, flip_rate=0.0)
MASKS = MasksConfig(placement="anatomical", probability=0.5, ratio=(0.1, 0.5))


def corpus_of(folder, series: int, rows: int) -> Corpus:
    """Series of six slices of rows x 48 pixels."""
    for n in range(series):
        write_nifti(folder / "in" / f"{n}.nii.gz", body((6, rows, 48), seed=n))
    ingest.ingest(folder / "c", plan.Options((str(folder / "in"),)), 0, lambda *_: None)
    return Corpus(folder / "c")


def test_pages_show_several_series(tmp_path):
    """Three series a page, each drawing in its own color."""
    corpus = corpus_of(tmp_path, series=4, rows=40)
    pages = preview.draw_pages(corpus, tmp_path, 5, bodies.finder(corpus), CONFIG, MASKS, 16)
    assert [page.name for page in pages] == ["page_00.png", "page_01.png"]
    picture = np.asarray(Image.open(pages[0]).convert("RGB")).astype(int)
    red, green, blue = np.moveaxis(picture, -1, 0)
    assert np.sum((red > 200) & (green < 80) & (blue < 80)) > 100  # contours
    assert np.sum((green > 200) & (red < 80) & (blue < 80)) > 100  # global boxes
    assert np.sum((blue > 200) & (red < 80)) > 100  # local boxes
    assert np.sum((red > 200) & (green > 200) & (blue < 80)) > 100  # Gaussians


def test_placement_is_a_picture_and_a_table(tmp_path):
    """One panel a kind of crop, with both placements in it."""
    corpus = corpus_of(tmp_path, series=2, rows=60)
    rows = placement.statistics(corpus, bodies.finder(corpus), CONFIG, MASKS, 16)
    sizes = {"global crops": 12 * 2, "local crops": 12 * 8, "masked patches": 12}
    for row in rows:
        assert row.shares.shape == (sizes[row.what],) and row.shares.min() >= 0 and row.shares.max() <= 1
        assert row.on_foreground == row.shares.mean() and row.nearly_empty == (row.shares < 0.1).mean()
    placement.draw_histograms(rows, tmp_path / "placement.png")
    picture = np.asarray(Image.open(tmp_path / "placement.png").convert("RGB")).astype(int)
    assert picture.shape[1] > 2.5 * picture.shape[0]  # three panels side by side
    for panel in np.array_split(picture, 3, axis=1):  # each with the blue of one placement and the gray of the other
        red, green, blue = np.moveaxis(panel, -1, 0)
        assert np.sum(blue > red + 60) > 200
        assert np.sum((red == green) & (green == blue) & (red > 100) & (red < 230)) > 200
