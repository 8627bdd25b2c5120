"""Student and teacher forward, the weighted sum of losses, and what tells that they work.

Everything that DINOv2 does per GPU happens inside groups of `data.group_size` images, so nothing here depends on the
number of devices. Arrays whose rows are chunked carry a leading axis of batch shards: a chunk is then a chunk of every
device's own rows and needs no collective.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from curia2_jax.data.masks import masked_per_group
from curia2_jax.losses.dino import dino_loss
from curia2_jax.losses.ibot import ibot_loss, masked_patches
from curia2_jax.losses.koleo import koleo
from curia2_jax.losses.sigreg import expected_at_optimum, sigreg
from curia2_jax.losses.targets import Targets, entropy, sinkhorn_knopp, softmax_centering, update_center
from curia2_jax.models.dino_head import DINOHead, largest_logit, last_layer_kernel
from curia2_jax.models.vit import ViT
from curia2_jax.parallel.mesh import BATCH, BATCH_AXES, batch_shards

if TYPE_CHECKING:
    from curia2_jax.training.recipe import Recipe
    from curia2_jax.training.state import TrainState

PyTree = Any
SIGREG_REFERENCE_BATCH = 512  # the weight of SigReg means what it means in LeJEPA at this batch
RANKME_IMAGES = 512  # class tokens whose singular values are taken
CLASS_TOKENS = "class_tokens"  # those, among the metrics: the only one that is no scalar
WHOLE = PartitionSpec()
DROP_PATH_GLOBAL, DROP_PATH_LOCAL, SIGREG = 0, 1, 2  # uses of the step's key


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    centering: str  # "sinkhorn_knopp" or "softmax_centering"
    student_temp: float
    dino_weight: float
    ibot_weight: float
    regularizer: str  # "sigreg", "koleo" or "none"
    regularizer_weight: float
    sigreg_placement: str  # "backbone": class tokens after the final norm; "head": the DINO head's bottleneck
    sigreg_slices: int
    sigreg_knots: int
    sigreg_t_max: float
    chunk: int  # rows of prototype logits in float32 at a time, on each device


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the rows of one micro-batch lie: `images` in whole groups, split evenly over `shards`."""

    images: int
    groups: int
    shards: int
    mesh: Mesh | None
    platform: str

    def by_group(self, x: Array) -> Array:
        return x.reshape(self.groups, -1, *x.shape[1:])

    def by_shard(self, x: Array) -> Array:
        return x.reshape(self.shards, -1, *x.shape[1:])

    def spread(self, x: Array, axis: int = 0) -> Array:
        """Pins an axis to the batch axes of the mesh."""
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, BATCH_AXES)))

    def gathered(self, kernel: Array) -> Array:
        """Prototypes (bottleneck, K) are sharded at rest; every device needs all of them in the loss, once and not once
        a chunk. Their gradient goes back in shards: summed whole on every device it would be twice the bytes."""
        if self.mesh is None or kernel.shape[1] % self.mesh.shape["fsdp"]:
            return kernel
        whole, shards = (NamedSharding(self.mesh, PartitionSpec(None, axis)) for axis in (None, "fsdp"))
        gather = jax.custom_vjp(lambda k: jax.lax.with_sharding_constraint(k, whole))
        gather.defvjp(lambda k: (gather(k), None), lambda _, g: (jax.lax.with_sharding_constraint(g, shards),))
        return gather(kernel)


