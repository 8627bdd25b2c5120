"""From a config to one frozen dataclass a section: a wrong key or value stops a run before anything is compiled."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from curia2_jax.data.crops.batches import DataConfig
from curia2_jax.data.crops.boxes import CropsConfig
from curia2_jax.data.crops.masks import MasksConfig
from curia2_jax.errors import UserError
from curia2_jax.models.dino_head import HeadConfig
from curia2_jax.models.projector import ProjectorConfig
from curia2_jax.models.vit import ViTConfig
from curia2_jax.parallel.mesh import ParallelConfig
from curia2_jax.telemetry.probing import ProbeConfig
from curia2_jax.training.adapt import InitConfig
from curia2_jax.training.earlier import RENAMED
from curia2_jax.training.terms import TERMS

Window = tuple[float, ...]  # lowest and highest HU, or ()


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Intensity augmentation. Rates are per crop; ranges are in units of the z-score unless they say otherwise."""

    window: Window  # that CT is clipped to before the z-score; (): below air only
    normalize: Literal["slice", "crop"]  # whose mean and spread the z-score takes
    gamma_rate: float
    gamma: float  # exponent log-uniform in [1/gamma, gamma], on the crop's own min-max range
    brightness_rate: float
    brightness: float  # offset uniform in [-brightness, brightness]
    contrast_rate: float
    contrast: float  # factor uniform in [1 - contrast, 1 + contrast], about the crop's mean
    blur_rate: tuple[float, float, float]  # global view 1, global view 2, local views
    blur_sigma: tuple[float, float]  # output pixels
    noise_rate: float
    noise: float  # standard deviation uniform in [0, noise]

    def __post_init__(self):
        if self.window and (len(self.window) != 2 or self.window[0] >= self.window[1]):
            raise UserError(f"window: found {self.window}; write (LOWEST, HIGHEST) in HU, or () for none")


