"""Gram anchoring: the student keeps the patch similarities of an earlier teacher (DINOv3, arXiv 2508.10104)."""

import jax
import jax.numpy as jnp


def gram_loss(student: jax.Array, teacher: jax.Array, *, per_image: bool = True, negatives: str = "keep") -> jax.Array:
    """Mean squared difference of the cosine matrices of patches (images, N, D): () float32 or better.

    ``per_image=False`` compares patches across all images. ``negatives``: "keep", "zero" (negative cosines of both
    are set to 0) or "zero_teacher" (the teacher's only). No gradient reaches the teacher.
    """
    if negatives not in ("keep", "zero", "zero_teacher"):
        raise ValueError(f"negatives={negatives!r}: must be 'keep', 'zero' or 'zero_teacher'")
    ours = _cosines(student, per_image)
    theirs = _cosines(jax.lax.stop_gradient(teacher), per_image)
    if negatives != "keep":
        theirs = jnp.maximum(theirs, 0)
    if negatives == "zero":
        ours = jnp.maximum(ours, 0)
    return jnp.mean((ours - theirs) ** 2)


def _cosines(x, per_image):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if not per_image:
        x = x.reshape(1, -1, x.shape[-1])
    unit = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
    return jnp.einsum("bid,bjd->bij", unit, unit, precision=jax.lax.Precision.HIGHEST)
