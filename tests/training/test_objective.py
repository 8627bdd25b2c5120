"""The terms of the objective joined: against formulas over tokens that the models give when they are called alone."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from curia2_jax.losses import sigreg
from curia2_jax.losses.targets import probabilities
from curia2_jax.models.dino_head import DINOHead
from curia2_jax.models.vit import ViT
from curia2_jax.training import objective, schedules, terms
from curia2_jax.training import state as states
from curia2_jax.training.recipe import recipe_from
from curia2_jax.training.step import OBJECTIVE, step_key, update
from curia2_jax.training.terms import Layout
from tests.training.test_step import random_batch
from tests.training.tiny import tiny_config


def state_of(recipe):
    """Noise large enough that no token is like another."""
    rng = np.random.default_rng(0)
    abstract = states.abstract_state(recipe).params
    params, teacher = (
        jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), abstract) for _ in range(2)
    )
    return states.from_params(params, teacher, recipe)


def statistic(z, directions):
    """Epps-Pulley of one view and all directions in float64: z (N, D), directions (D, M) -> (M,)."""
    t = np.linspace(-3, 3, 33)  # 17 knots on the positive half
    empirical = np.exp(1j * t * (z @ directions)[..., None]).mean(0)
    integrand = np.abs(empirical - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
    return len(z) * np.trapezoid(integrand, t, axis=-1)


@pytest.mark.parametrize("placement", ["backbone", "head"])
def test_sigreg_is_of_each_view_of_the_placement_that_is_asked_for(placement):
    """And its weight is that of a batch of 512; the loss is the weighted sum, each term with its own weight."""
    recipe = recipe_from(
        tiny_config(
            model__drop_path=0.0, objective__sigreg__placement=placement, objective__dino__weight=0.5,
            objective__ibot__weight=2.0, objective__sigreg__weight=0.03,
        )
    )  # fmt: skip
    state = state_of(recipe)
    (global_crops, local_crops), masks = random_batch(recipe)
    _, metrics = jax.jit(functools.partial(update, recipe=recipe))(state, (global_crops, local_crops), masks)
    backbone = {"params": state.params["backbone"]}
    z = ViT(recipe.model).apply(backbone, global_crops, masks.reshape(16, -1))["cls"]
    if placement == "head":
        z = DINOHead(recipe.dino_head).apply({"params": state.params["dino_head"]}, z) * 4  # the root of 16
    views = np.asarray(z, np.float64).reshape(8, 2, -1)
    key = jax.random.fold_in(step_key(recipe, state.step, OBJECTIVE), objective.TERM)
    directions = np.asarray(sigreg.random_directions(key, jnp.arange(32), views.shape[-1], jnp.float32), np.float64)
    expected = np.mean([statistic(views[:, view], directions) for view in (0, 1)])
    np.testing.assert_allclose(metrics["sigreg"], expected, rtol=1e-4)
    dino = metrics["dino_global"] + metrics["dino_local"]
    loss = 0.5 * dino + 2 * metrics["ibot"] + 0.03 * 512 / 8 * metrics["sigreg"]
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)


def projected(params, tokens):
    """LeJEPA's projector in float64: linear layers, and between them batch norm of all rows and ReLU."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = np.asarray(tokens, np.float64)
    for index in range(3):
        x = x @ params[f"mlp_{index}"]["kernel"] + params[f"mlp_{index}"]["bias"]
        if index < 2:
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
            x = np.maximum(x * params[f"norm_{index}"]["scale"] + params[f"norm_{index}"]["bias"], 0)
    return x


def test_lejepa_is_the_formula_of_its_paper():
    """(1 - l) times the squared distance to the center of the global views, plus l times SigReg of every view, at the
    paper's batch of 512; all views of all images go through the projector as one batch."""
    recipe = recipe_from(
        tiny_config(
            model__drop_path=0.0, masks__probability=0.0, heads__projector_width=12, objective__dino__weight=0.0,
            objective__ibot__weight=0.0, objective__invariance__weight=0.95, objective__sigreg__placement="projector",
        )
    )  # fmt: skip
    state = state_of(recipe)
    crops, masks = random_batch(recipe)
    _, metrics = jax.jit(functools.partial(update, recipe=recipe))(state, crops, masks)
    backbone = {"params": state.params["backbone"]}
    tokens = [np.asarray(ViT(recipe.model).apply(backbone, x)["cls"]).reshape(8, -1, 32) for x in crops]
    p = projected(state.params["projector"], np.concatenate(tokens, axis=1).reshape(-1, 32)).reshape(8, 4, 12)
    distance = np.mean((p - p[:, :2].mean(1, keepdims=True)) ** 2)
    key = jax.random.fold_in(step_key(recipe, state.step, OBJECTIVE), objective.TERM)
    directions = np.asarray(sigreg.random_directions(key, jnp.arange(32), 12, jnp.float32), np.float64)
    gaussian = np.mean([statistic(p[:, view], directions) for view in range(4)])
    np.testing.assert_allclose(metrics["invariance"], distance, rtol=1e-4)
    np.testing.assert_allclose(metrics["sigreg"], gaussian, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], 0.95 * distance + 0.05 * 512 / 8 * gaussian, rtol=1e-4)


