"""Student and teacher forward, the weighted sum of the terms, and the health metrics.

Everything that DINOv2 does per GPU happens inside groups of `data.group_size` images, so nothing here depends on the
number of devices. Arrays whose rows are chunked carry a leading axis of batch shards: a chunk is then a chunk of every
device's own rows and needs no collective.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from curia2_jax.data.crops.masks import masked_per_group
from curia2_jax.losses.ibot import masked_patches
from curia2_jax.losses.targets import Targets, entropy, sinkhorn_knopp, softmax_centering, update_center
from curia2_jax.models.dino_head import DINOHead, largest_logit, last_layer_kernel
from curia2_jax.models.projector import Projector
from curia2_jax.models.vit import ViT
from curia2_jax.parallel import sharding
from curia2_jax.parallel.mesh import BATCH, batch_shards
from curia2_jax.training.recipe import Recipe
from curia2_jax.training.state import TrainState
from curia2_jax.training.terms import TERMS, Layout, Outputs, Prototypes

PyTree = Any
RANKME_IMAGES = 512  # class tokens whose singular values are taken
CLASS_TOKENS = "class_tokens"  # those, among the metrics: the only one that is no scalar
DROP_PATH_GLOBAL, DROP_PATH_LOCAL, TERM = 0, 1, 2  # uses of the step's key


@dataclasses.dataclass(frozen=True)
class Program:
    """What the program is made for, beside the arrays: none of it changes the mathematics."""

    recipe: Recipe
    mesh: Mesh | None
    platform: str
    layout: Layout

    def backbone(
        self, params: PyTree, images: Array, masks: Array | None = None, drop_path_keys: Array | None = None
    ) -> dict[str, Array]:
        """See `ViT.__call__`."""
        vit = ViT(self.recipe.model, None if self.mesh is None else BATCH, self.platform)
        return cast(dict[str, Array], vit.apply({"params": params}, images, masks, drop_path_keys=drop_path_keys))

    def head(self, params: PyTree, name: str, tokens: Array) -> Array:
        """The bottleneck of the head `name` of `params`: (n, D) -> (n, bottleneck). iBOT may share DINO's. No columns
        where the recipe has no heads."""
        if not self.recipe.distills:
            return jnp.zeros((tokens.shape[0], 0))
        config = self.recipe.ibot_head if name == "ibot" and not self.recipe.heads.shared else self.recipe.dino_head
        return cast(Array, DINOHead(config).apply({"params": self.head_params(params, name)}, tokens))

    def project(self, params: PyTree, tokens: Array) -> Array:
        """The projector of `params`: (b, V, D) -> (b, V, width), no columns where the recipe has none."""
        if not self.recipe.projects:
            return jnp.zeros((*tokens.shape[:2], 0))
        rows = Projector(self.recipe.projector).apply(
            {"params": params["projector"]}, tokens.reshape(-1, tokens.shape[-1])
        )
        return cast(Array, rows).reshape(*tokens.shape[:2], -1)

    def head_params(self, params: PyTree, name: str) -> PyTree:
        return params["dino_head" if self.recipe.heads.shared else f"{name}_head"]


def gradients(
    state: TrainState,
    crops: tuple[Array, Array],
    masks: Array,
    teacher_temp: Array,
    key: Array,
    recipe: Recipe,
    mesh: Mesh | None,
    platform: str,
) -> tuple[PyTree, dict[str, Array], dict[str, Array]]:
    """Gradients of the whole objective, the moved centers, and metrics: scalars, and CLASS_TOKENS.

    With `parallel.accumulation` > 1 the teacher sees all micro-batches first, so that Sinkhorn-Knopp and centering are
    those of the whole batch; micro-batches are whole groups, so DINO, iBOT, KoLeo and drop path are too. Only
    SigReg and the projector's batch norm are of the micro-batch.

    Args and shapes: see `step.update`.
    """
    parts, images, groups = recipe.parallel.accumulation, masks.shape[0], masks.shape[0] // recipe.data.group_size
    program = Program(recipe, mesh, platform, Layout(images // parts, groups // parts, batch_shards(mesh)))
    batch = {"global_crops": crops[0], "local_crops": crops[1], "masks": masks, "group": jnp.arange(groups)}
    micro = {name: _split(x, parts, program) for name, x in batch.items()}
    targets, centers = _targets(state, micro, teacher_temp, program) if recipe.distills else ({}, state.centers)
    done = state.step + 1
    due = (done % recipe.log.every_steps == 0) | (done == recipe.schedule.total_steps)
    loss_and_grad = jax.value_and_grad(_student_loss, has_aux=True)

    def part(number: Array | int) -> tuple[tuple[PyTree, dict[str, Array]], Array]:
        own = {name: _rows_of_part(t, number, parts) for name, t in targets.items()}
        this = {name: x[number] for name, x in micro.items()}
        (loss, (metrics, tokens)), grads = loss_and_grad(state.params, this, own, key, program)
        return (grads, {"loss": loss, **metrics}), _sample(tokens, due, mesh)

    (grads, metrics), tokens = _mean_over_parts(part, parts)
    metrics[CLASS_TOKENS] = tokens.reshape(-1, tokens.shape[-1])[:RANKME_IMAGES]
    if recipe.distills:
        metrics["teacher_entropy"] = entropy(targets["dino"], recipe.objective.chunk).mean()
        metrics["teacher_information"] = math.log(recipe.dino_head.prototypes) - metrics["teacher_entropy"]
    if "nats/dino" in metrics:
        metrics["teacher_kl"] = metrics["teacher_information"] - metrics["nats/dino"]
    return grads, centers, metrics


def _mean_over_parts(part: Callable[[Array | int], tuple[PyTree, Array]], parts: int) -> tuple[PyTree, Array]:
    """The mean of the first results of `part(0)` to `part(parts - 1)`, one after another, and all of the second."""
    if parts == 1:
        return part(0)

    def add(total: PyTree, number: Array) -> tuple[PyTree, Array]:
        means, tokens = part(number)
        return jax.tree.map(jnp.add, total, means), tokens

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(part, 0)[0])
    total, tokens = jax.lax.scan(add, zeros, jnp.arange(parts))
    return jax.tree.map(lambda x: x / parts, total), tokens


def _targets(
    state: TrainState, micro: dict[str, Array], teacher_temp: Array, program: Program
) -> tuple[dict[str, Targets], dict[str, Array]]:
    """The teacher's targets for the whole batch, {dino, ibot}, and the moved centers."""
    recipe, shards = program.recipe, program.layout.shards
    config = recipe.objective
    logits = jax.lax.map(lambda m: _teacher_logits(state.teacher, m, program), micro)
    # (parts, shards, rows, K) -> (shards, parts * rows, K)
    logits = {name: jnp.moveaxis(z, 0, 1).reshape(shards, -1, z.shape[-1]) for name, z in logits.items()}
    targets, centers = {}, dict(state.centers)
    with jax.named_scope("targets"):
        for name, z in logits.items():
            if config.centering == "sinkhorn_knopp":
                bound = largest_logit(program.head_params(state.teacher, name))
                targets[name] = sinkhorn_knopp(z, teacher_temp, config.chunk, bound=bound)
            else:
                targets[name] = softmax_centering(z, state.centers[name], teacher_temp, config.chunk)
                centers[name] = update_center(state.centers[name], z)
    return targets, centers


