"""The terms of the objective: one row each. The loss, its gradient, FLOPs, benchmark and curves read this list.

A new term is a function in `losses/`, a row here, and its section `config.objective.NAME` in configs/common.py.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from curia2_jax.losses.dino import dino_loss
from curia2_jax.losses.ibot import ibot_loss
from curia2_jax.losses.invariance import invariance
from curia2_jax.losses.koleo import koleo
from curia2_jax.losses.sigreg import CHUNK, expected_at_optimum, sigreg
from curia2_jax.losses.targets import Targets
from curia2_jax.models.dino_head import HeadConfig
from curia2_jax.models.projector import ProjectorConfig

SIGREG_REFERENCE_BATCH = 512  # the weight of SigReg means what it means in LeJEPA at this batch


class Layout(NamedTuple):
    """How the rows of one micro-batch lie: `images` in whole groups, split evenly over `shards` of the batch."""

    images: int
    groups: int
    shards: int

    def by_group(self, x: Array) -> Array:
        return x.reshape(self.groups, -1, *x.shape[1:])

    def by_shard(self, x: Array) -> Array:
        return x.reshape(self.shards, x.shape[0] // self.shards, *x.shape[1:])


class Prototypes(NamedTuple):
    """The last layer of a head."""

    kernel: Array  # (bottleneck, K)
    bound: Array  # (): no logit is larger, to within rounding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the student made of a micro-batch of b images, and what the teacher asks of it.

    In a run without DINO and iBOT there are no heads and no targets, in one without invariance there is no projector:
    what they would give has no columns.
    """

    class_tokens: Array  # (b, 2, D) of the global crops, after the final norm
    class_features: Array  # (b, 2, bottleneck) of the DINO head
    local_features: Array  # (b, L, bottleneck)
    projections: Array  # (b, 2 + L, width) of the projector: both global views, then the local ones
    patch_features: Array  # (shards, masked rows, bottleneck) of the iBOT head
    patch_weights: Array  # (shards, masked rows): 1 / (masked patches of the crop)
    dino: Prototypes
    ibot: Prototypes
    targets: dict[str, Targets]  # {dino, ibot}
    key: Array  # of the step
    layout: Layout = dataclasses.field(metadata={"static": True})
    student_temp: float = dataclasses.field(metadata={"static": True})
    chunk: int = dataclasses.field(metadata={"static": True})  # rows of prototype logits in float32 at a time