@dataclasses.dataclass(frozen=True)
class HeadsConfig:
    """The two projection heads; a shared one has the DINO head's sizes. LeJEPA's projector is as deep and as wide."""

    shared: bool
    dino_prototypes: int
    dino_bottleneck: int
    ibot_prototypes: int
    ibot_bottleneck: int
    projector_width: int  # columns of its last layer
    hidden: int
    layers: int
    weight_norm: bool


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the terms share. Beside it stands a section for each of TERMS: config.objective.sigreg.weight."""

    centering: Literal["sinkhorn_knopp", "softmax_centering"]
    student_temp: float
    chunk: int  # rows of prototype logits in float32 at a time, on each device

    def term(self, name: str) -> Any:
        """The section of a term."""
        return getattr(self, name)


ObjectiveConfig = dataclasses.make_dataclass(
    "ObjectiveConfig", [(term.name, term.config) for term in TERMS], bases=(Objective,), frozen=True
)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW as DINOv2 groups it."""

    base_lr: float  # at 1024 images a step; scaled by the square root of the batch
    min_lr: float
    beta1: float
    beta2: float
    clip_norm: float  # of each sub-module apart
    layerwise_decay: float
    patch_embed_lr_mult: float

    def peak_lr(self, global_batch: int) -> float:
        """The learning rate at the end of the warm-up."""
        return self.base_lr * math.sqrt(global_batch / 1024)


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Steps and end points. All steps are optimizer steps, counted from 0."""

    total_steps: int
    warmup_steps: int  # of the learning rate, from 0
    freeze_last_layer_steps: int  # the prototypes' learning rate is 0 for that long
    freeze_backbone_steps: int  # the backbone, student's and teacher's, stays as it is for that long
    weight_decay: float
    weight_decay_end: float
    teacher_momentum: float
    teacher_momentum_end: float
    teacher_temp: float
    teacher_temp_start: float
    teacher_temp_warmup_steps: int


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often a run is saved, and what stays."""

    every_steps: int
    latest: int  # newest checkpoints kept
    keep_every_steps: int  # checkpoints at multiples of this are kept forever


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """What a run does about steps that are worth nothing."""

    nonfinite: Literal["stop", "skip", "rewind"]  # when a loss or a gradient is not finite, or a spike
    limit: int  # such steps that a run may have
    spike: float  # gradient norms of so many medians count as not finite; 0: none
    collapse: Literal["warn", "stop"]  # when all images get one class token


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """How often the metrics of a step are written."""

    every_steps: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole training run, immutable and hashable."""

    seed: int
    init_from: str
    init: InitConfig
    data: DataConfig
    crops: CropsConfig
    masks: MasksConfig
    augment: AugmentConfig
    model: ViTConfig
    heads: HeadsConfig
    objective: Objective
    optim: OptimConfig
    schedule: ScheduleConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig
    log: LogConfig
    probe: ProbeConfig

    @property
    def distills(self) -> bool:
        """Whether a term compares the student with the teacher. Without one there are no heads, and the teacher is
        the moving average that is evaluated and exported, and nothing else."""
        return bool(self.objective.term("dino").weight or self.objective.term("ibot").weight)

    @property
    def projects(self) -> bool:
        """Whether there is a projector."""
        return bool(self.objective.term("invariance").weight)

    @property
    def projector(self) -> ProjectorConfig:
        h, m = self.heads, self.model
        return ProjectorConfig(h.projector_width, h.hidden, h.layers, m.dtype, m.init)

    @property
    def dino_head(self) -> HeadConfig:
        h, m = self.heads, self.model
        return HeadConfig(h.dino_prototypes, h.dino_bottleneck, h.hidden, h.layers, h.weight_norm, m.dtype, m.init)

    @property
    def ibot_head(self) -> HeadConfig:
        h, m = self.heads, self.model
        if h.shared:
            return self.dino_head
        return HeadConfig(h.ibot_prototypes, h.ibot_bottleneck, h.hidden, h.layers, h.weight_norm, m.dtype, m.init)


def recipe_from(config: Mapping[str, Any]) -> Recipe:
    """Builds the recipe of a nested config (a ConfigDict's `to_dict()`, or a run's config.json).

    Raises:
      UserError: a missing, unknown or mistyped key, with its full name; or values that do not fit together.
    """
    config = dict(config)
    total_steps = _value("config.total_steps", config.pop("total_steps", None), int)
    fields = typing.get_type_hints(Recipe) | {"objective": ObjectiveConfig}
    _known("", config, fields)
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
        sections[name] = _section(name, kind, values)
    recipe = Recipe(**sections)
    _check(recipe)
    return recipe


def _section(name: str, kind: type, values: Mapping[str, Any]) -> Any:
    """One section as its dataclass."""
    types_of = typing.get_type_hints(kind)
    _known(name, values, types_of)
    typed = {key: _value(f"config.{name}.{key}", values[key], types_of[key]) for key in types_of}
    try:
        return kind(**typed)
    except UserError as e:  # a section's own check names its key
        raise UserError(f"config.{name}.{e}") from e


def _whole_patches(crops: CropsConfig, model: Mapping[str, Any]) -> None:
    patch = _value("config.model.patch_size", model.get("patch_size"), int)
    for key in ("global_size", "local_size"):
        size = getattr(crops, key)
        if size <= 0 or size % patch:
            near = max(round(size / patch), 1) * patch
            raise UserError(f"config.crops.{key}: {size} is no multiple of the patch size {patch}; write {near}")


def _known(section: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Every key is known and none is missing. `section` is "" for the config itself."""
    for key in found:
        if key in expected:
            continue
        name = f"{section}.{key}".lstrip(".")
        near = difflib.get_close_matches(key, expected, 1)
        if name in RENAMED:
            raise UserError(f"config.{name}: has another name now; write config.{RENAMED[name]}")
        raise UserError(
            f"config.{name}: unknown key; "
            + (f"did you mean {near[0]}?" if near else f"write one of {', '.join(expected)}")
        )
    for key in expected:
        if key not in found:
            raise UserError(f"config.{f'{section}.{key}'.lstrip('.')}: missing; configs/common.py has its default")


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
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _section(where.removeprefix("config."), kind, value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(
            f"{where}: found {value!r} ({type(value).__name__}); write {'an' if kind is int else 'a'} {kind.__name__}"
        )
    return value


def _check(r: Recipe) -> None:
    """What the types cannot say."""
    sigreg = r.objective.term("sigreg")
    for place, there, key in (("head", r.distills, "dino"), ("projector", r.projects, "invariance")):
        if sigreg.weight and sigreg.placement == place and not there:
            raise UserError(
                f"config.objective.sigreg.placement: found {place!r}, which this run has not; write 'backbone', or "
                f"config.objective.{key}.weight above 0"
            )
    if r.data.global_batch % r.data.group_size:
        near = max(round(r.data.global_batch / r.data.group_size), 1) * r.data.group_size
        raise UserError(
            f"config.data.global_batch: {r.data.global_batch} is no multiple of data.group_size {r.data.group_size}; "
            f"write {near}"
        )
    if r.guard.spike and not r.guard.spike > 1:
        raise UserError(f"config.guard.spike: found {r.guard.spike:g}; write more than 1, or 0 for none")
    for key in (
        "checkpoint.every_steps", "checkpoint.latest", "checkpoint.keep_every_steps", "log.every_steps",
        "schedule.total_steps", "parallel.accumulation", "guard.limit",
    ):  # fmt: skip
        section, name = key.split(".")
        if getattr(getattr(r, section), name) < 1:
            raise UserError(f"config.{key}: found {getattr(getattr(r, section), name)}; write 1 or more")
