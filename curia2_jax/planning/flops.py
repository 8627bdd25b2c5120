"""Floating-point operations of one step, by part: the arithmetic that MFU and planning rest on.

Counted are matrix products (a multiply and an add are two), forward and backward, as the step needs them: nothing for
recomputation under remat, and residual branches only for the crops that drop path keeps. Patch embedding and position
interpolation are matrix products too, so there are no convolutions. Elementwise work (a few per cent) is not counted.
"""

import math

from curia2_jax.models.drop_path import subset_size
from curia2_jax.models.vit import ViTConfig
from curia2_jax.training.recipe import Recipe
from curia2_jax.training.terms import TERMS, Sizes


def kept_share(crops: int, rate: float) -> float:
    """Share of a group's crops that a residual branch computes under drop path."""
    return subset_size(crops, rate) / crops


def block(model: ViTConfig, tokens: int) -> float:
    """One transformer block on one crop of `tokens` tokens, forward: projections, attention, feed-forward net."""
    width = model.width
    matrices = 4 * width * width + (model.hidden_matrices + 1) * width * model.hidden
    return 2.0 * tokens * matrices + attention(model, tokens)


def attention(model: ViTConfig, tokens: int) -> float:
    """The two products Q K^T and P V of one block and crop, forward."""
    return 4.0 * tokens * tokens * model.width


def embedding(model: ViTConfig, patches: int) -> float:
    """Patch embedding of one crop, forward."""
    return 2.0 * patches * model.patch_size**2 * model.in_channels * model.width


def interpolation(model: ViTConfig, patches: int) -> float:
    """Resampling the position table for a grid of another size, forward; once a pass, whatever the batch."""
    side, table = math.isqrt(patches), model.grid
    if side == table or model.rotary:
        return 0.0
    return 2.0 * model.width * (side * table * table + side * side * table)


def update(recipe: Recipe, masked_per_group: int) -> dict[str, float]:
    """FLOPs of `training.step.update` on the whole global batch, by part.

    Args:
      masked_per_group: masked patches of a group of `data.group_size` images.
    """
    m, images, num_local = recipe.model, recipe.data.global_batch, recipe.crops.num_local
    groups = images // recipe.data.group_size
    passes = recipe.parallel.accumulation
    patches = {name: (getattr(recipe.crops, f"{name}_size") // m.patch_size) ** 2 for name in ("global", "local")}
    crops = {"global": 2 * images, "local": num_local * images}
    masked = groups * masked_per_group

    parts: dict[str, float] = {}
    for name, count in crops.items():
        if not count:
            continue
        tokens = patches[name] + 1 + m.registers
        blocks = count * m.depth * block(m, tokens)
        if name == "global" and recipe.distills:
            parts["teacher global"] = blocks + count * embedding(m, patches[name])
        # The backward pass is twice the forward one, but pixels need no gradient.
        kept = kept_share(count // groups, m.drop_path)
        parts[f"student {name}"] = (
            3 * kept * blocks + 2 * count * embedding(m, patches[name]) + 2 * passes * interpolation(m, patches[name])
        )

    heads = recipe.dino_head, recipe.ibot_head, recipe.projector
    sizes = Sizes(images, recipe.data.group_size, num_local, masked, m.width, *heads)
    for term in TERMS:
        config = recipe.objective.term(term.name)
        if config.weight:
            parts |= term.flops(sizes, config)
    return parts


def recomputed(recipe: Recipe) -> float:
    """What remat adds to `update`: matrix products of the student's blocks that are computed a second time."""
    m, images = recipe.model, recipe.data.global_batch
    words = {word.strip() for word in m.remat.split(",")}
    if words & {"none", "everything_saveable", "dots_saveable"}:
        return 0.0
    groups, total = images // recipe.data.group_size, 0.0
    for size, crops in ((recipe.crops.global_size, 2), (recipe.crops.local_size, recipe.crops.num_local)):
        if not crops:
            continue
        tokens = (size // m.patch_size) ** 2 + 1 + m.registers
        kept = kept_share(crops * images // groups, m.drop_path)
        again = 0.0 if "attn_out" in words else attention(m, tokens)
        if "dots_with_no_batch_dims_saveable" not in words:
            matrices = {"qkv": 3 * m.width**2, "ffn_hidden": m.hidden_matrices * m.width * m.hidden}
            saved = sum(2.0 * tokens * matrices[word] for word in words & matrices.keys())
            again += block(m, tokens) - attention(m, tokens) - saved
        total += crops * images * m.depth * kept * again
    return total


def crops(recipe: Recipe) -> float:
    """FLOPs of cutting and resizing all crops of a batch from their canvas: two products a crop, no gradient."""
    canvas, images, total = recipe.data.side, recipe.data.global_batch, 0.0
    for size, crops in ((recipe.crops.global_size, 2), (recipe.crops.local_size, recipe.crops.num_local)):
        total += images * crops * 2.0 * (size * canvas * canvas + size * size * canvas)
    return total


def mfu(flops: float, seconds: float, devices: int, peak: float) -> float:
    """Model FLOPs utilization: share of the peak of all devices that `flops` in `seconds` amounts to."""
    return flops / (seconds * devices * peak)
