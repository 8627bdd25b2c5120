"""What the first block does to tokens before anything is trained: whether its attention chooses and its nets speak."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from curia2_jax.models.layer_norm import LayerNorm
from curia2_jax.models.vit import Attention, Execution, FeedForward, ViT, ViTConfig, placed
from curia2_jax.parallel import compiler

UNIFORM = 0.999  # of the largest entropy: from here on no token is looked at more than another


class Signal(NamedTuple):
    """Three shares. `attention` and `ffn` before LayerScale, which a recipe may start near zero on purpose."""

    entropy: float  # of the attention weights, of that of uniform ones
    attention: float  # root mean square of the attention branch, of that of the tokens that it is added to
    ffn: float  # the same of the feed-forward branch

    def line(self) -> str:
        return (
            f"at the start: attention entropy {self.entropy:.4f} of uniform; attention adds {self.attention:.1%} and "
            f"the feed-forward net {self.ffn:.1%} of their tokens, before LayerScale"
        )

    def warning(self, model: ViTConfig) -> str:
        """What is wrong with it and what to write instead, or ""."""
        if self.entropy < UNIFORM or model.init == "fan_in":
            return ""
        digits = min(math.floor(-math.log10(max(1 - self.entropy, 1e-12))), 9)
        return (
            f"attention is uniform to {digits} digits and the blocks begin as identities: width {model.width} wants "
            "config.model.init=fan_in"
        )


def at_start(model: ViTConfig) -> Signal:
    """Of a block with the random weights that `model` asks for, on two images of white noise, in float32."""
    model = dataclasses.replace(model, depth=1, attention="xla", remat="none", dtype="float32", drop_path=0.0)
    key = jax.device_put(np.zeros(2, np.uint32))  # of this process: where several share a mesh, only one asks
    lowered = jax.jit(lambda k: _shares(jax.random.wrap_key_data(k), model)).lower(key)
    entropy, attention, ffn = lowered.compile(compiler.options_for_once(jax.default_backend()))(key)
    return Signal(float(entropy), float(attention), float(ffn))


def _shares(key: Array, model: ViTConfig) -> tuple[Array, Array, Array]:
    """`Signal` as three arrays ()."""
    images = jax.random.normal(key, (2, model.image_size, model.image_size, model.in_channels))
    params = ViT(model).init(key, images)["params"]
    block = jax.tree.map(lambda a: a[0], params["blocks"])
    silent = {name: jax.tree.map(jnp.zeros_like, params["blocks"][name]) for name in ("ls1", "ls2")}
    with _noted("norm") as entered:  # behind a block that adds nothing
        ViT(model).apply({"params": params | {"blocks": params["blocks"] | silent}}, images)
    x = entered["norm"][0]
    execution = Execution(None, "cpu", "xla", x.shape[1], (model.grid, model.grid))
    norm = LayerNorm(model.dtype, model.norm_eps)
    with _noted("query", "key") as made:
        normed = norm.apply({"params": block["norm1"]}, x)
        attention = cast(Array, Attention(model, execution).apply({"params": block["attn"]}, normed))
    x_ffn = x + attention * block["ls1"]["gamma"].reshape(1, 1, -1)
    normed = norm.apply({"params": block["norm2"]}, x_ffn)
    ffn = cast(Array, FeedForward(model, execution).apply({"params": block["ffn"]}, normed))
    query, keys = (
        placed(made[name][1], model, execution.grid).reshape(*x.shape[:2], model.heads, -1) for name in ("query", "key")
    )
    scores = jnp.einsum("bthd,bshd->bhts", query, keys) / math.sqrt(query.shape[-1])
    weights = jax.nn.softmax(scores)
    entropy = -(weights * jax.nn.log_softmax(scores)).sum(-1).mean() / math.log(x.shape[1])
    return entropy, _size(attention) / _size(x), _size(ffn) / _size(x_ffn)


def _size(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(x * x))


@contextlib.contextmanager
def _noted(*names: str) -> Iterator[dict[str, tuple[Array, Array]]]:
    """(first argument, result) of every module of one of these names that is called inside."""
    seen: dict[str, tuple[Array, Array]] = {}

    def note(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.module.name in names:
            seen[context.module.name] = args[0], out
        return out

    with nn.intercept_methods(note):
        yield seen
