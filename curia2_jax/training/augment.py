"""From stored slices and boxes to normalized, augmented crops, on the device."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from curia2_jax.training.recipe import AugmentConfig, Window
from curia2_jax.training.resample import THREE_PASSES, crop_and_resize

EPS = 1e-6  # of the z-score; a constant slice is only centered
CT_AIR = -1000.0  # HU
BLUR_REACH = 4  # taps of the blur on either side of a pixel


def slice_statistics(
    slices: Float[Array, "B S S"], extent: Int[Array, "B 2"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Mean and standard deviation over the true extent, in two passes."""
    canvas = slices.shape[-1]
    inside = (jnp.arange(canvas)[None, :, None] < extent[:, 0, None, None]) & (
        jnp.arange(canvas)[None, None, :] < extent[:, 1, None, None]
    )
    count = jnp.maximum(extent[:, 0] * extent[:, 1], 1).astype(slices.dtype)
    mean = jnp.where(inside, slices, 0.0).sum((1, 2)) / count
    deviation = jnp.where(inside, slices - mean[:, None, None], 0.0)
    return mean, jnp.sqrt(jnp.square(deviation).sum((1, 2)) / count)


def z_score(crops: Array, mean: Array, std: Array) -> Array:
    """(x - mean) / std, or only centered where the spread vanishes. All (..., 1, 1)-broadcastable to `crops`."""
    return (crops - mean) / jnp.where(std < EPS, 1.0, std)


def clip_ct(x: Float[Array, " B *rest"], is_ct: Bool[Array, " B"], window: Window = ()) -> Float[Array, " B *rest"]:
    """CT is clipped to the window (lowest, highest HU), without one below air; MR has no such bounds."""
    low, high = window or (CT_AIR, None)
    return jnp.where(is_ct.reshape((-1,) + (1,) * (x.ndim - 1)), jnp.clip(x, low, high), x)


def blur_weights(sigma: Float[Array, " V"], size: int) -> Float[Array, "V {size} {size}"]:
    """The 9-tap Gaussian of `sigma` pixels with mirrored borders as a matrix, of which each row sums to 1.

    size: at least BLUR_REACH + 1. A pixel stands once where it is and once beyond each border that mirrors it.
    """
    spread = jnp.maximum(sigma, 1e-3).reshape(-1, 1, 1)

    def gaussian(distance: Array) -> Array:
        return jnp.exp(-0.5 * jnp.square(distance[None].astype(jnp.float32) / spread))

    out, pixel, last = jnp.arange(size)[:, None], jnp.arange(size)[None, :], size - 1
    above = jnp.where(pixel > 0, pixel + out, size)
    below = jnp.where(pixel < last, 2 * last - pixel - out, size)
    distances = jnp.abs(pixel - out), above, below
    weights = sum(jnp.where(d[None] <= BLUR_REACH, gaussian(d), 0.0) for d in distances)
    return weights / gaussian(jnp.arange(-BLUR_REACH, BLUR_REACH + 1)[None, :]).sum(-1, keepdims=True)


def gaussian_blur(crops: Float[Array, "V R R"], sigma: Float[Array, " V"]) -> Float[Array, "V R R"]:
    """Separable 9-tap Gaussian of `sigma` pixels, borders mirrored; 0 leaves a crop as it is."""
    weights = blur_weights(sigma, crops.shape[1])
    tall = jnp.einsum("vrs,vst->vrt", weights, crops, precision=THREE_PASSES)
    return jnp.einsum("vrt,vct->vrc", tall, weights, precision=THREE_PASSES)


def augment(
    crops: Float[Array, "V R R"],
    mean: Float[Array, ""],
    std: Float[Array, ""],
    blur_rates: Float[Array, " V"],
    key: Key[Array, ""],
    c: AugmentConfig,
) -> Float[Array, "V R R"]:
    """Gamma, z-score, brightness, contrast, blur, noise, in this order, for the crops of one image.

    Args:
      crops: CT already clipped. mean, std: of the slice. key: of this image.
    """
    views = crops.shape[0]
    draw_key, noise_key = jax.random.split(key)
    drawn = jax.random.uniform(draw_key, (10, views))[..., None, None]  # (10, V, 1, 1)

    def happens(i: int, rate: float | Array) -> Array:
        return drawn[i] < rate

    def between(i: int, low: float, high: float) -> Array:
        return low + (high - low) * drawn[i]

    low, high = crops.min((1, 2), keepdims=True), crops.max((1, 2), keepdims=True)
    exponent = jnp.power(c.gamma, between(0, -1.0, 1.0))
    unit = jnp.clip((crops - low) / jnp.maximum(high - low, EPS), 0.0, 1.0)
    bent = low + (high - low) * jnp.power(unit, exponent)
    crops = jnp.where(happens(1, c.gamma_rate), bent, crops)

    if c.normalize == "crop":
        mean, std = crops.mean((1, 2), keepdims=True), crops.std((1, 2), keepdims=True)
    else:
        mean, std = jnp.full((1, 1, 1), mean), jnp.full((1, 1, 1), std)
    crops = z_score(crops, mean, std)

    crops = jnp.where(happens(2, c.brightness_rate), crops + between(3, -c.brightness, c.brightness), crops)
    center = crops.mean((1, 2), keepdims=True)
    stretched = center + between(4, 1.0 - c.contrast, 1.0 + c.contrast) * (crops - center)
    crops = jnp.where(happens(5, c.contrast_rate), stretched, crops)
    blurred = gaussian_blur(crops, between(6, *c.blur_sigma)[:, 0, 0])
    crops = jnp.where(happens(7, blur_rates[:, None, None]), blurred, crops)
    noise = between(8, 0.0, c.noise) * jax.random.normal(noise_key, crops.shape)
    return jnp.where(happens(9, c.noise_rate), crops + noise, crops)


def crops_of(
    batch: dict[str, Array], key: Key[Array, ""], c: AugmentConfig, global_size: int, local_size: int
) -> tuple[Float[Array, "globals R R 1"], Float[Array, "locals r r 1"]]:
    """All crops of a batch, global and local, image-major.

    Args:
      batch: `slices` (B, S, S) int16, `extent` (B, 2), `global_boxes` (B, 2, 4), `local_boxes` (B, L, 4),
        `flips` (B, 2 + L) bool: columns reversed, `is_ct` (B,) bool.
      key: of this step; folded by row, so that a row's draws do not depend on the batch around it.
    """
    slices = clip_ct(batch["slices"].astype(jnp.float32), batch["is_ct"], c.window)
    rows = slices.shape[0]
    mean, std = slice_statistics(slices, batch["extent"])
    # Cropping comes before clipping, as in the published processor: bicubic overshoot is clipped too.
    raw = batch["slices"].astype(jnp.float32)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))

    def cut(boxes: Array, flips: Array, size: int, blur_rates: Array, use: int) -> Array:
        crops = clip_ct(crop_and_resize(raw, batch["extent"], boxes, size), batch["is_ct"], c.window)
        crops = jnp.where(flips[..., None, None], crops[..., ::-1], crops)
        one = lambda x, m, s, k: augment(x, m, s, blur_rates, jax.random.fold_in(k, use), c)  # noqa: E731
        return jax.vmap(one)(crops, mean, std, keys).reshape(-1, size, size, 1)

    local_rates = jnp.full(batch["local_boxes"].shape[1], c.blur_rate[2])
    return (
        cut(batch["global_boxes"], batch["flips"][:, :2], global_size, jnp.asarray(c.blur_rate[:2]), 0),
        cut(batch["local_boxes"], batch["flips"][:, 2:], local_size, local_rates, 1),
    )
