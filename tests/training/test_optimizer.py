"""AdamW and its groups against torch and the multipliers of DINOv2."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from curia2_jax.training import optimizer
from curia2_jax.training import state as states
from curia2_jax.training.recipe import OptimConfig, recipe_from
from tests import reference
from tests.training.tiny import tiny_config

# ViT-S, layer-wise decay 0.9, patch embedding 0.2.
REFERENCE = reference.VALUES["schedules_and_lr_decay"]


def test_multipliers_of_a_twelve_block_model():
    """Every parameter of DINOv2's ViT-S with registers and of its head, by DINOv2's own code."""
    c = OptimConfig(1e-3, 1e-6, 0.9, 0.999, 3.0, 0.9, 0.2)
    theirs = REFERENCE["layerwise_decay_vits16_reg4_decay0.9"]
    assert (theirs["decay"], theirs["patch_embed_lr_mult"], theirs["n_blocks"]) == (0.9, 0.2, 12)
    leaf = {"weight": "kernel", "bias": "bias", "gamma": "gamma"}

    def check(path, lr_mult, wd_mult, last_layer):
        group = optimizer.group_of(path, 12, c)
        np.testing.assert_allclose(group.lr_mult, lr_mult, rtol=1e-12, err_msg=str(path))
        assert (group.wd_mult, group.last_layer) == (wd_mult, last_layer), path

    for name, row in theirs["non_block"].items():
        ours = name.replace(".proj", "").replace("norm.weight", "norm.scale").replace("weight", "kernel")
        check(("backbone", *ours.split(".")), *row)
    modules = {"attn.qkv": "attn.query", "attn.proj": "attn.out", "mlp.fc1": "ffn.fc1", "mlp.fc2": "ffn.fc2"}
    blocks = [theirs["block_lr_multiplier"][str(i)] for i in range(12)]
    for name, wd_mult in theirs["block_wd_multiplier"].items():
        module, last = name.rsplit(".", 1)
        last = "scale" if module.startswith("norm") and last == "weight" else leaf[last]
        check(("backbone", "blocks", *modules.get(module, module).split("."), last), blocks, wd_mult, False)
    for name, row in theirs["head"].items():
        module, last = name.rsplit(".", 1)
        ours = ("last_layer", last[-1]) if module == "last_layer" else (f"mlp_{int(module[-1]) // 2}", leaf[last])
        check(("dino_head", *ours), *row)


def test_equals_torch_adamw_with_a_rate_and_a_decay_for_every_block():
    rng = np.random.default_rng(0)
    """Rate 0.01 and decay 0.1 throughout; the last layers wait for one step. Nothing is clipped."""
    c = OptimConfig(1e-2, 1e-2, 0.9, 0.999, 1e9, 0.9, 0.2)
    recipe = recipe_from(tiny_config(data__global_batch=1024))
    schedule = dataclasses.replace(
        recipe.schedule, warmup_steps=0, freeze_last_layer_steps=1, weight_decay=0.1, weight_decay_end=0.1
    )
    tx = optimizer.tx(dataclasses.replace(recipe, optim=c, schedule=schedule))
    with jax.enable_x64(True):
        params = {
            "backbone": {
                "blocks": {"fc": {"kernel": rng.normal(size=(3, 4, 5)), "bias": rng.normal(size=(3, 5))}},
                "patch_embed": {"kernel": rng.normal(size=(2, 2, 1, 4))},
            },
            "dino_head": {"last_layer": {"v": rng.normal(size=(4, 6))}},
        }
        params = jax.tree.map(jnp.asarray, params)
        peers, torch_groups = [], []
        for leaf, group in zip(
            jax.tree.leaves(params),
            jax.tree.leaves(optimizer.param_groups(params, c), is_leaf=lambda g: isinstance(g, optimizer.Group)),
            strict=True,
        ):
            pieces = list(leaf) if isinstance(group.lr_mult, tuple) else [leaf]
            mults = group.lr_mult if isinstance(group.lr_mult, tuple) else [group.lr_mult]
            mine = [torch.nn.Parameter(torch.tensor(np.array(piece))) for piece in pieces]
            peers.append(mine)
            torch_groups += [
                {"params": [p], "lr": 1e-2 * m, "weight_decay": 0.1 * group.wd_mult, "last_layer": group.last_layer}
                for p, m in zip(mine, mults, strict=True)
            ]
        adamw = torch.optim.AdamW(torch_groups, betas=(0.9, 0.999), eps=1e-8)
        opt_state = tx.init(params)
        for step in range(3):
            grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            for mine, grad in zip(peers, jax.tree.leaves(grads), strict=True):
                for number, p in enumerate(mine):
                    p.grad = torch.tensor(np.array(grad[number] if len(mine) > 1 else grad))
            rates = [group["lr"] for group in adamw.param_groups]
            for group in adamw.param_groups:
                group["lr"] = 0.0 if group["last_layer"] and step == 0 else group["lr"]
            adamw.step()
            for group, rate in zip(adamw.param_groups, rates, strict=True):
                group["lr"] = rate
        for mine, leaf in zip(peers, jax.tree.leaves(params), strict=True):
            expected = np.stack([p.detach().numpy() for p in mine]) if len(mine) > 1 else mine[0].detach().numpy()
            np.testing.assert_allclose(leaf, expected, rtol=1e-12)


def test_clipping_is_of_each_module_apart_and_equals_torch():
    rng = np.random.default_rng(1)
    grads = {name: {"w": rng.normal(size=(7,)) * scale} for name, scale in (("backbone", 10.0), ("dino_head", 0.1))}
    with jax.enable_x64(True):
        norms = optimizer.module_norms(jax.tree.map(jnp.asarray, grads))
        clipped = optimizer.clip_by_module(jax.tree.map(jnp.asarray, grads), 3.0)
    for name, tree in grads.items():
        p = torch.nn.Parameter(torch.zeros(7, dtype=torch.float64))
        p.grad = torch.tensor(tree["w"])
        norm = torch.nn.utils.clip_grad_norm_([p], 3.0)
        np.testing.assert_allclose(norms[name], norm.item(), rtol=1e-12)
        np.testing.assert_allclose(clipped[name]["w"], p.grad.numpy(), rtol=1e-12)


def test_the_table_counts_every_parameter_once():
    recipe = recipe_from(tiny_config())
    params = states.abstract_state(recipe).params
    rows = optimizer.table(params, recipe.optim)
    assert sum(row["parameters"] for row in rows) == states.count(params)
    assert {row["module"] for row in rows} == {"backbone", "dino_head", "ibot_head"}