def _split(x: Array, parts: int, program: Program) -> Array:
    """(rows, ...) -> (parts, rows / parts, ...): each device's own rows are cut into `parts` runs of whole groups."""
    x = jnp.moveaxis(x.reshape(program.layout.shards, parts, -1, *x.shape[1:]), 1, 0)
    return sharding.spread(x.reshape(parts, -1, *x.shape[3:]), program.mesh, axis=1)


def _rows_of_part(t: Targets, number: Array | int, parts: int) -> Targets:
    rows = t.logits.shape[1] // parts
    take = lambda x: jax.lax.dynamic_slice_in_dim(x, number * rows, rows, axis=1)  # noqa: E731
    return t._replace(logits=take(t.logits), row=take(t.row))


def _masked(patches: Array, masks: Array, program: Program) -> tuple[Array, Array]:
    """The masked patches of every group and their iBOT weights.

    Args:
      patches: (2b, N, D). masks: (b, 2, N).
    Returns:
      (groups, M, D) and (groups, M), gathered inside each group.
    """
    recipe, groups = program.recipe, program.layout.groups
    count = masked_per_group(recipe.data.group_size, masks.shape[-1], recipe.masks)
    index, weight = masked_patches(masks.reshape(groups, -1, masks.shape[-1]), count)
    patches = patches.reshape(groups, -1, patches.shape[-1])
    return jnp.take_along_axis(patches, index[..., None], axis=1), weight


def _teacher_logits(teacher: PyTree, m: dict[str, Array], program: Program) -> dict[str, Array]:
    """Logits of the unmasked global crops: {dino: (shards, 2b/shards, K), ibot: (shards, rows, K)}.

    They are kept for the whole step, so in two bytes where the model computes in two: as float16, whose step near 1 is
    an eighth of bfloat16's. Divided by a temperature of 0.04, bfloat16's would be an error of 0.1 in the exponent.
    """
    mesh = program.mesh
    out = program.backbone(teacher["backbone"], m["global_crops"])
    patches, _ = _masked(out["patches"], m["masks"], program)

    def logits(name: str, tokens: Array) -> Array:
        features = program.layout.by_shard(program.head(teacher, name, tokens))
        kernel = last_layer_kernel(program.head_params(teacher, name))
        kernel = sharding.gathered(kernel, mesh).astype(features.dtype)
        accumulator = jnp.promote_types(features.dtype, jnp.float32)
        z = jnp.einsum("srb,bk->srk", features, kernel, preferred_element_type=accumulator)
        return sharding.spread(z.astype(jnp.float16 if features.dtype == jnp.bfloat16 else features.dtype), mesh)

    return {"dino": logits("dino", out["cls"]), "ibot": logits("ibot", patches.reshape(-1, patches.shape[-1]))}


