"""DINOv2's vision transformer (DINOv2, arXiv 2304.07193, section 4) as a pure function of (parameters, images, masks).

Parameters are float32 and stacked over the layers on axis 0; matmuls and the residual stream are in `config.dtype`,
as in DINOv2's own half-precision runs; LayerNorm statistics, softmax, biases, LayerScale and the position table are
in `promote_types(dtype, float32)`. Float64 parameters with `dtype="float64"` give a float64 model.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float, Int, Key

from curia2_jax.errors import UserError
from curia2_jax.models import attention, pos_embed, remat, rope
from curia2_jax.models.dense import INITS, Dense, wide
from curia2_jax.models.drop_path import on_subset
from curia2_jax.models.layer_norm import EPS, LayerNorm
from curia2_jax.models.patch_embed import PatchEmbed
from curia2_jax.models.swiglu import swiglu


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape and execution of a vision transformer.

    `remat` is what `remat.policy` takes.
    `scan=False` unrolls the loop over the same stacked parameters. `interpolation` is one of
    `pos_embed.FORMS`, or "" to follow the registers as the PyTorch models do: none "size", some "antialias".
    `init` is one of `dense.INITS`, `position_init` one of `pos_embed.INITS`: how random weights are drawn.
    `positions` is "learned", a table that is added once, or "rope" (rope.py), with DINOv3's blocks: no bias of the key,
    and its eps in the LayerNorms.
    """

    width: int
    depth: int
    heads: int
    patch_size: int = 16
    in_channels: int = 1
    image_size: int = 256
    ffn: str = "swiglu"
    registers: int = 0
    layerscale: float = 1e-5
    drop_path: float = 0.0
    attention: str = "auto"
    remat: str = "dots_with_no_batch_dims_saveable"
    scan: bool = True
    dtype: str = "bfloat16"
    interpolation: str = ""
    init: str = INITS[0]
    position_init: str = pos_embed.INITS[0]
    positions: str = "learned"

    def __post_init__(self):
        if self.width % self.heads:
            raise UserError(f"heads={self.heads}: must divide width={self.width}")
        if self.image_size % self.patch_size:
            raise UserError(f"image_size={self.image_size}: must be a multiple of patch_size={self.patch_size}")
        if self.ffn not in ("swiglu", "mlp"):
            raise UserError(f"ffn={self.ffn!r}: write 'swiglu' or 'mlp'")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"drop_path={self.drop_path}: must be at least 0 and below 1")
        if self.dtype not in ("bfloat16", "float16", "float32", "float64"):
            raise UserError(f"dtype={self.dtype!r}: write 'bfloat16', 'float16', 'float32' or 'float64'")
        if self.interpolation not in ("", *pos_embed.FORMS):
            raise UserError(f"interpolation={self.interpolation!r}: write '' or one of {', '.join(pos_embed.FORMS)}")
        known_of = {"attention": attention.IMPLEMENTATIONS, "init": INITS, "position_init": pos_embed.INITS}
        known_of["positions"] = ("learned", "rope")
        for name, known in known_of.items():
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)!r}: write one of {', '.join(known)}")
        if self.position_init == "sincos" and self.width % 4:
            raise UserError(f"position_init='sincos': width={self.width} is no multiple of 4; write 'normal'")
        if self.rotary and self.width // self.heads % 4:
            raise UserError(f"positions='rope': heads of {self.width // self.heads} channels; write a multiple of 4")
        remat.policy(self.remat)

    @property
    def grid(self) -> int:
        """Side of the learned position table, in patches."""
        return self.image_size // self.patch_size

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward net: 4 D, or for SwiGLU two thirds of that, rounded up to a multiple of 8."""
        return 4 * self.width if self.ffn == "mlp" else (4 * self.width * 2 // 3 + 7) // 8 * 8

    @property
    def hidden_matrices(self) -> int:
        """Kernels of (width, hidden) in front of the hidden units: gate and up, or one."""
        return 2 if self.ffn == "swiglu" else 1

    @property
    def rotary(self) -> bool:
        return self.positions == "rope"

    @property
    def norm_eps(self) -> float:
        return 1e-5 if self.rotary else EPS

    @property
    def position_form(self) -> str:
        return self.interpolation or ("antialias" if self.registers else "size")


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exact GELU. In terms of erf, which the CPU vectorizes; jax.nn.gelu uses erfc."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where and on how many tokens a stack of blocks runs; nothing of it changes what real tokens become."""

    batch_spec: PartitionSpec | None  # mesh axes of the batch
    platform: str
    implementation: attention.Kernel
    tokens: int  # real ones; those behind them are padding
    grid: tuple[int, int]  # of the patches

    @property
    def as_rows(self) -> bool:
        """XLA contracts two axes, as the gradient of a kernel does, by way of a transposed copy on CPUs. TPUs lose a
        fifth of the step when the stack is flattened: what is kept for the backward pass then changes its layout."""
        return self.platform == "cpu"


