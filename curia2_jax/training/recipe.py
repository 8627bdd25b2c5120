"""From a config to one frozen dataclass a section: a wrong key or value stops a run before anything is compiled."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from curia2_jax.data.crops.batches import DataConfig
from curia2_jax.data.crops.boxes import CropsConfig
from curia2_jax.data.crops.masks import MasksConfig
from curia2_jax.errors import UserError
from curia2_jax.models.dino_head import HeadConfig
from curia2_jax.models.vit import ViTConfig
from curia2_jax.parallel.mesh import ParallelConfig
from curia2_jax.training.checkpoints import CheckpointConfig
from curia2_jax.training.objective import ObjectiveConfig
from curia2_jax.training.optimizer import OptimConfig
from curia2_jax.training.schedules import ScheduleConfig
from curia2_jax.training.views import ViewsConfig


@dataclasses.dataclass(frozen=True)
class HeadsConfig:
    """The two projection heads; a shared one has the DINO head's sizes."""

    shared: bool
    dino_prototypes: int
    dino_bottleneck: int
    ibot_prototypes: int
    ibot_bottleneck: int
    hidden: int
    layers: int
    weight_norm: bool


@dataclasses.dataclass(frozen=True)
class LogConfig:
    every_steps: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole training run, immutable and hashable."""

    seed: int
    init_from: str
    data: DataConfig
    crops: CropsConfig
    masks: MasksConfig
    views: ViewsConfig
    model: ViTConfig
    heads: HeadsConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    log: LogConfig

    @property
    def dino_head(self) -> HeadConfig:
        h = self.heads
        return HeadConfig(h.dino_prototypes, h.dino_bottleneck, h.hidden, h.layers, h.weight_norm, self.model.dtype)

    @property
    def ibot_head(self) -> HeadConfig:
        h = self.heads
        if h.shared:
            return self.dino_head
        return HeadConfig(h.ibot_prototypes, h.ibot_bottleneck, h.hidden, h.layers, h.weight_norm, self.model.dtype)


def recipe_from(config: Mapping[str, Any]) -> Recipe:
    """Builds the recipe of a nested config (a ConfigDict's `to_dict()`, or a run's config.json).

    Raises:
      UserError: a missing, unknown or mistyped key, with its full name; or values that do not fit together.
    """
    config = dict(config)
    total_steps = _value("config.total_steps", config.pop("total_steps", None), int)
    fields = typing.get_type_hints(Recipe)
    _known("config", config, fields)
    sections: dict[str, Any] = {}
    for name, kind in fields.items():
        if not dataclasses.is_dataclass(kind):
            sections[name] = _value(f"config.{name}", config[name], kind)
            continue
        values = dict(config[name])
        if kind is ScheduleConfig:
            values["total_steps"] = total_steps
        if kind is ViTConfig:
            values["image_size"] = sections["crops"].global_size
            _whole_patches(sections["crops"], values)
        types_of = typing.get_type_hints(kind)
        _known(f"config.{name}", values, types_of)
        typed = {key: _value(f"config.{name}.{key}", values[key], types_of[key]) for key in types_of}
        try:
            sections[name] = kind(**typed)
        except UserError as e:  # a section's own check names its key
            raise UserError(f"config.{name}.{e}") from e
    recipe = Recipe(**sections)
    _check(recipe)
    return recipe


def _whole_patches(crops: CropsConfig, model: Mapping[str, Any]) -> None:
    patch = _value("config.model.patch_size", model.get("patch_size"), int)
    for key in ("global_size", "local_size"):
        size = getattr(crops, key)
        if size <= 0 or size % patch:
            near = max(round(size / patch), 1) * patch
            raise UserError(f"config.crops.{key}: {size} is no multiple of the patch size {patch}; write {near}")


def _known(where: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for key in found:
        if key not in expected:
            near = difflib.get_close_matches(key, expected, 1)
            raise UserError(
                f"{where}.{key}: unknown key; "
                + (f"did you mean {near[0]}?" if near else f"write one of {', '.join(expected)}")
            )
    for key in expected:
        if key not in found:
            raise UserError(f"{where}.{key}: missing; configs/common.py has its default")


def _value(where: str, value: Any, kind: Any) -> Any:
    """`value` as `kind` (int, float, bool, str, a tuple of those, or one of a Literal), or one line about it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if value not in args:
            raise UserError(f"{where}: found {value!r}; write one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or (args[-1] is not ... and len(value) != len(args)):
            raise UserError(f"{where}: found {value!r}; write {len(args)} numbers in parentheses")
        inner = [args[0]] * len(value) if args[-1] is ... else args
        return tuple(_value(where, v, k) for v, k in zip(value, inner, strict=True))
    if origin in (types.UnionType, typing.Union):
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(
            f"{where}: found {value!r} ({type(value).__name__}); write {'an' if kind is int else 'a'} {kind.__name__}"
        )
    return value


def _one_of(where: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{where}: found {value!r}; write one of {', '.join(map(repr, choices))}")


def _check(r: Recipe) -> None:
    """What the types cannot say."""
    _one_of("config.views.normalize", r.views.normalize, ("slice", "crop"))
    _one_of("config.objective.centering", r.objective.centering, ("sinkhorn_knopp", "softmax_centering"))
    _one_of("config.objective.regularizer", r.objective.regularizer, ("sigreg", "koleo", "none"))
    _one_of("config.objective.sigreg_placement", r.objective.sigreg_placement, ("backbone", "head"))
    if r.data.global_batch % r.data.group_size:
        near = max(round(r.data.global_batch / r.data.group_size), 1) * r.data.group_size
        raise UserError(
            f"config.data.global_batch: {r.data.global_batch} is no multiple of data.group_size {r.data.group_size}; "
            f"write {near}"
        )
    for key in ("checkpoint.every_steps", "log.every_steps", "schedule.total_steps", "parallel.accumulation"):
        section, name = key.split(".")
        if getattr(getattr(r, section), name) < 1:
            raise UserError(f"config.{key}: found {getattr(getattr(r, section), name)}; write 1 or more")
