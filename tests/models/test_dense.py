"""How matrices and positions start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from curia2_jax.errors import UserError
from curia2_jax.models import dense, pos_embed
from curia2_jax.models.vit import ViT, ViTConfig

MODEL = {"width": 64, "depth": 3, "heads": 2, "patch_size": 4, "image_size": 32, "dtype": "float32"}


@pytest.mark.parametrize("init", dense.INITS)
def test_every_matrix_of_every_block_has_the_spread_that_is_asked_for(init):
    """By its own rows, of which the last one of the feed-forward net has more; biases are 0."""
    params = ViT(ViTConfig(**MODEL, init=init)).init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))["params"]
    blocks = flatten_dict(params["blocks"], sep="/")
    kernels = {path: np.asarray(leaf) for path, leaf in blocks.items() if path.endswith("kernel")}
    assert len(kernels) == 7
    for path, kernel in kernels.items():
        for layer in kernel:
            expected = 0.02 if init == "normal_0.02" else layer.shape[0] ** -0.5
            assert layer.std() == pytest.approx(expected, rel=0.05), path
    assert all(not leaf.any() for path, leaf in blocks.items() if path.endswith("bias"))


@pytest.mark.parametrize("rows", [32, 512])
def test_fan_in_keeps_the_variance_of_what_goes_in(rows):
    x = jax.random.normal(jax.random.key(1), (256, rows))
    y = dense.Dense(128, "float32", law="fan_in").init_with_output(jax.random.key(0), x)[0]
    assert float(y.std()) == pytest.approx(1, rel=0.05)


def test_sincos_positions_say_how_far_apart_two_patches_are():
    """The product of two entries is a sum of cosines of their distance, whichever the two are."""
    table = pos_embed.sincos(6, 32)
    frequency = 10_000.0 ** -(np.arange(8) / 8)
    rows, columns = np.divmod(np.arange(36), 6)
    for axis in (rows, columns):
        assert np.ptp(axis) == 5
    apart = [np.cos(np.subtract.outer(axis, axis)[..., None] * frequency).sum(-1) for axis in (rows, columns)]
    np.testing.assert_allclose(table @ table.T, sum(apart), atol=1e-12)
    drawn = np.asarray(pos_embed.initializer("sincos")(jax.random.key(0), (1, 37, 32)))
    np.testing.assert_allclose(drawn[0, 1:], table, atol=1e-6)
    assert 0.01 < drawn[0, 0].std() < 0.03


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"init": "xavier"}, r"init='xavier': write one of normal_0\.02, fan_in"),
        ({"position_init": "rope"}, r"position_init='rope': write one of normal, sincos"),
        ({"position_init": "sincos", "width": 66}, "width=66 is no multiple of 4"),
    ],
)
def test_another_start_is_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        ViTConfig(**MODEL | wrong)
