"""The second stage: weights of a run at a finer grid, heads kept, and no model but the same one."""

import jax
import numpy as np
import pytest
import torch

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import forget
from curia2_jax.errors import UserError
from curia2_jax.parallel.mesh import make_mesh
from curia2_jax.training import checkpoints, initial
from curia2_jax.training import state as states
from curia2_jax.training.recipe import recipe_from
from tests.data.small_corpus import write_small_corpus
from tests.training.tiny import tiny_config


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory):
    """(folder, parameters) of a 4 x 4 grid; student and teacher are one."""
    abstract = states.abstract_state(recipe_from(tiny_config())).params
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), abstract)
    folder = tmp_path_factory.mktemp("stage_1")
    checkpoints.save_init(folder, params, {})
    return folder, params


def test_grids_are_interpolated_as_torch_does_and_heads_are_kept(stage_1):
    folder, params = stage_1
    recipe = recipe_from(tiny_config(init_from=str(folder), crops__global_size=64))
    for tree in initial.pretrained(recipe):
        table = params["backbone"]["pos_embed"]
        grid = torch.tensor(table[0, 1:].reshape(4, 4, -1)).permute(2, 0, 1)[None].double()
        expected = torch.nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False)
        found = tree["backbone"]["pos_embed"]
        np.testing.assert_allclose(found[0, 1:].reshape(8, 8, -1), expected[0].permute(1, 2, 0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[:, :1], table[:, :1])
        for a, b in zip(jax.tree.leaves(tree["dino_head"]), jax.tree.leaves(params["dino_head"]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_another_model_is_one_line(stage_1):
    folder, _ = stage_1
    for change in ({"model__width": 64}, {"heads__dino_prototypes": 64}, {"heads__shared": True}):
        with pytest.raises(
            UserError, match=r"config\.init_from: .* in this config; write a run with the same"
        ) as error:
            initial.pretrained(recipe_from(tiny_config(init_from=str(folder), **change)))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("heads", [True, False])
def test_student_teacher_and_heads_each_come_from_their_own(tmp_path, heads):
    """A folder without heads, as a converted backbone is, gives random ones; nothing else is random."""
    from_run = recipe_from(tiny_config(init_from=str(tmp_path / "old")))
    rng = np.random.default_rng(0)
    abstract = states.abstract_state(from_run).params
    trees = [jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), abstract) for _ in range(2)]
    state = states.from_params(*trees, from_run)
    mesh = make_mesh(from_run.parallel, jax.devices()[:1])
    if heads:
        with checkpoints.Checkpoints(tmp_path / "old", from_run.checkpoint) as writer:
            writer.save(state, {"corpus": "x"})
    else:
        checkpoints.save_init(tmp_path / "old", {"backbone": trees[0]["backbone"]}, {})
        trees[1]["backbone"] = trees[0]["backbone"]
    with jax.set_mesh(mesh), checkpoints.Checkpoints(tmp_path / "new", from_run.checkpoint) as writer:
        found = initial.initial_state(writer, None, from_run, mesh, "x")
    random = states.init_state(jax.random.key(from_run.seed), from_run)
    for tree, saved in ((found.params, trees[0]), (found.teacher, trees[1])):
        for name in tree:
            expected = saved[name] if heads or name == "backbone" else random.params[name]
            for a, b in zip(jax.tree.leaves(tree[name]), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=0 if heads or name == "backbone" else 1e-6)
    assert int(found.step) == 0
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(found.opt_state))


@pytest.mark.parametrize("withdrawn", [True, False])
def test_a_run_does_not_go_on_with_another_corpus(tmp_path, withdrawn):
    """Of one that a patient withdrew from it says so, and how to begin with the weights of the run."""
    write_small_corpus(tmp_path / "corpus")
    recipe = recipe_from(tiny_config(data__corpus=str(tmp_path / "corpus")))
    mesh = make_mesh(recipe.parallel, jax.devices()[:1])
    before = Corpus(tmp_path / "corpus").contract["hash"]
    with checkpoints.Checkpoints(tmp_path / "run", recipe.checkpoint) as writer:
        writer.save(states.init_state(jax.random.key(0), recipe), {"corpus": before if withdrawn else "0" * 64})
    now = forget.forget(tmp_path / "corpus", ["patient0"])["hash"] if withdrawn else before
    with (
        jax.set_mesh(mesh),
        checkpoints.Checkpoints(tmp_path / "run", recipe.checkpoint) as saved,
        pytest.raises(UserError) as told,
    ):
        initial.initial_state(saved, 0, recipe, mesh, now)
    message = "patients withdrew); write another --workdir, and --config.init_from=RUN" if withdrawn else "--workdir"
    assert message in str(told.value) and "\n" not in str(told.value) and now[:12] in str(told.value)
