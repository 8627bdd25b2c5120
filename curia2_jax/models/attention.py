"""Softmax attention between all tokens of a sequence, by the kernel that suits the accelerator."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from curia2_jax.errors import UserError

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")
_CUDNN_DTYPES = ("bfloat16", "float16")
_SPLASH_TILE = 128
# Below this length the scores are small, and padding to whole tiles of 128 costs more than they do.
_SPLASH_MIN_TOKENS = 512


def choose(backend: str, dtype: str, head_dim: int, tokens: int) -> str:
    """The implementation that ``auto`` stands for: a pure function of the platform and the shapes.

    GPU: cuDNN's flash attention where it can run (16-bit, head size a multiple of 8 up to 128).
    TPU: splash attention from 512 tokens on. Everything else: plain XLA.
    """
    if backend in ("gpu", "cuda") and dtype in _CUDNN_DTYPES and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn"
    if backend == "tpu" and tokens >= _SPLASH_MIN_TOKENS and dtype in ("bfloat16", "float32"):
        return "splash"
    return "xla"


def check(implementation: str, backend: str, dtype: str, head_dim: int) -> None:
    """Raise a one-line UserError for a named implementation that cannot run here."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"attention={implementation!r}: write one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "cudnn":
        if backend not in ("gpu", "cuda"):
            raise UserError(f"attention='cudnn' needs an NVIDIA GPU, found {backend}: write 'auto' or 'xla'")
        if dtype not in _CUDNN_DTYPES:
            raise UserError(f"attention='cudnn' needs dtype bfloat16 or float16, found {dtype}: write 'auto' or 'xla'")
        if head_dim % 8 or head_dim > 128:
            raise UserError(
                f"attention='cudnn' needs a head size that is a multiple of 8, at most 128, found {head_dim}: "
                "write 'auto' or 'xla'"
            )
    if implementation == "splash" and (backend != "tpu" or dtype == "float64"):
        raise UserError(f"attention='splash' needs a TPU, not float64; found {backend}, {dtype}: write 'auto' or 'xla'")


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    implementation: str = "auto",
    batch_spec: PartitionSpec | None = None,
) -> jax.Array:
    """softmax(Q K^T / sqrt(d)) V over (batch, tokens, heads, d) arrays, in their dtype.

    The softmax is in float32, float64 for float64. ``batch_spec`` names the mesh axes of the
    batch; only ``splash`` needs it, because a Pallas kernel is not partitioned by the compiler. The result carries the
    checkpoint name "attn_out".
    """
    backend, dtype, head_dim = jax.default_backend(), query.dtype.name, query.shape[-1]
    check(implementation, backend, dtype, head_dim)
    if implementation == "auto":
        implementation = choose(backend, dtype, head_dim, query.shape[1])
    if implementation == "splash":
        return _splash_on_mesh(query, key, value, batch_spec)
    if dtype == "float64":
        out = _double(query, key, value)
    else:
        out = jax.nn.dot_product_attention(query, key, value, implementation=implementation)
    return checkpoint_name(out, "attn_out")


def _double(query, key, value):
    """Attention in float64 throughout; jax.nn.dot_product_attention rounds its scores to float32."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)


def _splash_on_mesh(query, key, value, batch_spec):
    if batch_spec is None or jax.sharding.get_abstract_mesh().empty:
        return splash_attention(query, key, value)
    spec = PartitionSpec(*batch_spec, None, None, None)
    return jax.shard_map(splash_attention, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)(query, key, value)


def splash_attention(query: jax.Array, key: jax.Array, value: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Splash attention on padded tokens: (batch, tokens, heads, d) -> the same; d <= 128.

    Tokens are padded to whole tiles; padding is a segment of its own, so real tokens never see it.
    ``interpret`` runs the kernel's Python instead of compiling it, for tests off a TPU.
    """
    tokens, heads, head_dim = query.shape[1:]
    padded = -(-tokens // _SPLASH_TILE) * _SPLASH_TILE
    kernel = _splash_kernel(heads, padded, interpret)
    segment = (jnp.arange(padded) < tokens).astype(jnp.int32)
    segments = splash.SegmentIds(q=segment, kv=segment)

    def heads_first(x):
        return jnp.pad(x, ((0, 0), (0, padded - tokens), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    # The kernel does not scale the scores.
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segments))(
        heads_first(query * head_dim**-0.5), heads_first(key), heads_first(value)
    )
    return out.transpose(0, 2, 1, 3)[:, :tokens]


def _splash_kernel(heads: int, padded: int, interpret: bool):
    block = next(size for size in (512, 384, 256, 128) if padded % size == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    mask = splash.MultiHeadMask([splash.FullMask((padded, padded))] * heads)
    make = functools.partial(splash.make_splash_mha, head_shards=1, q_seq_shards=1, interpret=interpret)
    return make(mask, block_sizes=sizes, residual_checkpoint_name="attn_out")
