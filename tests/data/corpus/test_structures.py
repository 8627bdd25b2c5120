"""Where structures lie: shares of patches beside the mean of pixels drawn finer, also where patches cut pixels."""

import numpy as np
import pytest

from curia2_jax.data.corpus import structures


@pytest.mark.parametrize("plane", ["axial", "coronal"])
@pytest.mark.parametrize("grid", [2, 4, 5])
def test_shares_are_means_over_patches(plane, grid):
    rng = np.random.default_rng(0)
    whole = rng.choice(np.array([0, 2, 7, 9], np.uint16), (6, 6, 8))
    labels = np.array([2, 9])
    position = np.array([0, 4])
    found = structures.shares({"a": whole}, np.array(["a", "a"]), np.array([plane] * 2), position, labels, grid)
    assert found.shape == (2, grid * grid, 2) and found.dtype == np.float32
    for row, number in enumerate(position):
        image = whole[number] if plane == "axial" else whole[::-1, number]
        fine = np.kron(image, np.ones((20, 20)))  # 120 x 160, which every grid divides
        cells = fine.reshape(grid, 120 // grid, grid, 160 // grid)
        for column, label in enumerate(labels):
            np.testing.assert_allclose(found[row, :, column], (cells == label).mean((1, 3)).ravel(), atol=1e-6)
