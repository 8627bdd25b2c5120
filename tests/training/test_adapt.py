"""Weights of another shape, by named rules: equal to timm's and to a formula in float64, or refused with what fits."""

import copy

import jax
import numpy as np
import pytest
import torch

from curia2_jax.errors import UserError
from curia2_jax.models import pos_embed
from curia2_jax.training import adapt
from curia2_jax.training import state as states
from curia2_jax.training.recipe import recipe_from
from tests.training.tiny import tiny_config

# timm 1.0.31 on the kernel below: resample_patch_embed of (1, 1, P, P), and adapt_input_conv(1, .) of (2, 3, 2, 2).
TIMM = {
    (4, 5): [
        -0.09274, 0.42001, 0.87305, 0.9702, 0.81391, 0.39352, -0.06106, -0.54966, -0.81419, -0.84756, -0.18042,
        -0.20387, -0.17301, -0.07162, 0.03751, -0.40555, 0.04747, 0.53813, 0.80942, 0.85006, 0.73647, 0.30739,
        -0.25578, -0.71467, -0.94775,
    ],
    (5, 3): [-0.24028, 0.55211, 0.54728, 0.14612, 0.16139, -0.05638, 0.46579, -0.30304, -0.63429],
    "sum": [-0.211603, 0.391385, 0.810298, 0.848115, 0.843777, 0.474569, -0.117836, -0.654822],
}  # fmt: skip
EVERY = "channels:sum,patch:resample,registers:new,positions:interpolate,heads:new"


def kernel(width: int, channels: int, patch: int) -> np.ndarray:
    """(D, C, P, P) as PyTorch has it."""
    count = width * channels * patch * patch
    return np.sin(0.7 * np.arange(count) + 0.1).astype(np.float32).reshape(width, channels, patch, patch)


def ours(torch_layout: np.ndarray) -> np.ndarray:
    return torch_layout.transpose(2, 3, 1, 0)


def theirs(our_layout: np.ndarray) -> np.ndarray:
    return our_layout.transpose(3, 2, 0, 1)


@pytest.mark.parametrize(("old", "new"), [(4, 5), (5, 3)])
def test_patches_are_resampled_as_timm_does(old, new):
    found = theirs(adapt.resampled(ours(kernel(1, 1, old)), new))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.ravel(), TIMM[old, new], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("old", "new"), [(14, 16), (16, 14), (14, 8)])
def test_patches_are_resampled_by_the_pseudo_inverse_of_the_resize(old, new):
    """The formula of FlexiViT in float64, the resize by PyTorch, pixel by pixel."""
    basis = torch.eye(old * old, dtype=torch.float64).reshape(-1, 1, old, old)
    resized = torch.nn.functional.interpolate(basis, size=(new, new), mode="bicubic", antialias=True)
    resize = resized.reshape(old * old, new * new).numpy().T
    weights = kernel(3, 2, old).astype(np.float64)
    expected = weights.reshape(6, -1) @ np.linalg.pinv(resize)
    found = theirs(adapt.resampled(ours(weights), new))
    np.testing.assert_allclose(found.reshape(6, -1), expected, rtol=0, atol=1e-9)
    if new > old:  # then every patch that was enlarged has the token that it had
        patch = np.random.default_rng(0).normal(size=old * old)
        np.testing.assert_allclose(found.reshape(6, -1) @ (resize @ patch), weights.reshape(6, -1) @ patch, atol=1e-9)


def test_channels_become_one_as_timm_does():
    three = ours(kernel(2, 3, 2))
    np.testing.assert_allclose(theirs(adapt.one_channel(three, "sum")).ravel(), TIMM["sum"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(3 * adapt.one_channel(three, "mean"), adapt.one_channel(three, "sum"), rtol=1e-6)


def recipe(**changes):
    return recipe_from(tiny_config(**changes))


def heads_of(r) -> dict:
    if r.projects:
        return {"projector": r.projector}
    return {"dino_head": r.dino_head} | ({} if r.heads.shared else {"ibot_head": r.ibot_head})


def weights_of(model_changes: dict, **changes) -> dict:
    """Random weights of a tiny model, with three channels if asked."""
    rng = np.random.default_rng(0)
    abstract = states.abstract_state(recipe(**model_changes, **changes)).params
    return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), abstract)


LEJEPA = {
    f"objective__{key}__weight": value
    for key, value in (("dino", 0.0), ("ibot", 0.0), ("sigreg", 0.0), ("invariance", 1.0))
}
# Five traits that rules serve: 3 channels, patch 4, no register, a grid of 6, other heads.
PUBLIC = {"model__in_channels": 3, "model__patch_size": 4, "crops__global_size": 24, "heads__dino_prototypes": 24}


def fit(params, rules: str, known=None, **changes):
    r = recipe(**changes, init__adapt=rules)
    return adapt.fit(params, known or {}, r.model, heads_of(r), r.init.rules)