def placed(x: Float[Array, "b T D"], config: ViTConfig, grid: tuple[int, int]) -> Float[Array, "b T D"]:
    """Queries or keys where their tokens are: turned if positions are rotary, else as they come."""
    return rope.rotate(x, config.heads, grid, 1 + config.registers) if config.rotary else x


class Attention(nn.Module):
    """Multi-head self-attention."""

    config: ViTConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "b T D"]) -> Float[Array, "b T D"]:
        config, execution = self.config, self.execution
        dense = functools.partial(Dense, config.width, config.dtype, execution.as_rows, config.init)
        query, key, value = (
            checkpoint_name(dense(biased=name != "key" or not config.rotary, name=name)(x), "qkv")
            for name in ("query", "key", "value")
        )
        query, key = (placed(one, config, execution.grid) for one in (query, key))
        mixed = attention.attention(
            query, key, value, config.heads, execution.tokens, execution.implementation, execution.batch_spec
        )
        return dense(name="out")(mixed)


class FeedForward(nn.Module):
    """Per-token net: down(silu(gate(x)) * up(x)), or fc2(gelu(fc1(x)))."""

    config: ViTConfig
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "b T D"]) -> Float[Array, "b T D"]:
        config, as_rows = self.config, self.execution.as_rows

        def hidden(name: str) -> Array:
            return checkpoint_name(Dense(config.hidden, config.dtype, as_rows, config.init, name=name)(x), "ffn_hidden")

        down = functools.partial(Dense, config.width, config.dtype, as_rows, config.init)
        if config.ffn == "swiglu":
            return down(name="down")(swiglu(hidden("gate"), hidden("up")))
        return down(name="fc2")(gelu(hidden("fc1")))


class LayerScale(nn.Module):
    """Learned per-channel factor of a residual branch (CaiT), times a constant; in float32 or better."""

    initial: float

    @nn.compact
    def __call__(self, x: Float[Array, "b T D"], factor: float) -> Float[Array, "b T D"]:
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],))
        x = x.astype(wide(x.dtype))
        return x * (gamma * factor).astype(x.dtype).reshape(1, 1, -1)


class Block(nn.Module):
    """Pre-norm residual block. One step of the scan: (tokens, layer index, keys) -> (tokens, None)."""

    config: ViTConfig
    execution: Execution

    @nn.compact
    def __call__(
        self, x: Float[Array, "b T D"], layer: Int[Array, ""], drop_path_keys: Key[Array, " groups"] | None
    ) -> tuple[Float[Array, "b T D"], None]:
        config, batch_spec = self.config, self.execution.batch_spec
        normed = functools.partial(LayerNorm, config.dtype, config.norm_eps)
        branches = (
            (normed(name="norm1"), Attention(config, self.execution, name="attn"), "ls1"),
            (normed(name="norm2"), FeedForward(config, self.execution, name="ffn"), "ls2"),
        )
        for index, (norm, net, name) in enumerate(branches):
            scale = LayerScale(config.layerscale, name=name)

            def branch(
                tokens: Array, factor: float, norm: nn.Module = norm, net: nn.Module = net, scale: nn.Module = scale
            ) -> Array:
                return scale(net(norm(tokens)), factor)

            if drop_path_keys is None or config.drop_path == 0:
                x = (x + branch(x, 1.0)).astype(x.dtype)
            else:
                keys = jax.vmap(lambda key, index=index: jax.random.fold_in(key, 2 * layer + index))(drop_path_keys)
                x = on_subset(branch, x, keys, config.drop_path)
        if batch_spec is not None:
            x = jax.lax.with_sharding_constraint(x, PartitionSpec(*batch_spec, None, None))
        return x, None