def _prototypes(params: PyTree, name: str, program: Program) -> Prototypes:
    """The last layer of a head, whole on every device."""
    if not program.recipe.distills:
        return Prototypes(jnp.zeros((0, 0)), jnp.zeros(()))
    head = program.head_params(params, name)
    return Prototypes(sharding.gathered(last_layer_kernel(head), program.mesh), largest_logit(head))


def _student_outputs(
    params: PyTree, m: dict[str, Array], targets: dict[str, Targets], key: Array, program: Program
) -> Outputs:
    """One forward pass over the crops of a micro-batch; from it every term takes what it needs."""
    recipe, layout = program.recipe, program.layout

    def drop_path_keys(use: int) -> Array | None:
        own = jax.random.fold_in(key, use)
        return jax.vmap(lambda g: jax.random.fold_in(own, g))(m["group"]) if recipe.model.drop_path else None

    backbone, masks = params["backbone"], m["masks"].reshape(-1, m["masks"].shape[-1])
    out = program.backbone(backbone, m["global_crops"], masks, drop_path_keys(DROP_PATH_GLOBAL))
    local_cls = program.backbone(backbone, m["local_crops"], None, drop_path_keys(DROP_PATH_LOCAL))["cls"]

    def features(name: str, tokens: Array) -> Array:
        # Where a kernel is larger than the tokens, the partitioner for GPUs moves these, an all-to-all of half a MiB.
        # Their gradient is to come back by rows before it becomes one of all tokens, of which it would move all.
        return program.head(params, name, sharding.spread(tokens, program.mesh))

    patches, weights = _masked(out["patches"], m["masks"], program)
    class_tokens = out["cls"].reshape(layout.images, 2, -1)
    views = jnp.concatenate([class_tokens, local_cls.reshape(layout.images, recipe.crops.num_local, -1)], axis=1)
    dino = _prototypes(params, "dino", program)
    return Outputs(
        class_tokens=class_tokens,
        class_features=features("dino", out["cls"]).reshape(layout.images, 2, -1),
        local_features=features("dino", local_cls).reshape(layout.images, recipe.crops.num_local, -1),
        projections=program.project(params, sharding.spread(views, program.mesh)),
        patch_features=layout.by_shard(features("ibot", patches.reshape(-1, patches.shape[-1]))),
        patch_weights=weights.reshape(layout.shards, -1),
        dino=dino,
        ibot=dino if recipe.heads.shared else _prototypes(params, "ibot", program),
        targets=targets,
        key=jax.random.fold_in(key, TERM),
        layout=layout,
        student_temp=recipe.objective.student_temp,
        chunk=recipe.objective.chunk,
    )


def _student_loss(
    params: PyTree, m: dict[str, Array], targets: dict[str, Targets], key: Array, program: Program
) -> tuple[Array, tuple[dict[str, Array], Array]]:
    """The objective on one micro-batch; metrics that cost no second forward; (images, D) class tokens, one an image."""
    out = _student_outputs(params, m, targets, key, program)
    metrics: dict[str, Array] = {}
    loss = jnp.zeros((), jnp.promote_types(out.class_tokens.dtype, jnp.float32))
    for term in TERMS:
        config = program.recipe.objective.term(term.name)
        if config.weight:
            with jax.named_scope(f"term_{term.name}"):
                value, found = term.loss(out, config)
            loss, metrics = loss + config.weight * value, metrics | found
    tokens = jax.lax.stop_gradient(out.class_tokens[:, 0])
    metrics["feature_std"] = feature_std(tokens)
    return loss, (metrics, tokens)


def _sample(tokens: Array, due: Array, mesh: Mesh | None) -> Array:
    """The first RANKME_IMAGES tokens, whole on every device, at a step that is logged; else zeros. The host takes their
    singular values (telemetry/metrics.py): in the program they would cost TPUs a minute of compilation."""
    # Spread up to here, so that they are gathered inside the branch and not at every step.
    return jax.lax.cond(
        due,
        lambda x: sharding.whole(x[:RANKME_IMAGES], mesh),
        lambda x: jnp.zeros_like(x[:RANKME_IMAGES]),
        sharding.spread(tokens, mesh),
    )


def feature_std(tokens: Array) -> Array:
    """Mean over dimensions of the spread of unit-length (n, D) tokens, times sqrt(D): 0 is collapse, 1 isotropy."""
    unit = tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)
    return unit.std(0).mean() * jnp.sqrt(jnp.asarray(tokens.shape[-1], tokens.dtype))
