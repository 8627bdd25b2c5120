"""Channels of a pair: planes of tokens, components of both volumes together, and where the body is."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from curia2_jax.curiabench.adapters.adapter import Adapter, Tokens, Volume, each
from curia2_jax.curiabench.registration import channels, pairs
from curia2_jax.curiabench.registration.grid import grid_of
from curia2_jax.errors import UserError
from tests.curiabench.registration import scans


def adapter():
    """Tokens of 4 x 4 pixels: their mean and their first pixel."""
    prepare = each(lambda volume: torch.from_numpy(np.array(volume.voxels, np.float32))[:, None])

    def encode(pixels, normed):
        assert normed
        mean = torch.nn.functional.avg_pool2d(pixels, 4)[:, 0]
        return Tokens(None, torch.stack([mean, pixels[:, 0, ::4, ::4]], dim=-1))

    return Adapter("mine", "slice", prepare, encode, "", "")


def test_tokens_of_close_slices_are_averaged_as_they_come_and_others_are_kept():
    voxels = np.random.default_rng(0).normal(size=(70, 8, 12)).astype(np.float32)  # three batches
    volume = Volume(voxels, "CT")
    grid = grid_of(voxels.shape, np.array([0.5, 4, 4]))
    assert grid.nodes[0] == 36
    found = channels.tokens(volume, grid, adapter(), "cpu")
    means = voxels.reshape(70, 2, 4, 3, 4).mean((2, 4))
    bins = [means[70 * p // 36 : -(-70 * (p + 1) // 36)].mean(0) for p in range(36)]
    np.testing.assert_allclose(found[..., 0], bins, atol=1e-6)
    kept = channels.tokens(Volume(voxels[:5], "CT"), grid, adapter(), "cpu")
    np.testing.assert_allclose(kept[..., 1], voxels[:5, ::4, ::4], atol=1e-6)


def test_a_model_without_patch_tokens_is_refused():
    volume = Volume(np.zeros((2, 8, 8), np.float32), "CT")
    blind = adapter()._replace(encode=lambda pixels, normed: Tokens(pixels.mean((2, 3)), None))
    with pytest.raises(UserError, match="mine has no patch tokens, which registration needs; leave it out"):
        channels.tokens(volume, grid_of((2, 8, 8), np.ones(3)), blind, "cpu")


def test_components_are_those_of_both_volumes_inside_with_one_scale():
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(30, 30)) * np.geomspace(1, 1e-3, 30)
    found = [torch.from_numpy((rng.normal(size=(3, 4, 5, 30)) @ mixing + 7).astype(np.float32)) for _ in range(2)]
    inside = [torch.from_numpy(rng.random((3, 4, 5)) < 0.7) for _ in range(2)]
    got = channels.principal(found, inside)
    points = np.concatenate([one.numpy()[where] for one, where in zip(found, inside, strict=True)]).astype(np.float64)
    fit = PCA(24).fit(points)
    expected = fit.transform(points)
    expected /= np.sqrt((expected**2).sum(1).mean())
    mine = np.concatenate([one.numpy()[where] for one, where in zip(got, inside, strict=True)])
    assert mine.shape == expected.shape and all(
        (one[~where] == 0).all() for one, where in zip(got, inside, strict=True)
    )
    # Signs and nearly equal components are free; distances between tokens are not.
    apart = [np.linalg.norm(one[::3, None] - one[None, 1::3], axis=-1) for one in (mine, expected)]
    np.testing.assert_allclose(*apart, rtol=1e-3, atol=1e-3)
    flat = channels.principal([torch.ones(2, 2, 2, 3)], [torch.ones(2, 2, 2) > 0])
    assert torch.isfinite(flat[0]).all()


def test_channels_lie_where_the_voxels_lie_and_outside_of_the_body_is_nothing(tmp_path):
    """Pixels as a channel: the mean of the voxels about a node, scaled; the same scale for both volumes."""
    voxels, organs = scans.body(0)
    side = pairs.Side(Volume(voxels, "CT"), organs, None, None)
    grid = grid_of(scans.SHAPE, scans.SPACING)
    assert grid.nodes == (15, 21, 21)
    other = side._replace(volume=Volume(voxels[::-1].copy(), "CT"))
    fixed, moving = channels.of_pair(
        pairs.Pair(side, other, scans.SPACING, True), grid, lambda v, g: channels.pixels(v, g, "cpu"), "cpu"
    )
    assert fixed.shape == moving.shape == (1, *grid.nodes)
    torch.testing.assert_close(fixed, moving.flip(1), atol=1e-4, rtol=1e-4)
    inside = channels.body(side, grid.nodes)
    assert 0.2 < inside.float().mean() < 0.6 and not fixed[0][~inside].any()
    means = channels.pixels(side.volume, grid, "cpu")[..., 0][inside]
    assert abs(np.corrcoef(fixed[0][inside], means)[0, 1]) > 1 - 1e-5
    assert float((fixed[0][inside] ** 2).mean()) == pytest.approx(1, abs=1e-3)


def test_a_mask_says_what_is_inside():
    inside = np.zeros((4, 8, 8), bool)
    inside[:2, :4, :4] = True
    side = pairs.Side(Volume(np.zeros((4, 8, 8), np.float32), "MR"), None, None, inside)
    found = channels.body(side, (2, 2, 2))
    assert found.sum() == 1 and found[0, 0, 0]
    assert channels.body(side._replace(inside=None), (2, 2, 2)).all()  # no body: everywhere
