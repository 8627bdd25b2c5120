"""Teacher targets as logits and two potentials: q[s, n, k] = exp(logits[s, n, k] / temp + col[k] + row[s, n]).

Softmax centering (DINO, arXiv 2104.14294, equation 4) and Sinkhorn-Knopp (SwAV, arXiv 2006.09882, as used by DINOv2
section 4) are both of this form, so the (rows, K) probabilities are never stored: they are recomputed chunk by chunk.

Arrays are (shards, rows, K): axis 0 is split over devices, each scan step takes `chunk` rows of every shard, and only
(K,) sums cross devices. Rows need not be a multiple of `chunk`: the rest is one more, smaller step.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

Start = int | Int[Array, ""]  # the first row of a chunk
SAFE = 60.0  # exponents up to this, twice this below a shift by it, and sums of 10^8 of either stay inside float32


class Targets(NamedTuple):
    """`logits` of any float dtype; the rest in float32 or better."""

    logits: Float[Array, "shards rows K"]
    temp: Float[Array, ""]
    col: Float[Array, " K"]
    row: Float[Array, "shards rows"]


def scan_chunks(step: Callable, carry: Any, rows: int, chunk: int) -> tuple[Any, Any]:
    """`carry, out = step(carry, start, size)` over consecutive runs of `rows`, as `lax.scan` does.

    `size` is static: `chunk` in the scan, the remainder in a last step. Every leaf of `out` is
    (shards, size, ...), and they are joined to (shards, rows, ...).
    """
    chunk = min(chunk, rows)
    full, rest = divmod(rows, chunk)
    carry, outs = jax.lax.scan(lambda c, i: step(c, i * chunk, chunk), carry, jnp.arange(full))
    # (steps, shards, chunk, ...) -> (shards, steps * chunk, ...)
    outs = jax.tree.map(lambda o: jnp.moveaxis(o, 0, 1).reshape(o.shape[1], full * chunk, *o.shape[3:]), outs)
    if rest:
        carry, last = step(carry, full * chunk, rest)
        outs = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), outs, last)
    return carry, outs


def take_rows(x: Shaped[Array, "shards rows *rest"], start: Start, size: int) -> Shaped[Array, "shards {size} *rest"]:
    """`size` entries of axis 1 from `start` on."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)


def scores(targets: Targets, start: Start, size: int) -> Float[Array, "shards {size} K"]:
    """log q without the row potential, of `size` rows of each shard, in float32 or better."""
    accumulator = targets.col.dtype
    logits = take_rows(targets.logits, start, size).astype(accumulator)
    return logits / targets.temp.astype(accumulator) + targets.col.reshape(1, 1, -1)


def chunk_probabilities(targets: Targets, start: Start, size: int) -> Float[Array, "shards {size} K"]:
    """q of `size` rows of each shard from `start` on, in float32 or better."""
    return jnp.exp(scores(targets, start, size) + take_rows(targets.row, start, size)[:, :, None])


def probabilities(targets: Targets) -> Float[Array, "shards rows K"]:
    """Dense q. For tests and small uses: this is the array that training never holds."""
    return chunk_probabilities(targets, 0, targets.logits.shape[1])


def _start(logits: Array, temp: float | Array, col: Array) -> Targets:
    accumulator = jnp.promote_types(logits.dtype, jnp.float32)
    zeros = jnp.zeros(logits.shape[:2], accumulator)
    return Targets(jax.lax.stop_gradient(logits), jnp.asarray(temp, accumulator), col.astype(accumulator), zeros)


def softmax_centering(
    logits: Float[Array, "shards rows K"], center: Float[Array, " K"], temp: float | Float[Array, ""], chunk: int
) -> Targets:
    """q = softmax((z - center) / temp). No gradient."""
    accumulator = jnp.promote_types(logits.dtype, jnp.float32)
    center = jax.lax.stop_gradient(center).astype(accumulator)
    targets = _start(logits, temp, -center / jnp.asarray(temp, accumulator))

    def step(carry, start, size):
        return carry, -jax.nn.logsumexp(scores(targets, start, size), axis=-1)

    return targets._replace(row=scan_chunks(step, None, logits.shape[1], chunk)[1])


