"""Weights of another shape become those of this config's model, by named rules: `--config.init.adapt=RULE,RULE`.

    channels:sum|mean      one channel instead of several: the sum of their patch kernels, or the mean
    patch:resample         patches of another size
    registers:new|drop     registers in another number are drawn anew, or left out
    positions:interpolate  the position table at another grid, as the model itself interpolates it
    heads:new              projection heads that do not fit are drawn anew

Pure functions on nested dicts of NumPy arrays. What no given rule serves is refused with the keys that would fit.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from curia2_jax.errors import UserError
from curia2_jax.models import pos_embed
from curia2_jax.models.dino_head import HeadConfig
from curia2_jax.models.projector import ProjectorConfig
from curia2_jax.models.vit import ViTConfig

Tree = dict[str, Any]
RULES = {
    "channels": ("sum", "mean"),
    "patch": ("resample",),
    "registers": ("new", "drop"),
    "positions": ("interpolate",),
    "heads": ("new",),
}


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """`adapt`: what may be done to weights of `init_from` that have another shape; "" for nothing."""

    adapt: str

    def __post_init__(self):
        given = [rule.strip() for rule in self.adapt.split(",") if rule.strip()]
        known = [f"{kind}:{how}" for kind, ways in RULES.items() for how in ways]
        if wrong := [rule for rule in given if rule not in known]:
            raise UserError(f"adapt={self.adapt!r}: {wrong[0]} is no rule; write some of {', '.join(known)}")
        if len({rule.partition(":")[0] for rule in given}) < len(given):
            raise UserError(f"adapt={self.adapt!r}: two rules of one kind; write one of them")

    @property
    def rules(self) -> dict[str, str]:
        """{"patch": "resample"} of every rule that was given."""
        pairs = (rule.strip().partition(":") for rule in self.adapt.split(",") if rule.strip())
        return {kind: how for kind, _, how in pairs}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Weights that fit, and what was done to them, a phrase each."""

    params: Tree  # without what is to be drawn anew
    adapted: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Misfit:
    """A trait that the weights and this config do not share."""

    key: str  # of the config, e.g. "model.patch_size"
    found: object
    wanted: object
    rule: str  # that would serve it, e.g. "patch:resample"; "": none would
    writable: bool = True  # whether `found` can be written at `key`

    def __str__(self) -> str:
        ways = [f"--config.{self.key}={self.found}"] if self.writable else []
        ways += [self.rule] if self.rule else []
        name = self.key.rpartition(".")[2]
        return f"{name} is {self.found} there, {self.wanted} here (write {' or '.join(ways)})"


def one_channel(kernel: Float[np.ndarray, "P P C D"], how: str) -> Float[np.ndarray, "P P 1 D"]:
    """The patch kernel for one channel; the dtype is kept.

    The sum gives a gray image in all channels the tokens that it had; it is timm's rule (`adapt_input_conv`). The mean
    gives a third of that from three channels.
    """
    wide = kernel.astype(np.float64)
    return (wide.sum(2, keepdims=True) if how == "sum" else wide.mean(2, keepdims=True)).astype(kernel.dtype)


def resampled(kernel: Float[np.ndarray, "P P C D"], size: int) -> Float[np.ndarray, "{size} {size} C D"]:
    """The patch kernel for patches of `size` x `size` pixels; the dtype is kept.

    With R the antialiased bicubic resize of a patch, the new kernel is the pseudo-inverse of R transposed times the
    old one: a larger patch that was resized from a smaller one has the same token. FlexiViT (arXiv 2212.08013), and
    timm's `resample_patch_embed`. R is the Kronecker product of one matrix with itself, and so is its inverse.
    """
    inverse = np.linalg.pinv(pos_embed.weights("antialias", kernel.shape[0], size).T)
    return np.einsum("pi,qj,ijcd->pqcd", inverse, inverse, kernel.astype(np.float64), optimize=True).astype(
        kernel.dtype
    )


def traits(backbone: Tree) -> dict[str, Any]:
    """What the arrays of a backbone say of the model, by the names of `ViTConfig` and `grid`.

    Raises:
      KeyError, ValueError: they are not those of a backbone.
    """
    patch, _, channels, width = backbone["patch_embed"]["kernel"].shape
    registers, table = (backbone.get(name) for name in ("register_tokens", "pos_embed"))
    places: dict[str, Any] = {"positions": "rope"}
    if table is not None:
        places = {"positions": "learned", "grid": math.isqrt(table.shape[1] - 1)}
    return places | {
        "width": width,
        "depth": jax.tree.leaves(backbone["blocks"])[0].shape[0],
        "ffn": "swiglu" if "gate" in backbone["blocks"]["ffn"] else "mlp",
        "patch_size": patch,
        "in_channels": channels,
        "registers": 0 if registers is None else registers.shape[1],
    }


