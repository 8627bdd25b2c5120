"""Shares on the foreground against counted pixels, on a corpus of elliptic bodies in air."""

import math
import pathlib

import numpy as np
import pytest

from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.crops.boxes import CropsConfig
from curia2_jax.data.crops.masks import MasksConfig
from curia2_jax.data.crops.placement import share, statistics
from curia2_jax.data.ingest import bodies, foreground, parts, publish
from tests.data.small_corpus import row

CROPS = CropsConfig(
    placement="anatomical",
    global_size=64,
    local_size=32,
    num_local=4,
    unit="area",
    global_area=(0.32, 1.0),
    local_area=(0.05, 0.32),
    global_mm=(0.0, 0.0),
    local_mm=(0.0, 0.0),
    aspect=(3 / 4, 4 / 3),
    flip_rate=0.5,
)


def table_of(folder):
    """The rows of a corpus, with 8 x 8 patches in a mask."""
    corpus = Corpus(folder)
    masks = MasksConfig("anatomical", 0.5, (0.1, 0.5))
    return statistics(corpus, bodies.finder(corpus), CROPS, masks, 8)


def write_bodies(folder: pathlib.Path) -> None:
    """Twelve CT and twelve MR slices of 96 x 120 with an ellipse off the center, and its Gaussian in the index."""
    rng = np.random.default_rng(0)
    (folder / layout.WORK).mkdir(parents=True)
    with parts.Part(folder / layout.WORK, 0) as part:
        y, x = np.mgrid[:96, :120] + 0.5
        for modality, air, tissue in (("CT", -1000, 40), ("MR", 10, 400)):
            part.begin_series()
            for z in range(12):
                inside = ((y - 60) / 22) ** 2 + ((x - 40) / 30) ** 2 < 1
                pixels = (np.where(inside, tissue, air) + rng.normal(0, 5, y.shape)).astype(np.int16)
                found = foreground.summarize(inside[None], inside.shape)
                entry = row(modality, modality, modality, z, pixels, float(found.fraction[0]))
                entry |= {"anatomy_y": float(found.y[0]), "anatomy_x": float(found.x[0])}
                entry |= {"anatomy_std_y": float(found.std_y[0]), "anatomy_std_x": float(found.std_x[0])}
                part.add(pixels, entry)
            part.end_series(modality, False, f"/source/{modality}")
        part.finish({})
    publish.publish(folder, 1, (), {"code_version": "test", "options": {}})


def test_shares_are_exact_for_fractional_boxes():
    """Against the same mask blown up 20 times, with boxes on its finer grid."""
    rng = np.random.default_rng(0)
    mask = rng.random((9, 11)) < 0.5
    table = np.zeros((10, 12))
    table[1:, 1:] = mask.cumsum(0).cumsum(1)
    fine = np.kron(mask, np.ones((20, 20)))
    corners = np.sort(np.stack([rng.integers(0, 181, (50, 2)), rng.integers(0, 221, (50, 2))], -1), axis=1)
    corners = corners[(np.diff(corners, axis=1) > 0).all((1, 2))]
    boxes = np.concatenate([corners[:, 0], corners[:, 1]], -1)  # y0, x0, y1, x1 in twentieths of a cell
    expected = [fine[y0:y1, x0:x1].mean() for y0, x0, y1, x1 in boxes]
    np.testing.assert_allclose(share((table, 4), boxes / 20 * 4), expected, atol=1e-12)


def test_anatomical_placement_pays_on_bodies_in_air(tmp_path):
    """Most for local crops."""
    write_bodies(tmp_path / "corpus")
    rows = table_of(tmp_path / "corpus")
    table = {(r.what, r.placement): r for r in rows}
    assert len(table) == len(rows) == 6
    for what, gain in (("global crops", 1.02), ("local crops", 1.3), ("masked patches", 1.1)):
        uniform, anatomical = table[what, "uniform"], table[what, "anatomical"]
        assert anatomical.on_foreground > gain * uniform.on_foreground
        assert anatomical.nearly_empty <= uniform.nearly_empty
        assert math.isnan(uniform.at_border) == (what == "masked patches")
    # A whole-slice crop would hold exactly the ellipse.
    assert table["global crops", "uniform"].on_foreground > math.pi * 22 * 30 / (96 * 120)
    assert table["local crops", "anatomical"].at_border < table["local crops", "uniform"].at_border + 0.01


def test_a_slice_without_anatomy_gets_uniform_masks(tmp_path):
    """An empty index entry (no foreground, infinite spread) must not stop the table."""
    (tmp_path / "corpus" / layout.WORK).mkdir(parents=True)
    with parts.Part(tmp_path / "corpus" / layout.WORK, 0) as part:
        part.begin_series()
        pixels = np.full((64, 64), -1000, np.int16)
        entry = row("s", "p", "CT", 0, pixels, 0.0) | {"anatomy_std_y": math.inf, "anatomy_std_x": math.inf}
        part.add(pixels, entry)
        part.end_series("s", False, "/source")
        part.finish({})
    publish.publish(tmp_path / "corpus", 1, (), {"code_version": "test", "options": {}})
    rows = table_of(tmp_path / "corpus")
    assert [r.on_foreground for r in rows] == pytest.approx([0.0] * 6)
    assert rows[0][2:4] == rows[2][2:4]