def peaks_unless(bounded: Bool[Array, ""] | None, value: float, peaks: Callable[[], Array]) -> Array:
    """`peaks()`, or `value` everywhere, without reading anything, where `bounded` says so when the program runs.

    bounded: the same on all devices; None: never.
    """
    if bounded is None:
        return peaks()
    like = jax.eval_shape(peaks)
    return jax.lax.cond(bounded, lambda: jnp.full(like.shape, value, like.dtype), peaks)


def sinkhorn_knopp(
    logits: Float[Array, "shards rows K"],
    temp: float | Float[Array, ""],
    chunk: int,
    iterations: int = 3,
    bound: Float[Array, ""] | None = None,
) -> Targets:
    """Alternate normalization of exp(z / temp): columns to 1/K each over *all* rows, then rows to 1. No gradient.

    bound: |z| <= bound to within a few percent, if one is known.

    Every sum is one reading of the logits. Only the first sum of columns and the first of rows can overflow or vanish:
    they are taken relative to maxima, two more readings, unless bound / temp is at most SAFE. Then no exp(z / temp)
    leaves float32, and no row sum after the columns, in [K exp(-2 SAFE) / rows, K], once it is multiplied by exp(SAFE).
    Where columns were normalized, rows that held 1 before hold 1 / rows at least and K at most; where rows were,
    columns that held 1 before hold 1 / K at least and the number of rows at most.
    """
    shards, rows, prototypes = logits.shape
    accumulator = jnp.promote_types(logits.dtype, jnp.float32)
    targets = _start(logits, temp, jnp.zeros((prototypes,), accumulator))
    bounded = None if bound is None else jax.lax.stop_gradient(bound) <= SAFE * targets.temp
    empty = jnp.zeros((shards, prototypes), accumulator)

    def higher(peak, start, size):
        return jnp.maximum(peak, scores(targets, start, size).max(axis=1)), None

    peak = peaks_unless(bounded, 0.0, lambda: scan_chunks(higher, jnp.full_like(empty, -jnp.inf), rows, chunk)[0])

    def first_columns(total, start, size):
        return total + jnp.exp(scores(targets, start, size) - peak[:, None, :]).sum(axis=1), None

    total, _ = scan_chunks(first_columns, empty, rows, chunk)
    highest = peak.max(axis=0)
    targets = targets._replace(col=-highest - jnp.log((total * jnp.exp(peak - highest.reshape(1, -1))).sum(axis=0)))

    def highest_of_rows(carry, start, size):
        return carry, -scores(targets, start, size).max(axis=-1)

    targets = targets._replace(
        row=peaks_unless(bounded, SAFE, lambda: scan_chunks(highest_of_rows, None, rows, chunk)[1])
    )

    def normalized(targets, start, size):
        row = take_rows(targets.row, start, size)
        return row - jnp.log(jnp.exp(scores(targets, start, size) + row[:, :, None]).sum(axis=-1))

    def rows_then_columns(mass, start, size, targets):
        row = normalized(targets, start, size)
        return mass + jnp.exp(scores(targets, start, size) + row[:, :, None]).sum(axis=1), row

    for _ in range(iterations - 1):
        mass, row = scan_chunks(functools.partial(rows_then_columns, targets=targets), empty, rows, chunk)
        targets = targets._replace(row=row, col=targets.col - jnp.log(mass.sum(axis=0)))
    _, row = scan_chunks(lambda carry, *where: (carry, normalized(targets, *where)), None, rows, chunk)
    return targets._replace(row=row)


def update_center(
    center: Float[Array, " K"], logits: Float[Array, "shards rows K"], momentum: float = 0.9
) -> Float[Array, " K"]:
    """Moving mean of teacher logits over all rows; this step's targets use the old one."""
    mean = jnp.mean(logits, axis=(0, 1), dtype=center.dtype)
    return center * momentum + jax.lax.stop_gradient(mean) * (1 - momentum)


def entropy(targets: Targets, chunk: int) -> Float[Array, "shards rows"]:
    """Entropy of every row of q in nats. The KL of a student is its cross-entropy minus this."""

    def step(carry, start, size):
        log_q = scores(targets, start, size) + take_rows(targets.row, start, size)[:, :, None]
        return carry, -jnp.sum(jnp.exp(log_q) * log_q, axis=-1)

    return scan_chunks(step, None, targets.logits.shape[1], chunk)[1]
