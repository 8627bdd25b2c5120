import numpy as np
from PIL import Image

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.crops import preview
from curia2_jax.data.ingest import bodies, ingest, plan
from tests.data.small_studies import body, write_nifti


def test_pages_show_several_series(tmp_path):
    for n in range(4):
        write_nifti(tmp_path / "in" / f"{n}.nii.gz", body((6, 40, 48), seed=n))
    ingest.ingest(tmp_path / "c", plan.Options((str(tmp_path / "in"),)), 1, lambda *_: None)
    pages = preview.draw(tmp_path / "c", bodies.finder(Corpus(tmp_path / "c")), 5)
    assert [page.name for page in pages] == ["page_00.png", "page_01.png"]  # three series a page
    picture = np.asarray(Image.open(pages[0]).convert("RGB")).astype(int)
    red, green, blue = np.moveaxis(picture, -1, 0)
    assert np.sum((red > 200) & (green < 80) & (blue < 80)) > 100  # contours
    assert np.sum((green > 200) & (red < 80) & (blue < 80)) > 100  # global boxes
    assert np.sum((blue > 200) & (red < 80)) > 100  # local boxes
    assert np.sum((red > 200) & (green > 200) & (blue < 80)) > 100  # Gaussians


def test_placement_is_a_picture_and_a_table(tmp_path):
    for n in range(2):
        write_nifti(tmp_path / "in" / f"{n}.nii.gz", body((6, 60, 48), seed=n))
    ingest.ingest(tmp_path / "c", plan.Options((str(tmp_path / "in"),)), 1, lambda *_: None)
    path, rows = preview.draw_placement(tmp_path / "c", bodies.finder(Corpus(tmp_path / "c")))
    assert path == tmp_path / "c" / "preview" / "placement.png"
    sizes = {"global crops": 12 * 2, "local crops": 12 * 8, "masked patches": 12}
    for row in rows:
        assert row.shares.shape == (sizes[row.what],) and row.shares.min() >= 0 and row.shares.max() <= 1
        assert row.on_foreground == row.shares.mean() and row.nearly_empty == (row.shares < 0.1).mean()
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert picture.shape[1] > 2.5 * picture.shape[0]  # three panels side by side
    for panel in np.array_split(picture, 3, axis=1):  # each with the blue of one placement and the grey of the other
        red, green, blue = np.moveaxis(panel, -1, 0)
        assert np.sum(blue > red + 60) > 200
        assert np.sum((red == green) & (green == blue) & (red > 100) & (red < 230)) > 200