def backbone_misfits(found: Mapping[str, Any], model: ViTConfig) -> list[Misfit]:
    """Where a backbone is not that of `model`. `found`: `traits`, and `heads` where that is known."""
    misfits = [
        Misfit(f"model.{key}", found[key], getattr(model, key), "")
        for key in ("width", "depth", "heads", "ffn", "positions")
        if found.get(key, getattr(model, key)) != getattr(model, key)
    ]
    if found["in_channels"] != model.in_channels:
        misfits.append(Misfit("model.in_channels", found["in_channels"], model.in_channels, "channels:sum", False))
    if found["patch_size"] != model.patch_size:
        misfits.append(Misfit("model.patch_size", found["patch_size"], model.patch_size, "patch:resample"))
    if found["registers"] != model.registers:
        rule = "registers:new" if model.registers else "registers:drop"
        misfits.append(Misfit("model.registers", found["registers"], model.registers, rule))
    if found.get("grid", model.grid) != model.grid and not model.rotary:
        sides = found["grid"] * found["patch_size"], model.image_size
        same_patch = found["patch_size"] == model.patch_size
        misfits.append(Misfit("crops.global_size", *sides, "positions:interpolate", same_patch))
    return misfits


def head_misfits(params: Tree, heads: Mapping[str, HeadConfig | ProjectorConfig]) -> dict[str, list[Misfit]]:
    """Where each module of `params` but the backbone is not that of `heads`, which has those of this config alone."""
    misfits: dict[str, list[Misfit]] = {}
    for name in params.keys() - {"backbone"}:
        if name in heads:
            found = _head_traits(params[name], heads[name])
            misfits[name] = [
                Misfit(_head_key(name, key), value, getattr(heads[name], key), "heads:new")
                for key, value in found.items()
                if value != getattr(heads[name], key)
            ]
        elif name == "ibot_head" and "dino_head" in heads:
            misfits[name] = [Misfit("heads.shared", False, True, "heads:new")]
        else:
            misfits[name] = [Misfit(name, "present", "absent", "heads:new", writable=False)]
    return {name: misfits[name] for name in sorted(misfits) if misfits[name]}


def _head_traits(head: Tree, wanted: HeadConfig | ProjectorConfig) -> dict[str, Any]:
    """What the arrays of a head say, by the names of its config."""
    kernels = [head[name]["kernel"].shape for name in sorted(head) if name.startswith("mlp_")]
    found = {"layers": len(kernels), "hidden": kernels[0][-1] if len(kernels) > 1 else wanted.hidden}
    if isinstance(wanted, ProjectorConfig):
        return found | {"width": kernels[-1][-1]}
    last = head["last_layer"]
    prototypes = jax.tree.leaves(last)[0].shape[-1]
    return found | {"bottleneck": kernels[-1][-1], "prototypes": prototypes, "weight_norm": "v" in last}


def _head_key(name: str, key: str) -> str:
    """The key of this config for a field of a head's own."""
    own = key in ("bottleneck", "prototypes", "width")
    return f"heads.{name.removesuffix('_head')}_{key}" if own else f"heads.{key}"


def fit(
    params: Tree,
    known: Mapping[str, Any],
    model: ViTConfig,
    heads: Mapping[str, HeadConfig | ProjectorConfig],
    rules: Mapping[str, str],
) -> Fitted:
    """The weights as this config's model has them.

    Args:
      params: {backbone[, dino_head, ibot_head, projector]}, NumPy. known: traits that arrays do not show (`heads`).
      heads: the configs of this recipe's heads, by the names of the trees.
      rules: `InitConfig.rules`.
    Raises:
      UserError: a trait that none of `rules` serves; all such in one line, with what to write.
    """
    backbone = dict(params["backbone"])
    found = {**traits(backbone), **known}
    misfits, unfit = backbone_misfits(found, model), head_misfits(params, heads)
    every = misfits + [one for several in unfit.values() for one in several]
    if refused := [one for one in every if not _serves(rules, one.rule)]:
        needed = {**rules, **dict(one.rule.split(":") for one in refused if one.rule)}
        text = ",".join(f"{kind}:{needed[kind]}" for kind in RULES if kind in needed)
        hint = f"; --config.init.adapt={text} has these rules" if any(one.rule for one in refused) else ""
        raise UserError("; ".join(map(str, refused)) + hint)
    adapted = [_apply(one, backbone, model, rules) for one in misfits]
    kept = {name: tree for name, tree in params.items() if name != "backbone" and name not in unfit}
    return Fitted({"backbone": backbone, **kept}, tuple(adapted), tuple(unfit))


def _serves(rules: Mapping[str, str], rule: str) -> bool:
    kind, _, how = rule.partition(":")
    return kind in rules and (kind == "channels" or rules[kind] == how)


def _apply(one: Misfit, backbone: Tree, model: ViTConfig, rules: Mapping[str, str]) -> str:
    """Adapts one trait in place, and says what was done."""
    kernel = backbone["patch_embed"]["kernel"]
    kind = one.rule.partition(":")[0]
    if kind == "channels":
        backbone["patch_embed"] = backbone["patch_embed"] | {"kernel": one_channel(kernel, rules[kind])}
        return f"channels: {rules[kind]} of {one.found}"
    if kind == "patch":
        backbone["patch_embed"] = backbone["patch_embed"] | {"kernel": resampled(kernel, model.patch_size)}
        return f"patch: {one.found} resampled to {one.wanted} pixels"
    if kind == "registers":
        backbone.pop("register_tokens", None)
        return f"registers: {one.found} left out, {one.wanted} drawn anew"
    table = backbone["pos_embed"]
    side = math.isqrt(table.shape[1] - 1)
    backbone["pos_embed"] = pos_embed.resize_grid(table, model.grid, model.position_form)
    return f"positions: {side} x {side} interpolated to {model.grid} x {model.grid}"
