"""Attention of whole short sequences on a TPU: a Pallas kernel that keeps every score of a head on the chip.

Queries, keys and values stay as their projections leave them, (batch, tokens, heads * d): no heads-first copy, no
padding of d to the 128 lanes. Heads that share 128 lanes are told apart by zeroing the lanes of the others in one
operand of a product, which is exact and costs the matrix unit nothing, since it works on 128 lanes anyhow. Crops of few
tokens share a program: their scores are one block-diagonal matrix. The backward pass makes the scores again instead of
reading them, so nothing of the size tokens x tokens ever goes to memory.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

LANES, SUBLANES = 128, 8
MAX_TOKENS = 2048  # beyond it the keys and values of a head want blocks of their own
_MAX_BLOCK = 384  # queries whose scores are held at once
_BLOCKS_BYTES = 12 * 2**20  # of the on-chip memory for the blocks of a program, both halves of the double buffer
_NT, _TN = (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))  # a @ b.T, a.T @ b


def query_block(tokens: int) -> int:
    """The largest divisor of `tokens` that is whole sublanes and at most 384: queries that are worked on at once."""
    return max((n for n in range(SUBLANES, min(tokens, _MAX_BLOCK) + 1, SUBLANES) if tokens % n == 0), default=SUBLANES)


def padded_tokens(tokens: int) -> int:
    """The least count of tokens, whole sublanes, that the kernel works on in blocks worth their while."""
    padded = -(-tokens // SUBLANES) * SUBLANES
    while padded > LANES and query_block(padded) < LANES:
        padded += SUBLANES
    return padded


def supports(tokens: int, heads: int, head_dim: int, dtype: str) -> bool:
    """Whether the kernel takes these shapes: d divides 128 lanes, and all heads together fill them."""
    whole_lanes = LANES % head_dim == 0 and heads * head_dim % LANES == 0
    return whole_lanes and tokens <= MAX_TOKENS and dtype in ("bfloat16", "float32")


def short_attention(
    query: Float[Array, "batch padded width"],
    key: Float[Array, "batch padded width"],
    value: Float[Array, "batch padded width"],
    heads: int,
    tokens: int,
    *,
    interpret: bool = False,
) -> Float[Array, "batch padded width"]:
    """softmax(Q K^T / sqrt(d)) V, width = heads * d, of which `tokens` are real, in the dtype of the queries.

    Padded tokens (whole sublanes in all) are not seen by real ones; what they see themselves is of no consequence.
    `interpret` runs the kernel's Python instead of compiling it, for tests off a TPU.
    """
    batch, padded, width = query.shape
    # Crops whose rows fill 128 lanes of scores together.
    group = max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * padded <= LANES))
    shape = (batch // group, group * padded, width)
    attend = functools.partial(_attention, heads, tokens, padded, interpret)
    return attend(query.reshape(shape), key.reshape(shape), value.reshape(shape)).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _attention(heads, tokens, padded, interpret, query, key, value):
    kernel = functools.partial(_forward_kernel, query.shape[2] // heads, tokens, padded)
    return _call(kernel, (query, key, value), 1, heads, interpret, "attention_forward", products=2)


def _save_inputs(heads, tokens, padded, interpret, query, key, value):
    return _attention(heads, tokens, padded, interpret, query, key, value), (query, key, value)


def _gradients(heads, tokens, padded, interpret, inputs, d_out):
    kernel = functools.partial(_backward_kernel, d_out.shape[2] // heads, tokens, padded)
    return tuple(_call(kernel, (*inputs, d_out), 3, heads, interpret, "attention_backward", products=5))


_attention.defvjp(_save_inputs, _gradients)


def _call(kernel, arrays, results, heads, interpret, name, products):
    """One program a group of crops and run of lanes; every operand and result is cut alike."""
    groups, rows, width = arrays[0].shape
    itemsize = arrays[0].dtype.itemsize
    operands = len(arrays) + results
    fits = [
        lanes
        for lanes in range(LANES, width + 1, LANES)
        if width % lanes == 0 and 2 * operands * rows * lanes * itemsize <= _BLOCKS_BYTES
    ]
    lanes = max(fits, default=LANES)
    block = pl.BlockSpec((1, rows, lanes), lambda group, lane: (group, 0, lane))
    shape = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
    scores = groups * heads * rows * rows
    return pl.pallas_call(
        kernel,
        grid=(groups, width // lanes),
        in_specs=[block] * len(arrays),
        out_specs=block if results == 1 else [block] * results,
        out_shape=shape if results == 1 else [shape] * results,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=64 * 2**20),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * LANES,
            transcendentals=scores,
            bytes_accessed=operands * math.prod(arrays[0].shape) * itemsize,
        ),
        interpret=interpret,
        name=name,
    )(*arrays)


def _seen(shape, query_axis, first, tokens, padded):
    """Which (query, key) of a block of scores belong together: real keys of the query's own crop."""
    query = jax.lax.broadcasted_iota(jnp.int32, shape, query_axis) + first
    key = jax.lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis)
    if shape[1 - query_axis] == padded:
        return key < tokens
    crop = jax.lax.div(key, padded)
    return (crop == jax.lax.div(query, padded)) & (key - crop * padded < tokens)