def test_sigreg_can_be_met_by_the_unit_vectors_of_a_head():
    """Spread evenly over the sphere they score as little as a Gaussian would, and less than an eighth of otherwise."""
    features = np.random.default_rng(0).normal(size=(512, 2, 64)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    out = types.SimpleNamespace(
        class_tokens=features, class_features=jnp.asarray(features), key=jax.random.key(0), layout=Layout(512, 1, 1)
    )
    found = {
        placement: terms._sigreg(out, terms.SigRegConfig(1.0, placement, 256, 17, 3.0))[1]
        for placement in ("head", "backbone")
    }
    assert found["head"]["sigreg"] == pytest.approx(sigreg.expected_at_optimum(), rel=0.15)
    assert found["backbone"]["sigreg"] > 8 * found["head"]["sigreg"]


def dense_cross_entropy(targets, features, kernel):
    """(rows,) of q (rows, K) against softmax(features @ kernel / 0.1), in float64."""
    logits = np.asarray(features, np.float64) @ np.asarray(kernel, np.float64) / 0.1
    return -(np.asarray(targets, np.float64) * (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))).sum(-1)


def test_nats_are_what_the_student_knows_beyond_a_uniform_guess():
    """Against dense probabilities: of the other view's class token, and of the patches under the masks of half of the
    crops. What the teacher tells apart is more than what is learned of it, by the divergence between the two."""
    recipe = recipe_from(tiny_config(model__drop_path=0.0))
    state = state_of(recipe)
    crops, masks = random_batch(recipe)
    _, metrics = jax.jit(functools.partial(update, recipe=recipe))(state, crops, masks)
    batch = {"global_crops": crops[0], "local_crops": crops[1], "masks": masks, "group": jnp.arange(2)}
    program = objective.Program(recipe, None, "cpu", Layout(8, 2, 1))
    temp = schedules.teacher_temp(state.step, recipe.schedule)
    targets = {
        name: objective.sinkhorn_knopp(z, temp, 16)
        for name, z in objective._teacher_logits(state.teacher, batch, program).items()
    }
    out = objective._student_outputs(state.params, batch, targets, jax.random.key(0), program)
    q = np.asarray(probabilities(targets["dino"])).reshape(8, 2, -1)
    learned = np.log(48) - dense_cross_entropy(q[:, ::-1], out.class_features, out.dino.kernel).mean()
    assert metrics["nats/dino"] == pytest.approx(learned, abs=2e-4)
    entropy = -(q * np.log(np.maximum(q, 1e-30))).sum(-1).mean()
    assert metrics["teacher_information"] == pytest.approx(np.log(48) - entropy, abs=2e-4)
    assert metrics["teacher_kl"] == pytest.approx(np.log(48) - learned - entropy, abs=4e-4)
    patches = dense_cross_entropy(probabilities(targets["ibot"]), out.patch_features, out.ibot.kernel)
    weights = np.asarray(out.patch_weights)
    learned = np.log(40) - (patches * weights).sum() / weights.sum()
    assert metrics["nats/ibot"] == pytest.approx(learned, abs=2e-4)


def test_every_group_and_both_sizes_of_crops_drop_their_own(monkeypatch):
    """As many different drop-path keys as there are groups, global and local crops apart."""
    recipe = recipe_from(tiny_config())
    state, (crops, masks) = state_of(recipe), random_batch(recipe)
    seen = []

    class Spy(ViT):
        def __call__(self, images, masks=None, *, drop_path_keys=None):
            if drop_path_keys is not None:
                seen.append(jax.random.key_data(drop_path_keys))
            return super().__call__(images, masks, drop_path_keys=drop_path_keys)

    monkeypatch.setattr(objective, "ViT", Spy)

    def keys_of(params, teacher, key):
        """The keys alone, so nothing else of the step is compiled."""
        batch = {"global_crops": crops[0], "local_crops": crops[1], "masks": masks, "group": jnp.arange(2)}
        program = objective.Program(recipe, None, "cpu", Layout(8, 2, 1))
        targets = {
            name: objective.sinkhorn_knopp(z, 0.07, 16)
            for name, z in objective._teacher_logits(teacher, batch, program).items()
        }
        objective._student_loss(params, batch, targets, key, program)
        return seen

    found = jax.device_get(jax.jit(keys_of)(state.params, state.teacher, jax.random.key(5)))
    rows = {tuple(row) for keys in found for row in keys.tolist()}
    assert [len(keys) for keys in found] == [2, 2]
    assert len(rows) == 4


def test_a_gradient_that_is_not_finite_moves_nothing(monkeypatch):
    """Though the loss is: bfloat16 overflows in a backward pass first."""
    recipe = recipe_from(tiny_config())
    state = state_of(recipe)
    true_gradients = objective.gradients

    def overflowed(*args):
        grads, centers, metrics = true_gradients(*args)
        table = grads["backbone"]["pos_embed"].at[0, 0, 0].set(jnp.inf)
        return grads | {"backbone": grads["backbone"] | {"pos_embed": table}}, centers, metrics

    monkeypatch.setattr(objective, "gradients", overflowed)
    new, metrics = jax.jit(functools.partial(update, recipe=recipe))(state, *random_batch(recipe))
    assert np.isfinite(metrics["loss"]) and not metrics["applied"]
    assert states.state_hash(new) == states.state_hash(state)


def test_the_teacher_moves_by_the_momentum_of_the_step_that_is_done():
    """Momentum 0 in step 0 and, by half a cosine over two steps, 0.5 in step 1."""
    recipe = recipe_from(tiny_config())
    schedule = dataclasses.replace(
        recipe.schedule, total_steps=2, warmup_steps=0, teacher_momentum=0.0, teacher_momentum_end=1.0
    )
    recipe = dataclasses.replace(recipe, schedule=schedule)
    state, step = state_of(recipe), jax.jit(functools.partial(update, recipe=recipe))
    for momentum in (0.0, 0.5):
        new, _ = step(state, *random_batch(recipe))
        for old, teacher, student in zip(
            *(jax.tree.leaves(x) for x in (state.teacher, new.teacher, new.params)), strict=True
        ):
            np.testing.assert_allclose(teacher, momentum * old + (1 - momentum) * student, rtol=1e-5, atol=1e-7)
        state = new
