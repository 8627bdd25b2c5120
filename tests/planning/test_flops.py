"""The arithmetic of FLOPs against the products in compiled programs, and against published figures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from configs import vitg, vitl
from curia2_jax.data.crops.masks import masked_per_group
from curia2_jax.planning import flops, hlo, synthetic
from curia2_jax.training.recipe import Recipe, recipe_from
from curia2_jax.training.state import abstract_state
from curia2_jax.training.step import update
from tests.training.tiny import tiny_config

# What is counted is the partitioned and optimized program; its machine code is not looked at.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def four_layers(**changes) -> Recipe:
    return recipe_from(tiny_config(model__scan=False, model__remat="none", model__depth=4, **changes))


def masked(recipe: Recipe) -> int:
    return masked_per_group(recipe.data.group_size, recipe.model.grid**2, recipe.masks)


def counted(recipe: Recipe) -> float:
    images, c = recipe.data.global_batch, recipe.crops
    crops = tuple(
        jax.ShapeDtypeStruct((n * images, side, side, 1), jnp.float32)
        for n, side in ((2, c.global_size), (c.num_local, c.local_size))
    )
    masks = synthetic.shapes(recipe)["masks"]
    lowered = jax.jit(functools.partial(update, recipe=recipe)).lower(abstract_state(recipe), crops, masks)
    return hlo.total_flops(lowered.compile(QUICK).as_text())


def test_the_program_does_no_more_than_the_arithmetic_says():
    """Unrolled and without remat, drop path 0 and 0.4; the difference is what the dropped branches would have cost."""
    recipes = [four_layers(model__drop_path=rate) for rate in (0.0, 0.4)]
    expected = [sum(flops.update(r, masked(r)).values()) for r in recipes]
    found = [counted(r) for r in recipes]
    for e, f in zip(expected, found, strict=True):
        assert 0.98 * e < f <= 1.02 * e
    assert found[0] - found[1] == pytest.approx(expected[0] - expected[1], rel=1e-2)
    # 8 of 8 global crops of a group at rate 0, 4 at 0.4 (floor of 4.8): half of the student's blocks.
    assert flops.kept_share(8, 0.4) == 0.5
    ratio = flops.update(recipes[1], 8)["student global"] / flops.update(recipes[0], 8)["student global"]
    assert ratio == pytest.approx(0.5, abs=0.03)


def published(width: int, depth: int, heads: int, ffn: str, drop_path: float = 0.0) -> dict[str, float]:
    """2 x 224 + 8 x 96 or 98 pixels, TFLOP an image."""
    c = vitl.get_config().to_dict()
    c["crops"].update(global_size=224, local_size=96, num_local=8)
    c["model"].update(width=width, depth=depth, heads=heads, ffn=ffn, drop_path=drop_path)
    r = recipe_from(c)
    return {name: value / r.data.global_batch / 1e12 for name, value in flops.update(r, masked(r)).items()}


def test_figures_known_from_elsewhere():
    """ViT-S/16 and ViT-L/16: 112 and 1,526 GFLOP an image in the backbone (four times the forward pass of a global
    crop, 9.2 and 123 GFLOP, twice, and three times that of a local one, 1.6 and 22.5, eight times)."""
    for size, forward, local, total in (((384, 12, 6), 9.2, 1.6, 112), ((1024, 24, 16), 123, 22.5, 1526)):
        parts = published(*size, "mlp")
        assert parts["teacher global"] * 1e3 / 2 == pytest.approx(forward, rel=0.01)
        assert parts["student global"] * 1e3 / 6 == pytest.approx(forward, rel=0.02)
        assert parts["student local"] * 1e3 / 24 == pytest.approx(local, rel=0.03)
        backbone = sum(parts[name] for name in ("teacher global", "student global", "student local"))
        assert backbone * 1e3 == pytest.approx(total, rel=0.01)


def test_recomputation_by_policy():
    recipe = recipe_from(vitg.get_config().to_dict())
    m = recipe.model

    def with_(remat: str) -> float:
        return flops.recomputed(dataclasses.replace(recipe, model=dataclasses.replace(m, remat=remat)))

    parts = flops.update(recipe, masked(recipe))
    # One more forward pass of the student's blocks: a third of its work.
    student = parts["student global"] + parts["student local"]
    assert with_("nothing_saveable") == pytest.approx(student / 3, rel=0.01)
    assert with_("none") == with_("dots_with_no_batch_dims_saveable,attn_out") == 0
    attention = with_("dots_with_no_batch_dims_saveable")
    assert with_("nothing_saveable") - with_("attn_out") == pytest.approx(attention, rel=1e-6)
    assert 0 < with_("dots_with_no_batch_dims_saveable") < with_("qkv,ffn_hidden") < with_("qkv") < student / 3
    # Attention alone: 4 T^2 D of (8 D^2 + 6 D H) T + 4 T^2 D, T of the global crops and of the local ones.
    share = with_("dots_with_no_batch_dims_saveable") / with_("nothing_saveable")
    t, d, h = 257, m.width, m.hidden
    assert 37 / (2 * d + 1.5 * h + 37) < share < t / (2 * d + 1.5 * h + t)


def test_mfu():
    assert flops.mfu(flops=400e12, seconds=0.5, devices=8, peak=200e12) == 0.5
