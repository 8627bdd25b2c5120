"""Gram anchoring against the DINOv3 reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax.losses.gram import gram_loss
from tests import reference

BLOCK = reference.VALUES["dinov3"]
b, p, d = np.indices((2, 9, 16)) + 1
STUDENT = np.sin(0.13 * p * d + 0.5 * b).astype(np.float32)
TEACHER = np.sin(0.17 * p * d + 0.9 * b).astype(np.float32)
NAMES = {
    "keep": "gram_default(normed,no neg removal)",
    "zero": "gram_remove_neg",
    "zero_teacher": "gram_remove_only_teacher_neg",
}


@pytest.mark.parametrize("negatives", NAMES)
@pytest.mark.parametrize("per_image", [True, False])
def test_reference(negatives, per_image):
    expected = BLOCK[f"{NAMES[negatives]}_img_level={per_image}"]

    def loss(student, teacher):
        return gram_loss(student, teacher, per_image=per_image, negatives=negatives)

    value, (gradient, teacher_gradient) = jax.jit(jax.value_and_grad(loss, (0, 1)))(STUDENT, TEACHER)
    np.testing.assert_allclose(value, expected["loss_f32"], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(gradient), expected["grad_l2"], rtol=1e-4)
    assert not np.asarray(teacher_gradient).any()


def test_equal_patches_have_no_loss():
    assert gram_loss(jnp.asarray(STUDENT), jnp.asarray(3 * STUDENT)) < 1e-12


def test_unknown_option():
    with pytest.raises(ValueError, match="'clip'"):
        gram_loss(STUDENT, TEACHER, negatives="clip")