def test_all_rules_together_give_the_shapes_of_the_model_and_say_what_was_done():
    given = weights_of(PUBLIC)
    before = copy.deepcopy(given)
    fitted = fit(given, EVERY, model__registers=2)
    expected = states.abstract_state(recipe(model__registers=2)).params
    found = jax.tree.map(np.shape, fitted.params)
    expected = {name: jax.tree.map(lambda a: a.shape, tree) for name, tree in expected.items() if name != "dino_head"}
    assert expected["backbone"].pop("register_tokens") == (1, 2, 32)
    assert found == expected
    assert fitted.adapted == (
        "channels: sum of 3", "patch: 4 resampled to 8 pixels", "registers: 0 left out, 2 drawn anew",
        "positions: 6 x 6 interpolated to 4 x 4",
    )  # fmt: skip
    assert fitted.dropped == ("dino_head",)
    backbone = given["backbone"]
    np.testing.assert_array_equal(
        fitted.params["backbone"]["patch_embed"]["kernel"],
        adapt.resampled(adapt.one_channel(backbone["patch_embed"]["kernel"], "sum"), 8),
    )
    np.testing.assert_array_equal(  # the antialiased form, which goes with registers
        fitted.params["backbone"]["pos_embed"], pos_embed.resize_grid(backbone["pos_embed"], 4, "antialias")
    )
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)  # what was given stays


def test_what_fits_is_not_touched():
    given = weights_of({})
    fitted = fit(given, EVERY)
    assert (fitted.adapted, fitted.dropped) == ((), ())
    for a, b in zip(jax.tree.leaves(fitted.params), jax.tree.leaves(given), strict=True):
        assert a is b


@pytest.mark.parametrize(
    ("there", "here", "rules", "words"),
    [
        ({"model__in_channels": 3}, {}, "", ["in_channels is 3 there, 1 here (write channels:sum)"]),
        ({"model__patch_size": 4}, {}, "", ["write --config.model.patch_size=4 or patch:resample"]),
        ({"crops__global_size": 64}, {}, "", ["write --config.crops.global_size=64 or positions:interpolate"]),
        ({"model__registers": 2}, {}, "", ["write --config.model.registers=2 or registers:drop"]),
        ({"model__registers": 2}, {"model__registers": 4}, "registers:drop", ["or registers:new"]),
        ({"model__ffn": "mlp"}, {}, EVERY, ["ffn is mlp there, swiglu here (write --config.model.ffn=mlp)"]),
        (
            {"model__positions": "rope", "crops__global_size": 64}, {}, EVERY,
            ["positions is rope there, learned here (write --config.model.positions=rope)"],
        ),
        ({}, {"model__positions": "rope"}, EVERY, ["positions is learned there, rope here"]),
        ({"model__width": 64}, {}, EVERY, ["write --config.model.width=64)"]),
        ({"model__depth": 3}, {}, EVERY, ["write --config.model.depth=3)"]),
        ({"heads__hidden": 16}, {}, "", ["write --config.heads.hidden=16 or heads:new"]),
        ({"heads__dino_prototypes": 24}, {}, "", ["write --config.heads.dino_prototypes=24 or heads:new"]),
        ({"heads__ibot_bottleneck": 8}, {}, "", ["write --config.heads.ibot_bottleneck=8 or heads:new"]),
        ({"heads__layers": 2}, {}, "", ["write --config.heads.layers=2 or heads:new"]),
        ({"heads__weight_norm": False}, {}, "", ["write --config.heads.weight_norm=False or heads:new"]),
        (LEJEPA, {}, "", ["projector is present there, absent here (write heads:new)"]),
        ({}, LEJEPA, "", ["dino_head is present there, absent here (write heads:new); ibot_head is present there"]),
        (LEJEPA | {"heads__projector_width": 24}, LEJEPA, "", ["write --config.heads.projector_width=24 or heads:new"]),
        ({}, {"heads__shared": True}, "", ["write --config.heads.shared=False or heads:new"]),
        (
            PUBLIC, {}, "channels:mean",
            ["patch_size is 4 there, 8 here (write --config.model.patch_size=4 or patch:resample)",
             "; --config.init.adapt=channels:mean,patch:resample,positions:interpolate,heads:new has these rules"],
        ),
    ],
)  # fmt: skip
def test_a_refusal_names_the_keys_that_would_fit(there, here, rules, words):
    with pytest.raises(UserError) as told:
        fit(weights_of(there), rules, **here)
    for some in words:
        assert some in str(told.value)
    assert "\n" not in str(told.value)


def test_another_number_of_attention_heads_shows_in_no_array_and_is_refused():
    with pytest.raises(UserError, match=r"heads is 4 there, 2 here \(write --config\.model\.heads=4\)"):
        fit(weights_of({}), EVERY, known={"heads": 4})
    assert fit(weights_of({}), EVERY, known={"heads": 2}).adapted == ()


@pytest.mark.parametrize(
    ("rules", "words"),
    [("patch", "patch is no rule"), ("patch:sum", "patch:sum is no rule"), ("channels:sum,channels:mean", "two rules")],
)
def test_unknown_rules_are_one_line(rules, words):
    with pytest.raises(UserError, match=rf"config\.init\.adapt='.*': {words}") as told:
        recipe(init__adapt=rules)
    assert "\n" not in str(told.value)