class Sizes(NamedTuple):
    """What the FLOPs of a term depend on, over the whole global batch."""

    images: int
    group_size: int
    num_local: int
    masked: int  # patches, of all global crops
    width: int
    dino_head: HeadConfig
    ibot_head: HeadConfig
    projector: ProjectorConfig


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A term with a weight and nothing else. A weight of 0 leaves it out."""

    weight: float


@dataclasses.dataclass(frozen=True)
class SigRegConfig:
    weight: float  # times 512 / batch, so that it means the same at any batch; 0 leaves it out
    # Class tokens after the final norm, or the DINO head's bottleneck, both of global views; or projections of all.
    placement: Literal["backbone", "head", "projector"]
    directions: int
    knots: int
    t_max: float


class Term(NamedTuple):
    """`loss` gives the unweighted value () and metrics; `flops` the matrix products of a step, forward and backward, by
    part; `curve` is a panel of the run's picture: its title and the metrics in it. In a new term all that `config` has
    beside `weight` has a default, so that runs that are older than the term go on without it."""

    name: str
    config: type
    loss: Callable[[Outputs, Any], tuple[Array, dict[str, Array]]]
    flops: Callable[[Sizes, Any], dict[str, float]]
    curve: tuple[str, tuple[str, ...]]


def _dino(out: Outputs, _: Weighted) -> tuple[Array, dict[str, Array]]:
    per_shard = (out.layout.shards, out.layout.images // out.layout.shards)
    loss, parts = dino_loss(
        out.class_features.reshape(*per_shard, 2, -1),
        out.local_features.reshape(*per_shard, *out.local_features.shape[1:]),
        out.dino.kernel, out.targets["dino"], temp=out.student_temp, chunk=out.chunk, bound=out.dino.bound,
    )  # fmt: skip
    # The pairs of global crops, each of which weighs 1 / (2 + max(2 L, 1)) of an image: their mean cross-entropy.
    cross_entropy = parts["dino_global"] * (2 + max(2 * out.local_features.shape[1], 1)) / 2
    return loss, parts | {"nats/dino": math.log(out.dino.kernel.shape[-1]) - cross_entropy}


def _ibot(out: Outputs, _: Weighted) -> tuple[Array, dict[str, Array]]:
    loss = ibot_loss(
        out.patch_features, out.ibot.kernel, out.targets["ibot"], out.patch_weights,
        crops=2 * out.layout.images, temp=out.student_temp, chunk=out.chunk, bound=out.ibot.bound,
    )  # fmt: skip
    masked = out.patch_weights.sum() / (2 * out.layout.images)  # share of the global crops
    return loss, {"ibot": loss, "nats/ibot": math.log(out.ibot.kernel.shape[-1]) - loss / masked}


def _koleo(out: Outputs, _: Weighted) -> tuple[Array, dict[str, Array]]:
    first, second = (koleo(out.layout.by_group(out.class_tokens[:, view])) for view in (0, 1))
    loss = first + second
    return loss, {"koleo": loss}


def _invariance(out: Outputs, _: Weighted) -> tuple[Array, dict[str, Array]]:
    loss = invariance(out.projections)
    return loss, {"invariance": loss}


def _sigreg(out: Outputs, config: SigRegConfig) -> tuple[Array, dict[str, Array]]:
    tokens = out.projections if config.placement == "projector" else out.class_tokens
    if config.placement == "head":  # of unit length: N(0, I) has the root of its dimensions
        tokens = out.class_features * math.sqrt(out.class_features.shape[-1])
    statistic = sigreg(
        jnp.moveaxis(tokens, 1, 0), out.key, directions=config.directions, knots=config.knots, t_max=config.t_max
    )
    expected = jnp.asarray(expected_at_optimum(config.knots, config.t_max), statistic.dtype)
    loss = statistic * (SIGREG_REFERENCE_BATCH / out.layout.images)
    return loss, {"sigreg": statistic, "sigreg_expected": expected}


def _mlp_flops(width: int, hidden: int, layers: int, out: int) -> float:
    """Of one token, forward."""
    return sum(2.0 * a * b for a, b in itertools.pairwise([width, *[hidden] * (layers - 1), out]))


def _head_flops(name: str, width: int, head: HeadConfig, teacher: int, student: int) -> dict[str, float]:
    """A projection head and its last layer on so many tokens: the backward pass is twice the forward one."""
    tokens = teacher + 3 * student
    return {
        f"{name} head": tokens * _mlp_flops(width, head.hidden, head.layers, head.bottleneck),
        f"{name} last layer": tokens * 2.0 * head.bottleneck * head.prototypes,
    }


def _dino_flops(sizes: Sizes, _: Weighted) -> dict[str, float]:
    crops = 2 * sizes.images
    return _head_flops("dino", sizes.width, sizes.dino_head, crops, crops + sizes.num_local * sizes.images)


def _ibot_flops(sizes: Sizes, _: Weighted) -> dict[str, float]:
    return _head_flops("ibot", sizes.width, sizes.ibot_head, sizes.masked, sizes.masked)


def _koleo_flops(sizes: Sizes, _: Weighted) -> dict[str, float]:
    # Cosines inside groups, per view; the gradient goes through the chosen pairs only.
    return {"koleo": 2.0 * 2 * sizes.images * sizes.group_size * sizes.width}


def _invariance_flops(sizes: Sizes, _: Weighted) -> dict[str, float]:
    p, tokens = sizes.projector, (2 + sizes.num_local) * sizes.images
    return {"projector": 3 * tokens * _mlp_flops(sizes.width, p.hidden, p.layers, p.width)}


def _sigreg_flops(sizes: Sizes, config: SigRegConfig) -> dict[str, float]:
    views, dim = {
        "backbone": (2, sizes.width),
        "head": (2, sizes.dino_head.bottleneck),
        "projector": (2 + sizes.num_local, sizes.projector.width),
    }[config.placement]
    chunk = min(config.directions, CHUNK)
    directions = chunk * math.ceil(config.directions / chunk)  # the last chunk is computed whole
    # Forward, forward again (a chunk of projections is cheaper to make than to keep), gradient of the tokens.
    return {"sigreg": 3 * 2.0 * views * sizes.images * dim * directions}


TERMS = (
    Term("dino", Weighted, _dino, _dino_flops, ("DINO", ("dino_global", "dino_local"))),
    Term("ibot", Weighted, _ibot, _ibot_flops, ("iBOT", ("ibot",))),
    Term("koleo", Weighted, _koleo, _koleo_flops, ("KoLeo", ("koleo",))),
    Term("invariance", Weighted, _invariance, _invariance_flops, ("LeJEPA: distance between views", ("invariance",))),
    Term("sigreg", SigRegConfig, _sigreg, _sigreg_flops,
         ("SigReg beside its expectation", ("sigreg", "sigreg_expected"))),
)  # fmt: skip
