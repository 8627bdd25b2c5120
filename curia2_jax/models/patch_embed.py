"""Patches become tokens: non-overlapping squares of the image times one kernel."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from curia2_jax.models.dense import wide


class PatchEmbed(nn.Module):
    """Non-overlapping patches times one kernel, row-major.

    The stride equals the kernel, so the convolution is a reshape and a matmul. PyTorch's default init of Conv2d.
    """

    patch_size: int
    width: int
    dtype: str

    @nn.compact
    def __call__(self, images: Float[Array, "b H W C"]) -> Float[Array, "b N {self.width}"]:
        size, (b, height, width_px, channels) = self.patch_size, images.shape
        fan_in = channels * size * size

        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.uniform(key, shape, jnp.float32, -(fan_in**-0.5), fan_in**-0.5)

        kernel = self.param("kernel", uniform, (size, size, channels, self.width))
        bias = self.param("bias", uniform, (self.width,))
        dtype = jnp.dtype(self.dtype)
        patches = images.astype(dtype).reshape(b, height // size, size, width_px // size, size, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, fan_in)
        # Rounded to the compute dtype first: a float32 output would make both matmuls of the backward pass float32.
        tokens = jnp.matmul(patches, kernel.reshape(fan_in, -1).astype(dtype))
        return tokens.astype(wide(dtype)) + bias.astype(wide(dtype)).reshape(1, 1, -1)