def gradients(
    state: "TrainState",
    crops: tuple[Array, Array],
    masks: Array,
    teacher_temp: Array,
    key: Array,
    recipe: "Recipe",
    mesh: Mesh | None,
    platform: str,
) -> tuple[PyTree, dict[str, Array], dict[str, Array]]:
    """Gradients of the whole objective, the moved centres, and metrics: scalars, and CLASS_TOKENS.

    With `parallel.accumulation` > 1 the teacher sees all micro-batches first, so that Sinkhorn-Knopp and centring are
    those of the whole batch; micro-batches are whole groups, so DINO, iBOT, KoLeo and drop path are too. Only
    SigReg is of the micro-batch.

    Args and shapes: see `step.update`.
    """
    c, parts = recipe.objective, recipe.parallel.accumulation
    images, shards = masks.shape[0], batch_shards(mesh)
    layout = _Layout(images // parts, images // parts // recipe.data.group_size, shards, mesh, platform)
    micro = {
        "global_crops": crops[0],
        "local_crops": crops[1],
        "masks": masks,
        "group": jnp.arange(images // recipe.data.group_size),
    }
    micro = {name: _split(x, parts, layout) for name, x in micro.items()}

    logits = jax.lax.map(lambda m: _teacher_logits(state.teacher, m, recipe, layout), micro)
    # (parts, shards, rows, K) -> (shards, parts * rows, K)
    logits = {name: jnp.moveaxis(z, 0, 1).reshape(shards, -1, z.shape[-1]) for name, z in logits.items()}
    targets, centers = {}, dict(state.centers)
    for name, z in logits.items():
        if c.centering == "sinkhorn_knopp":
            head = state.teacher["dino_head" if recipe.heads.shared else f"{name}_head"]
            targets[name] = sinkhorn_knopp(z, teacher_temp, c.chunk, bound=largest_logit(head))
        else:
            targets[name] = softmax_centering(z, state.centers[name], teacher_temp, c.chunk)
            centers[name] = update_center(state.centers[name], z)

    den = 2 + max(2 * recipe.crops.num_local, 1)
    done = state.step + 1
    due = (done % recipe.log.every_steps == 0) | (done == recipe.schedule.total_steps)
    loss_and_grad = jax.value_and_grad(_student_loss, has_aux=True)

    def part(number: Array | int) -> tuple[tuple[PyTree, dict[str, Array]], Array]:
        batch = {name: x[number] for name, x in micro.items()}
        own = {name: _rows_of_part(t, number, parts) for name, t in targets.items()}
        (loss, (metrics, tokens)), grads = loss_and_grad(state.params, batch, own, key, recipe, layout)
        return (grads, {"loss": loss, **metrics}), _sample(tokens, due, layout)

    def add(total: PyTree, number: Array) -> tuple[PyTree, Array]:
        means, tokens = part(number)
        return jax.tree.map(jnp.add, total, means), tokens

    if parts == 1:
        (grads, metrics), tokens = part(0)
    else:
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(part, 0)[0])
        total, tokens = jax.lax.scan(add, zeros, jnp.arange(parts))
        grads, metrics = jax.tree.map(lambda x: x / parts, total)
    metrics[CLASS_TOKENS] = tokens.reshape(-1, tokens.shape[-1])[:RANKME_IMAGES]
    metrics["teacher_entropy"] = entropy(targets["dino"], c.chunk).mean()
    metrics["teacher_kl"] = metrics["dino_global"] * den / 2 - metrics["teacher_entropy"]
    return grads, centers, metrics


def _split(x: Array, parts: int, layout: _Layout) -> Array:
    """(rows, ...) -> (parts, rows / parts, ...): each device's own rows are cut into `parts` runs of whole groups."""
    x = jnp.moveaxis(x.reshape(layout.shards, parts, -1, *x.shape[1:]), 1, 0)
    return layout.spread(x.reshape(parts, -1, *x.shape[3:]), axis=1)


def _rows_of_part(t: Targets, number: Array | int, parts: int) -> Targets:
    rows = t.logits.shape[1] // parts
    take = lambda x: jax.lax.dynamic_slice_in_dim(x, number * rows, rows, axis=1)  # noqa: E731
    return t._replace(logits=take(t.logits), row=take(t.row))


def _backbone(recipe: "Recipe", layout: _Layout) -> ViT:
    return ViT(recipe.model, None if layout.mesh is None else BATCH, layout.platform)


def _masked(patches: Array, masks: Array, recipe: "Recipe", layout: _Layout) -> tuple[Array, Array]:
    """The masked patches of every group and their iBOT weights.

    Args:
      patches: (2b, N, D). masks: (b, 2, N).
    Returns:
      (groups, M, D) and (groups, M), gathered inside each group.
    """
    count = masked_per_group(recipe.data.group_size, masks.shape[-1], recipe.masks)
    index, weight = masked_patches(masks.reshape(layout.groups, -1, masks.shape[-1]), count)
    patches = patches.reshape(layout.groups, -1, patches.shape[-1])
    return jnp.take_along_axis(patches, index[..., None], axis=1), weight


def _teacher_logits(teacher: PyTree, m: dict[str, Array], recipe: "Recipe", layout: _Layout) -> dict[str, Array]:
    """Logits of the unmasked global crops: {dino: (shards, 2b/shards, K), ibot: (shards, rows, K)}.

    They are kept for the whole step, so in two bytes where the model computes in two: as float16, whose step near 1 is
    an eighth of bfloat16's. Divided by a temperature of 0.04, bfloat16's would be an error of 0.1 in the exponent.
    """
    out = _backbone(recipe, layout).apply({"params": teacher["backbone"]}, m["global_crops"])
    patches, _ = _masked(out["patches"], m["masks"], recipe, layout)
    ibot_params = teacher["dino_head" if recipe.heads.shared else "ibot_head"]

    def logits(params: PyTree, head: DINOHead, tokens: Array) -> Array:
        features = layout.by_shard(head.apply({"params": params}, tokens.reshape(-1, tokens.shape[-1])))
        kernel = layout.gathered(last_layer_kernel(params)).astype(features.dtype)
        accumulator = jnp.promote_types(features.dtype, jnp.float32)
        z = jnp.einsum("srb,bk->srk", features, kernel, preferred_element_type=accumulator)
        return layout.spread(z.astype(jnp.float16 if features.dtype == jnp.bfloat16 else features.dtype))

    return {
        "dino": logits(teacher["dino_head"], DINOHead(recipe.dino_head), out["cls"]),
        "ibot": logits(ibot_params, DINOHead(recipe.ibot_head), patches),
    }


def _student_loss(
    params: PyTree,
    m: dict[str, Array],
    targets: dict[str, Targets],
    key: Array,
    recipe: "Recipe",
    layout: _Layout,
) -> tuple[Array, tuple[dict[str, Array], Array]]:
    """The objective on one micro-batch; metrics that cost no second forward; (images, D) class tokens, one an image."""
    c, vit = recipe.objective, _backbone(recipe, layout)

    def drop_path_keys(use: int) -> Array | None:
        own = jax.random.fold_in(key, use)
        return jax.vmap(lambda g: jax.random.fold_in(own, g))(m["group"]) if recipe.model.drop_path else None

    backbone = {"params": params["backbone"]}
    masks = m["masks"].reshape(-1, m["masks"].shape[-1])
    out = vit.apply(backbone, m["global_crops"], masks, drop_path_keys=drop_path_keys(DROP_PATH_GLOBAL))
    local_cls = vit.apply(backbone, m["local_crops"], drop_path_keys=drop_path_keys(DROP_PATH_LOCAL))["cls"]

    dino_head, dino_kernel = DINOHead(recipe.dino_head), layout.gathered(last_layer_kernel(params["dino_head"]))
    features = dino_head.apply({"params": params["dino_head"]}, out["cls"])
    local_features = dino_head.apply({"params": params["dino_head"]}, local_cls)
    per_image = (layout.shards, layout.images // layout.shards)
    dino, metrics = dino_loss(
        features.reshape(*per_image, 2, -1),
        local_features.reshape(*per_image, recipe.crops.num_local, -1),
        dino_kernel, targets["dino"], temp=c.student_temp, chunk=c.chunk, bound=largest_logit(params["dino_head"]),
    )  # fmt: skip

    patches, weights = _masked(out["patches"], m["masks"], recipe, layout)
    patches = patches.reshape(-1, patches.shape[-1])
    if recipe.heads.shared:
        ibot_kernel, patch_features = dino_kernel, dino_head.apply({"params": params["dino_head"]}, patches)
    else:
        ibot_kernel = layout.gathered(last_layer_kernel(params["ibot_head"]))
        patch_features = DINOHead(recipe.ibot_head).apply({"params": params["ibot_head"]}, patches)
    ibot = ibot_loss(
        layout.by_shard(patch_features), ibot_kernel, targets["ibot"], weights.reshape(layout.shards, -1),
        crops=2 * layout.images, temp=c.student_temp, chunk=c.chunk,
        bound=largest_logit(params["dino_head" if recipe.heads.shared else "ibot_head"]),
    )  # fmt: skip

    cls = out["cls"].reshape(layout.images, 2, -1)
    loss = c.dino_weight * dino + c.ibot_weight * ibot
    metrics["ibot"] = ibot
    if c.regularizer == "koleo":
        views = [layout.by_group(cls[:, view]) for view in (0, 1)]
        metrics["koleo"] = sum(koleo(view) for view in views)
        loss += c.regularizer_weight * metrics["koleo"]
    elif c.regularizer == "sigreg":
        z = cls if c.sigreg_placement == "backbone" else features.reshape(layout.images, 2, -1)
        metrics["sigreg"] = sigreg(
            jnp.moveaxis(z, 1, 0), jax.random.fold_in(key, SIGREG),
            slices=c.sigreg_slices, knots=c.sigreg_knots, t_max=c.sigreg_t_max,
        )  # fmt: skip
        metrics["sigreg_expected"] = jnp.asarray(expected_at_optimum(c.sigreg_knots, c.sigreg_t_max), dino.dtype)
        loss += c.regularizer_weight * (SIGREG_REFERENCE_BATCH / layout.images) * metrics["sigreg"]
    tokens = jax.lax.stop_gradient(cls[:, 0])
    metrics["feature_std"] = feature_std(tokens)
    return loss, (metrics, tokens)


def _sample(tokens: Array, due: Array, layout: _Layout) -> Array:
    """The first RANKME_IMAGES tokens, whole on every device, at a step that is logged; else zeros. The host takes their
    singular values (telemetry/metrics.py): in the program they would cost TPUs a minute of compilation."""

    def first(x: Array) -> Array:
        x = x[:RANKME_IMAGES]
        return x if layout.mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, WHOLE))

    # Spread up to here, so that they are gathered inside the branch and not at every step.
    return jax.lax.cond(due, first, lambda x: jnp.zeros_like(x[:RANKME_IMAGES]), layout.spread(tokens))


def feature_std(tokens: Array) -> Array:
    """Mean over dimensions of the spread of unit-length (n, D) tokens, times sqrt(D): 0 is collapse, 1 isotropy."""
    unit = tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)
    return unit.std(0).mean() * jnp.sqrt(jnp.asarray(tokens.shape[-1], tokens.dtype))
