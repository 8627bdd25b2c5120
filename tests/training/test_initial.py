"""Where a run begins: its own checkpoint, then the weights of another, adapted by rules, then random numbers."""

import json

import jax
import numpy as np
import pytest
import torch

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import forget
from curia2_jax.errors import UserError
from curia2_jax.parallel.mesh import make_mesh
from curia2_jax.training import checkpoints, class_tokens, initial
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
    checkpoints.save_items(folder, 0, {"teacher": params}, {})
    return folder, params


def test_grids_are_interpolated_as_torch_does_and_heads_are_kept(stage_1):
    folder, params = stage_1
    recipe = recipe_from(tiny_config(init_from=str(folder), crops__global_size=64))
    found = initial.pretrained(recipe)
    assert found.origin.record["adapted"] == ["positions: 4 x 4 interpolated to 8 x 8"]
    for tree in (found.params, found.teacher):
        table = params["backbone"]["pos_embed"]
        grid = torch.tensor(table[0, 1:].reshape(4, 4, -1)).permute(2, 0, 1)[None].double()
        expected = torch.nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False)
        found = tree["backbone"]["pos_embed"]
        np.testing.assert_allclose(found[0, 1:].reshape(8, 8, -1), expected[0].permute(1, 2, 0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[:, :1], table[:, :1])
        for a, b in zip(jax.tree.leaves(tree["dino_head"]), jax.tree.leaves(params["dino_head"]), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__width": 64}, "width is 32 there, 64 here (write --config.model.width=32)"),
        (
            {"heads__dino_prototypes": 64},
            "dino_prototypes is 48 there, 64 here (write --config.heads.dino_prototypes=48",
        ),
        ({"heads__shared": True}, "shared is False there, True here (write --config.heads.shared=False or heads:new)"),
        (
            {"crops__global_size": 64, "init__adapt": ""},
            "global_size is 32 there, 64 here (write --config.crops.global",
        ),
    ],
)
def test_another_model_is_one_line(stage_1, changes, words):
    folder, _ = stage_1
    with pytest.raises(UserError) as error:
        initial.pretrained(recipe_from(tiny_config(init_from=str(folder), **changes)))
    assert str(error.value).startswith(f"config.init_from: {folder}: {words}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b.pop("cls_token"), "backbone/cls_token is not there, (1, 1, 32) in this config"),
        (lambda b: b.pop("patch_embed"), "no weights of a model of this code (KeyError"),
        (lambda b: b.update(more=np.zeros(3, np.float32)), "backbone/more is (3,) there, not in this config"),
        (lambda b: b.update(pos_embed=np.zeros((1, 18, 32), np.float32)), "backbone/pos_embed is (1, 18, 32) there"),
    ],
)
def test_weights_that_are_no_model_are_one_line(tmp_path, stage_1, damage, words):
    backbone = dict(stage_1[1]["backbone"])
    damage(backbone)
    checkpoints.save_items(tmp_path / "x", 0, {"teacher": {"backbone": backbone}}, {})
    with pytest.raises(UserError) as error:
        initial.pretrained(recipe_from(tiny_config(init_from=str(tmp_path / "x"))))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["a converted folder", "a run"])
def test_another_number_of_attention_heads_is_refused(tmp_path, stage_1, where):
    """No array shows it."""
    meta = {"model": {"heads": 4}} if where == "a converted folder" else {}
    checkpoints.save_items(tmp_path, 0, {"teacher": stage_1[1]}, meta)
    if where == "a run":
        (tmp_path / "config.json").write_text(json.dumps(tiny_config(model__heads=4)))
    with pytest.raises(UserError, match=r"write --config\.model\.heads=4"):
        initial.pretrained(recipe_from(tiny_config(init_from=str(tmp_path))))


@pytest.fixture(scope="module")
def random():
    """Random parameters of the tiny model with three registers, and of one that differs from it in the DINO head."""
    changes = {"model__registers": 3, "model__interpolation": "size", "heads__dino_prototypes": 64}
    recipe = recipe_from(tiny_config(**changes))
    return changes, jax.jit(lambda: states.init_params(jax.random.key(recipe.seed), recipe))()


def begin(folder, recipe, newest=None):
    mesh = make_mesh(recipe.parallel, jax.devices()[:1])
    with jax.set_mesh(mesh), checkpoints.Checkpoints(folder, recipe.checkpoint) as saved:
        return initial.initial_state(saved, newest, recipe, mesh, "x")


def test_own_checkpoint_then_init_from_then_random(tmp_path, stage_1):
    """Each says which it is."""
    folder, params = stage_1
    plain, given = (recipe_from(tiny_config(init_from=path)) for path in ("", str(folder)))
    drawn, origin = begin(tmp_path / "a", plain)
    assert (origin.line, origin.record) == ("random numbers of seed 0", None)
    state, origin = begin(tmp_path / "b", given)
    assert origin.line == f"{folder} at step 0" and origin.record["init_from"] == str(folder)
    for tree in (state.params, state.teacher):
        np.testing.assert_array_equal(tree["backbone"]["pos_embed"], params["backbone"]["pos_embed"])
    with checkpoints.Checkpoints(tmp_path / "c", plain.checkpoint) as writer:
        writer.save(drawn.replace(step=np.int32(4)), {"corpus": "x"})
    state, origin = begin(tmp_path / "c", given, newest=4)
    assert origin.line == "this run's own checkpoint of step 4 (init_from was for its start)" and not origin.record
    assert int(state.step) == 4
    np.testing.assert_array_equal(state.params["backbone"]["pos_embed"], drawn.params["backbone"]["pos_embed"])


def test_registers_and_heads_that_do_not_fit_are_those_of_a_new_model(tmp_path, stage_1, random):
    """And the weights that a run began with, for whoever compares, are these."""
    changes, drawn = random
    recipe = recipe_from(tiny_config(init_from=str(stage_1[0]), init__adapt="registers:new,heads:new", **changes))
    state, origin = begin(tmp_path, recipe)
    assert origin.record["drawn anew"] == ["dino_head", "backbone/register_tokens"]
    assert origin.record["left out"] == ["dino_head"]
    assert "; drawn anew: dino_head, backbone/register_tokens; left out: dino_head" in origin.line
    expected = {**stage_1[1], "dino_head": drawn["dino_head"]}
    expected["backbone"] = expected["backbone"] | {"register_tokens": drawn["backbone"]["register_tokens"]}
    found = [state.params, state.teacher, {**expected, "backbone": class_tokens.began(recipe)}]
    for tree in found:
        assert jax.tree.structure(tree) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


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
        checkpoints.save_items(tmp_path / "old", 0, {"teacher": {"backbone": trees[0]["backbone"]}}, {})
        trees[1]["backbone"] = trees[0]["backbone"]
    with jax.set_mesh(mesh), checkpoints.Checkpoints(tmp_path / "new", from_run.checkpoint) as writer:
        found, _ = initial.initial_state(writer, None, from_run, mesh, "x")
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
