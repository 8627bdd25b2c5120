"""Boxes against closed forms and scipy's distributions."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from curia2_jax.data.crops.boxes import DRAWS, CropsConfig, Geometry, draw_boxes
from curia2_jax.data.crops.gaussian import from_index

CONFIG = CropsConfig(
    placement="anatomical",
    global_size=256,
    local_size=96,
    num_local=4,
    unit="area",
    global_area=(0.32, 1.0),
    local_area=(0.05, 0.32),
    global_mm=(200.0, 400.0),
    local_mm=(60.0, 200.0),
    aspect=(3 / 4, 4 / 3),
    flip_rate=0.0,
)


def geometry(images, extent=(512, 512), spacing=(0.8, 0.8), mean=(200.0, 300.0), std=(60.0, 90.0)):
    extent, spacing, mean, std = (np.tile(np.array(x), (images, 1)) for x in (extent, spacing, mean, std))
    return Geometry(extent, spacing, *from_index(mean, std, np.ones(images)))


def draws(images, config=CONFIG, seed=0):
    return np.random.default_rng(seed).random((images, 2 + config.num_local, DRAWS))


def sides(boxes, spacing=(1.0, 1.0)):
    return (boxes[..., 2:].astype(np.float64) - boxes[..., :2]) * np.array(spacing)


def centers(boxes):
    return (boxes[..., 2:].astype(np.float64) + boxes[..., :2]) / 2


def test_infinite_spread_is_uniform_placement():
    """As is asking for it, or knowing nothing."""
    uniform = draws(3000)
    config = dataclasses.replace(CONFIG, global_area=(0.25, 0.25), aspect=(1.0, 1.0))
    endless = draw_boxes(uniform, geometry(3000, std=(np.inf, np.inf)), config)
    switched = draw_boxes(uniform, geometry(3000), dataclasses.replace(config, placement="uniform"))
    unknown = draw_boxes(uniform, geometry(3000, mean=(np.nan, np.nan), std=(0.0, 0.0)), config)
    for others in (switched, unknown):
        for a, b in zip(endless, others, strict=True):
            np.testing.assert_array_equal(a, b)
    for axis in (0, 1):
        positions = centers(endless[0])[:, :, axis].ravel()
        assert stats.kstest(positions, stats.uniform(128, 256).cdf).pvalue > 0.01


def test_centers_follow_the_truncated_gaussian():
    """For boxes of one size."""
    config = dataclasses.replace(CONFIG, global_area=(0.25, 0.25), local_area=(0.0625, 0.0625), aspect=(1.0, 1.0))
    large, small, _ = draw_boxes(draws(3000), geometry(3000), config)
    for boxes, half in ((large, 128.0), (small, 64.0)):
        for axis, (mean, std) in enumerate(((200.0, 60.0), (300.0, 90.0))):
            law = stats.truncnorm((half - mean) / std, (512 - half - mean) / std, mean, std)
            assert stats.kstest(centers(boxes)[:, :, axis].ravel(), law.cdf).pvalue > 0.01


def test_area_is_uniform_and_aspect_log_uniform():
    """Over the ranges of the config."""
    large, small, _ = draw_boxes(draws(4000), geometry(4000), CONFIG)
    area = sides(large).prod(-1).ravel() / 512**2
    assert stats.kstest(area, stats.uniform(0.32, 0.68).cdf).pvalue > 0.01
    area = sides(small).prod(-1).ravel() / 512**2
    assert stats.kstest(area, stats.uniform(0.05, 0.27).cdf).pvalue > 0.01
    height, width = np.moveaxis(sides(small), -1, 0)
    aspect = np.log(width / height).ravel()
    edge = np.log(4 / 3)
    assert stats.kstest(aspect, stats.uniform(-edge, 2 * edge).cdf).pvalue > 0.01


@settings(max_examples=200, deadline=None)
@given(
    extent=st.tuples(st.integers(8, 700), st.integers(8, 700)),
    spacing=st.tuples(st.floats(0.1, 9.0), st.floats(0.1, 9.0)),
    mean=st.tuples(st.floats(-1e3, 2e3), st.floats(-1e3, 2e3)),
    std=st.tuples(st.floats(0.0, 1e3), st.floats(1e-6, 1e3)),
    unit=st.sampled_from(["area", "mm"]),
    seed=st.integers(0, 1000),
)
def test_every_box_lies_inside_and_keeps_its_aspect(extent, spacing, mean, std, unit, seed):
    """In slices of any shape, whatever is known of them."""
    config = dataclasses.replace(CONFIG, unit=unit)
    for boxes in draw_boxes(draws(8, seed=seed), geometry(8, extent, spacing, mean, std), config)[:2]:
        assert boxes.dtype == np.float32
        assert (boxes[..., :2] >= 0).all() and (boxes[..., :2] < boxes[..., 2:]).all()
        assert (boxes[..., 2] <= extent[0]).all() and (boxes[..., 3] <= extent[1]).all()
        tall, broad = np.moveaxis(sides(boxes, spacing), -1, 0)
        assert (broad / tall > 3 / 4 - 1e-3).all() and (broad / tall < 4 / 3 + 1e-3).all()


def test_no_aspect_fits_a_long_slice():
    """A tenth as high as wide: every large box has the full height and the broadest aspect."""
    large = draw_boxes(draws(50), geometry(50, extent=(60, 600), mean=(30.0, 300.0)), CONFIG)[0]
    np.testing.assert_allclose(sides(large), np.broadcast_to([60, 80], (50, 2, 2)), rtol=1e-5)


def test_millimeters_do_not_depend_on_the_grid():
    """A box too large for the slice is the slice."""
    config = dataclasses.replace(CONFIG, unit="mm", local_mm=(40.0, 80.0))
    for spacing in ((0.5, 0.5), (0.8, 1.6)):
        small = draw_boxes(draws(2000), geometry(2000, spacing=spacing), config)[1]
        side = np.sqrt(sides(small, spacing).prod(-1)).ravel()
        assert stats.kstest(side, stats.uniform(40, 40).cdf).pvalue > 0.01
    whole = draw_boxes(draws(20), geometry(20, extent=(100, 100)), dataclasses.replace(config, aspect=(1.0, 1.0)))[0]
    np.testing.assert_array_equal(whole, np.broadcast_to(np.float32([0, 0, 100, 100]), (20, 2, 4)))


def test_flips_are_bernoulli():
    """And none without a rate."""
    flips = draw_boxes(draws(4000), geometry(4000), dataclasses.replace(CONFIG, flip_rate=0.3))[2]
    assert stats.binomtest(int(flips.sum()), flips.size, 0.3).pvalue > 0.01
    assert not draw_boxes(draws(100), geometry(100), CONFIG)[2].any()


def test_a_row_does_not_depend_on_its_batch():
    """To the bit."""
    uniform, whole = draws(6), geometry(6)
    whole = whole._replace(mean=whole.mean + np.arange(6)[:, None])
    together = draw_boxes(uniform, whole, CONFIG)
    for row in range(6):
        alone = draw_boxes(uniform[row : row + 1], Geometry(*(x[row : row + 1] for x in whole)), CONFIG)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[row], b[0])


def test_anatomical_boxes_hold_more_of_a_body():
    """An ellipse in air, off the center of the slice, with its own mean and spread: the share of the box area on it."""
    y, x = np.mgrid[:512, :512] + 0.5
    body = ((y - 300) / 110) ** 2 + ((x - 240) / 160) ** 2 < 1
    mean, std = (y[body].mean(), x[body].mean()), (y[body].std(), x[body].std())
    total = np.zeros((513, 513))
    total[1:, 1:] = body.cumsum(0).cumsum(1)

    def share(placement):
        config = dataclasses.replace(CONFIG, placement=placement)
        shares = []
        for boxes in draw_boxes(draws(1000), geometry(1000, mean=mean, std=std), config)[:2]:
            y0, x0, y1, x1 = np.moveaxis(np.round(boxes).astype(int), -1, 0)
            inside = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
            shares.append((inside / ((y1 - y0) * (x1 - x0))).mean())
        return np.array(shares)

    anatomical, uniform = share("anatomical"), share("uniform")
    assert (anatomical > uniform).all()
    assert anatomical[1] > 1.3 * uniform[1]  # local crops, which uniform placement often puts into the air


def test_a_spread_that_is_known_in_one_axis_alone_says_nothing():
    """Both axes are then as where no anatomy is known: uniform."""
    uniform = draws(2000)
    half, none = (geometry(2000, mean=(20.0, 20.0), std=std) for std in ((0.0, 5.0), (0.0, 0.0)))
    for a, b in zip(draw_boxes(uniform, half, CONFIG), draw_boxes(uniform, none, CONFIG), strict=True):
        np.testing.assert_array_equal(a, b)