def _heads_of(x, head_dim):
    """Copies of (rows, 128 lanes) with the lanes of one head each, zero elsewhere."""
    if head_dim == LANES:
        return [x]
    head = jax.lax.div(jax.lax.broadcasted_iota(jnp.int32, x.shape, 1), head_dim)
    return [jnp.where(head == number, x, jnp.zeros_like(x)) for number in range(LANES // head_dim)]


def _product(a, b, dimensions=(((1,), (0,)), ((), ()))):
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _forward_kernel(head_dim, tokens, padded, query, key, value, out):
    rows, lanes = query.shape[1:]
    block, scale = query_block(rows), head_dim**-0.5
    for lane in range(0, lanes, LANES):
        here = pl.ds(lane, LANES)
        k, values = key[0, :, here], _heads_of(value[0, :, here], head_dim)
        for first in range(0, rows, block):
            queries = _heads_of(query[0, pl.ds(first, block), here], head_dim)
            seen = _seen((block, rows), 0, first, tokens, padded)
            mixed = jnp.zeros((block, LANES), jnp.float32)
            for q, v in zip(queries, values, strict=True):
                scores = jnp.where(seen, _product(q, k, _NT) * scale, -jnp.inf)
                weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
                total = weights.sum(axis=1, keepdims=True)
                mixed += _product(weights.astype(v.dtype), v) / total
            out[0, pl.ds(first, block), here] = mixed.astype(out.dtype)


def _backward_kernel(head_dim, tokens, padded, query, key, value, d_out, d_query, d_key, d_value):
    """Scores lie keys first here: two of the three products that contract over queries or keys then need no transpose,
    and the softmax sums over sublanes."""
    rows, lanes = query.shape[1:]
    block, scale = query_block(rows), head_dim**-0.5
    for lane in range(0, lanes, LANES):
        here = pl.ds(lane, LANES)
        k, v = key[0, :, here], value[0, :, here]
        keys = _heads_of(k, head_dim)
        d_k = jnp.zeros((rows, LANES), jnp.float32)
        d_v = jnp.zeros((rows, LANES), jnp.float32)
        for first in range(0, rows, block):
            now = pl.ds(first, block)
            queries, d_outs = (_heads_of(x[0, now, here], head_dim) for x in (query, d_out))
            seen = _seen((rows, block), 1, first, tokens, padded)
            d_q = jnp.zeros((block, LANES), jnp.float32)
            for q, k_own, d in zip(queries, keys, d_outs, strict=True):
                scores = jnp.where(seen, _product(k, q, _NT) * scale, -jnp.inf)
                weights = jnp.exp(scores - scores.max(axis=0, keepdims=True))
                weights = weights / weights.sum(axis=0, keepdims=True)
                d_weights = _product(v, d, _NT)
                d_scores = weights * (d_weights - (weights * d_weights).sum(axis=0, keepdims=True)) * scale
                d_scores = d_scores.astype(q.dtype)
                d_v += _product(weights.astype(d.dtype), d)
                d_k += _product(d_scores, q)
                d_q += _product(d_scores, k_own, _TN)
            d_query[0, now, here] = d_q.astype(d_query.dtype)
        d_key[0, :, here], d_value[0, :, here] = d_k.astype(d_key.dtype), d_v.astype(d_value.dtype)
