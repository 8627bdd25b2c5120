import numpy as np
from PIL import Image
from small_studies import body, write_nifti

from curia2_jax.data import ingest, plan, preview


def test_pages_show_several_series(tmp_path):
    for n in range(4):
        write_nifti(tmp_path / "in" / f"{n}.nii.gz", body((6, 40, 48), seed=n))
    ingest.ingest(tmp_path / "c", plan.Options((str(tmp_path / "in"),)), 1, lambda *_: None)
    pages = preview.draw(tmp_path / "c", 5)
    assert [page.name for page in pages] == ["page_00.png", "page_01.png"]  # three series a page
    picture = np.asarray(Image.open(pages[0]).convert("RGB")).astype(int)
    red, green, blue = np.moveaxis(picture, -1, 0)
    assert np.sum((red > 200) & (green < 80) & (blue < 80)) > 100  # contours
    assert np.sum((green > 200) & (red < 80) & (blue < 80)) > 100  # global boxes
    assert np.sum((blue > 200) & (red < 80)) > 100  # local boxes
    assert np.sum((red > 200) & (green > 200) & (blue < 80)) > 100  # Gaussians
