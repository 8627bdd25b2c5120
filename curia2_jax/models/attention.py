"""Softmax attention between all tokens of a sequence, by the kernel that suits the accelerator."""

from typing import Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Float

from curia2_jax.errors import UserError
from curia2_jax.models import attention_tpu

Kernel = Literal["xla", "cudnn", "pallas"]
IMPLEMENTATIONS = ("auto", *get_args(Kernel))
_CUDNN_DTYPES = ("bfloat16", "float16")


def choose(platform: str, dtype: str, heads: int, head_dim: int, tokens: int) -> Kernel:
    """The implementation that `auto` stands for: a pure function of the platform and the shapes.

    GPU: cuDNN's flash attention where it can run (16-bit, head size a multiple of 8 up to 128). TPU: the kernel of
    `attention_tpu` where it can run. Everything else: plain XLA.
    """
    if platform == "gpu" and dtype in _CUDNN_DTYPES and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn"
    if platform == "tpu" and attention_tpu.supports(tokens, heads, head_dim, dtype):
        return "pallas"
    return "xla"


def check(implementation: str, platform: str, dtype: str, heads: int, head_dim: int, tokens: int) -> None:
    """Raise a one-line UserError for a named implementation that cannot run there."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"attention={implementation!r}: write one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "cudnn":
        if platform != "gpu":
            raise UserError(f"attention='cudnn' needs an NVIDIA GPU, found {platform}: write 'auto' or 'xla'")
        if dtype not in _CUDNN_DTYPES:
            raise UserError(f"attention='cudnn' needs dtype bfloat16 or float16, found {dtype}: write 'auto' or 'xla'")
        if head_dim % 8 or head_dim > 128:
            raise UserError(
                f"attention='cudnn' needs a head size that is a multiple of 8, at most 128, found {head_dim}: "
                "write 'auto' or 'xla'"
            )
    if implementation == "pallas":
        if platform != "tpu":
            raise UserError(f"attention='pallas' needs a TPU, found {platform}: write 'auto' or 'xla'")
        if not attention_tpu.supports(tokens, heads, head_dim, dtype):
            raise UserError(
                f"attention='pallas' needs heads that fill whole runs of 128, at most {attention_tpu.MAX_TOKENS} "
                f"tokens, bfloat16 or float32, found {heads} x {head_dim}, {tokens}, {dtype}: write 'auto' or 'xla'"
            )


def resolve(implementation: str, platform: str, dtype: str, heads: int, head_dim: int, tokens: int) -> Kernel:
    """`xla`, `cudnn` or `pallas` for what a config says. Raises UserError if that cannot run there."""
    check(implementation, platform, dtype, heads, head_dim, tokens)
    return (
        choose(platform, dtype, heads, head_dim, tokens) if implementation == "auto" else cast(Kernel, implementation)
    )


def padded_tokens(implementation: Kernel, tokens: int) -> int:
    """How many tokens a stack of blocks carries so that no block pads for itself.

    cuDNN through JAX: an even number, since the rule for its gradient refuses odd ones. TPU: whole sublanes, so that
    (batch, tokens, width) and (batch * tokens, width) are the same bytes.
    """
    if implementation == "cudnn":
        return tokens + tokens % 2
    return attention_tpu.padded_tokens(tokens) if implementation == "pallas" else tokens


def attention(
    query: Float[Array, "batch padded width"],
    key: Float[Array, "batch padded width"],
    value: Float[Array, "batch padded width"],
    heads: int,
    tokens: int,
    implementation: Kernel = "xla",
    batch_spec: PartitionSpec | None = None,
) -> Float[Array, "batch padded width"]:
    """softmax(Q K^T / sqrt(d)) V, width = heads * d, in the dtype of the queries.

    Of the padded tokens (`padded_tokens`) the first `tokens` are real and see only each other. The softmax is in
    float32, float64 for float64. `implementation` is what `resolve` says. `batch_spec` names the mesh axes of
    the batch; only `pallas` needs it, because the compiler does not partition such a kernel. The result carries the
    checkpoint name "attn_out", but for `cudnn`, of which a policy keeps what the kernel itself gives.
    """
    if implementation == "pallas":
        out = _pallas_on_mesh(query, key, value, heads, tokens, batch_spec)
    else:
        q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value))
        if query.dtype == jnp.float64:
            out = _double(q, k, v)
        elif query.shape[1] != tokens:
            out = with_lengths(q, k, v, tokens, implementation)
        else:
            out = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
        out = out.reshape(query.shape)
    return out if implementation == "cudnn" else checkpoint_name(out, "attn_out")


def with_lengths(
    query: Float[Array, "batch padded heads d"],
    key: Float[Array, "batch padded heads d"],
    value: Float[Array, "batch padded heads d"],
    tokens: int,
    implementation: Literal["xla", "cudnn"],
) -> Float[Array, "batch padded heads d"]:
    """Attention among the first `tokens`; the rest of the result is 0.

    The padding is zeroed on both sides of the kernel: what it reads, writes or makes of gradients there is not
    promised to be finite, and one NaN would reach real tokens through a sum over all rows of a weight's gradient.
    """
    real = (jnp.arange(query.shape[1]) < tokens).reshape(1, -1, 1, 1)
    query, key, value = (jnp.where(real, x, jnp.zeros_like(x)) for x in (query, key, value))
    lengths = jnp.full(query.shape[0], tokens, jnp.int32)
    out = jax.nn.dot_product_attention(
        query, key, value, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
    )
    return jnp.where(real, out, jnp.zeros_like(out))


def _double(query: Array, key: Array, value: Array) -> Array:
    """Attention in float64 throughout; jax.nn.dot_product_attention rounds its scores to float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


def _pallas_on_mesh(
    query: Array, key: Array, value: Array, heads: int, tokens: int, batch_spec: PartitionSpec | None
) -> Array:
    def attend(q: Array, k: Array, v: Array) -> Array:
        return attention_tpu.short_attention(q, k, v, heads, tokens)

    if batch_spec is None or jax.sharding.get_abstract_mesh().empty:
        return attend(query, key, value)
    spec = PartitionSpec(*batch_spec, None, None)
    return jax.shard_map(attend, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(query, key, value)
