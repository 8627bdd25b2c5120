"""The whole step of every config lowers for GPUs and TPUs, on a machine that has neither."""

import collections
import contextlib
import dataclasses
import functools
import importlib
import pathlib
import re
from unittest import mock

import jax
import pytest
from jax.sharding import NamedSharding

from curia2_jax.parallel.mesh import BATCH, make_mesh
from curia2_jax.planning import synthetic
from curia2_jax.training.initial import abstract_sharded_state
from curia2_jax.training.recipe import Recipe, recipe_from
from curia2_jax.training.step import train_step

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common", "ablations"))
PLATFORMS = {"gpu": "cuda", "tpu": "tpu"}  # what devices call themselves -> what JAX lowers for
FORWARD = {"gpu": r"@__cudnn\$fmhaSoftmax\(", "tpu": r'kernel_name = "attention_forward"'}
BACKWARD = {"gpu": r"@__cudnn\$fmhaSoftmaxBackward\(", "tpu": r'kernel_name = "\w*attention_backward\w*"'}
# Products that keep a float32 operand although the model computes in bfloat16, by where they come from.
WIDE = {
    "crops and their blur": r"augment/",  # intensities have 12 bits and more; three bfloat16 passes each
    "position table": r"pi,ijd->pjd|qj,pjd->pqd",  # float32 parameters, once a pass
    "KoLeo": r"gid,gjd->gij",  # as DINOv2, the nearest neighbor is sought in float32
    "SigReg": r"vnd,dm->vnm",  # near the optimum bfloat16 would drown what is measured
}


@contextlib.contextmanager
def as_an_h100():
    """The two questions that JAX asks a CUDA device are answered as an H100 would."""
    asked = "jax._src.cudnn.fused_attention_stablehlo"
    with (
        mock.patch(f"{asked}.check_cudnn_version", lambda: 91000),
        mock.patch(f"{asked}.check_compute_capability", lambda wanted: None),
    ):
        yield


def lowered(recipe: Recipe, platform: str) -> jax.stages.Lowered:
    """The step on one device: on several, cuDNN's calls hide in those of the partitioner until it has run."""
    mesh = make_mesh(recipe.parallel, jax.devices()[:1])
    step = functools.partial(train_step, recipe=recipe, mesh=mesh, platform=platform)
    state = abstract_sharded_state(recipe, mesh)
    batch = synthetic.shapes(recipe, NamedSharding(mesh, BATCH))
    shardings = jax.tree.map(lambda a: a.sharding, state)
    with jax.set_mesh(mesh), as_an_h100():
        traced = jax.jit(step, out_shardings=(shardings, None), donate_argnums=0).trace(state, batch)
        return traced.lower(lowering_platforms=(PLATFORMS[platform],))


def products(module) -> list[tuple[str, list[str]]]:
    """(where it comes from, dtypes of its operands) of every dot of a StableHLO module."""
    found = []

    def visit(op):
        for region in op.regions:
            for block in region:
                for inner in block:
                    if inner.operation.name == "stablehlo.dot_general":
                        dtypes = [str(x.type).rstrip(">").split("x")[-1] for x in inner.operation.operands]
                        found.append((re.match(r'loc\("([^"]*)"', str(inner.location)).group(1), dtypes))
                    visit(inner.operation)

    visit(module.operation)
    return found


@functools.cache
def program(config: str, platform: str):
    recipe = recipe_from(importlib.import_module(f"configs.{config}").get_config().to_dict())
    low = lowered(recipe, platform)
    text = low.as_text()
    return recipe, products(low.compiler_ir("stablehlo")), text


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_lowers(config, platform):
    """Attention is the platform's own kernel in every pass, and products are in bfloat16 outside a named list."""
    recipe, dots, text = program(config, platform)
    kernels = (len(re.findall(FORWARD[platform], text)), len(re.findall(BACKWARD[platform], text)))
    model = recipe.model
    if model.dtype == "float32" and platform == "gpu":
        assert kernels == (0, 0)  # cuDNN's flash attention is for 16 bits
    else:
        again = model.remat != "none"  # the backward pass runs the forward kernel once more
        # The teacher on global crops, if it is asked; the student on global and on local ones. Unrolled blocks may
        # share a function.
        copies = kernels[1] // 2
        assert copies in ((1,) if model.scan else (1, model.depth))
        assert kernels == ((2 + recipe.distills + 2 * again) * copies, 2 * copies)
    if model.dtype != "float32":
        assert len(dots) > 40
        wide = [(place, dtypes) for place, dtypes in dots if "f32" in dtypes]
        unnamed = [w for w in wide if not any(re.search(pattern, w[0]) for pattern in WIDE.values())]
        assert unnamed == [], collections.Counter(place for place, _ in unnamed)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_attention_that_is_kept_runs_once(platform):
    recipe, _, _ = program("vitl", platform)
    remat = f"{recipe.model.remat},attn_out"
    text = lowered(
        dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, remat=remat)), platform
    ).as_text()
    assert (len(re.findall(FORWARD[platform], text)), len(re.findall(BACKWARD[platform], text))) == (3, 2)


def test_an_odd_number_of_tokens_was_the_problem():
    """What the padding is for: cuDNN through JAX refuses the gradient at 257 tokens, and at no other place."""
    shape = jax.ShapeDtypeStruct((2, 257, 4, 64), "bfloat16")
    loss = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation="cudnn").sum()  # noqa: E731
    with as_an_h100():
        jax.eval_shape(loss, shape, shape, shape)
        with pytest.raises(NotImplementedError, match="Unsupported sequence length Q 257"):
            jax.eval_shape(jax.grad(loss, (0, 1, 2)), shape, shape, shape)


def test_registers_and_even_counts_need_no_padding():
    """Four registers make 261 tokens odd, five even: the step traces at both."""
    for registers in (4, 5):
        recipe, _, _ = program("vits", "gpu")
        changed = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, registers=registers))
        text = lowered(changed, "gpu").as_text()
        assert len(re.findall(FORWARD["gpu"], text)) == 3
