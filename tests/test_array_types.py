"""Shapes and dtypes of the array functions are checked while the tests run."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from curia2_jax.data.crops.gaussian import from_index
from curia2_jax.losses.koleo import koleo
from curia2_jax.models.vit import gelu
from curia2_jax.training.resample import crop_and_resize


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (koleo, (jnp.zeros((4, 8)),)),
        (gelu, (jnp.zeros(4, jnp.int32),)),
        (crop_and_resize, (jnp.zeros((2, 8, 8)), jnp.zeros((2, 2), jnp.int32), jnp.zeros((3, 1, 4)), 4)),
        (from_index, (np.zeros((3, 2)), np.zeros((3, 2)), np.zeros(2))),
    ],
)
def test_a_wrong_shape_or_dtype_is_refused(function, arguments):
    with pytest.raises(jaxtyping.TypeCheckError):
        function(*arguments)