class ViT(nn.Module):
    """The backbone.

    `batch_spec` are the mesh axes of the batch, P(axes): constrains the residual stream. `platform` is what it
    will run on, "cpu", "gpu" or "tpu": decides which attention "auto" is.
    """

    config: ViTConfig
    batch_spec: PartitionSpec | None = None
    platform: str = "cpu"

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b H W C"],
        masks: Bool[Array, "b N"] | None = None,
        *,
        drop_path_keys: Key[Array, " groups"] | None = None,
    ) -> dict[str, Float[Array, "b ..."]]:
        """Final-norm tokens of images whose H and W are multiples of the patch size.

        masks: true patches are replaced by the mask token, keeping their position. drop_path_keys: drop path inside
        groups of b / groups consecutive images; None switches it off (teacher, evaluation). Returns "cls" (b, D),
        "registers" (b, R, D), "patches" (b, N, D) in `promote_types(config.dtype, float32)`.
        """
        config = self.config
        height, width, channels = images.shape[1:]
        if height % config.patch_size or width % config.patch_size or channels != config.in_channels:
            raise UserError(
                f"images of {height} x {width} x {channels}: sides must be multiples of patch_size="
                f"{config.patch_size}, channels must be in_channels={config.in_channels}"
            )
        grid = (height // config.patch_size, width // config.patch_size)
        x = self._embed(images, masks, grid)
        tokens, head_dim = x.shape[1], config.width // config.heads
        implementation = attention.resolve(
            config.attention, self.platform, config.dtype, config.heads, head_dim, tokens
        )
        # Once for all blocks. Real tokens never see the padding, and it is cut off before anything is made of it.
        x = jnp.pad(x, ((0, 0), (0, attention.padded_tokens(implementation, tokens) - tokens), (0, 0)))
        block = Block
        if config.remat != "none":
            # Inside a scan nothing can be merged with the forward pass; an unrolled loop has to forbid it.
            block = nn.remat(Block, prevent_cse=not config.scan, policy=remat.policy(config.remat))
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=config.depth,
            unroll=1 if config.scan else config.depth,
        )(config, Execution(self.batch_spec, self.platform, implementation, tokens, grid), name="blocks")
        x, _ = blocks(x, jnp.arange(config.depth), drop_path_keys)
        x = x[:, :tokens]
        x = LayerNorm(wide(config.dtype), config.norm_eps, name="norm")(x)
        first_patch = 1 + config.registers
        return {"cls": x[:, 0], "registers": x[:, 1:first_patch], "patches": x[:, first_patch:]}

    def _embed(self, images: Array, masks: Array | None, grid: tuple[int, int]) -> Float[Array, "b T D"]:
        """Patch embedding, mask token, class token, positions, then registers, which have no position."""
        config, width = self.config, self.config.width
        tokens = PatchEmbed(config.patch_size, width, config.dtype, name="patch_embed")(images)
        tiny = nn.initializers.normal(1e-6)
        cls_token = self.param("cls_token", tiny, (1, 1, width))
        mask_token = self.param("mask_token", nn.initializers.zeros, (1, width))
        if masks is not None:
            tokens = jnp.where(masks[:, :, None], mask_token.astype(tokens.dtype).reshape(1, 1, width), tokens)
        b, first = images.shape[0], cls_token.astype(tokens.dtype)
        if not config.rotary:
            law = pos_embed.initializer(config.position_init)
            table = self.param("pos_embed", law, (1, 1 + config.grid**2, width))
            position = pos_embed.interpolate(table, grid, config.position_form).astype(tokens.dtype)
            first = first + position[:, :1]
        parts = [jnp.broadcast_to(first, (b, 1, width)), tokens if config.rotary else tokens + position[:, 1:]]
        if config.registers:
            registers = self.param("register_tokens", tiny, (1, config.registers, width))
            parts.insert(1, jnp.broadcast_to(registers.astype(tokens.dtype), (b, config.registers, width)))
        return jnp.concatenate(parts, axis=1).astype(config.dtype)
