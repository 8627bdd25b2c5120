"""What is saved comes back, whole and on other meshes; what is not there is one line."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from curia2_jax.errors import UserError
from curia2_jax.parallel.mesh import ParallelConfig, make_mesh
from curia2_jax.training import checkpoints
from curia2_jax.training import state as states
from curia2_jax.training.initial import abstract_sharded_state, initial_state
from curia2_jax.training.recipe import CheckpointConfig, recipe_from
from curia2_jax.training.reports import warn_if_kept
from tests.training.tiny import tiny_config


@pytest.fixture(scope="module")
def state():
    """A state of noise: every array differs from every other."""
    abstract = states.abstract_state(recipe_from(tiny_config()))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: jax.numpy.asarray(rng.normal(size=a.shape) * 10, a.dtype), abstract)


@pytest.fixture(scope="module")
def run(state, tmp_path_factory):
    """A run with checkpoints 1 to 8, of which the newest two and multiples of five are kept."""
    folder = tmp_path_factory.mktemp("run")
    with checkpoints.Checkpoints(folder, CheckpointConfig(every_steps=1, latest=2, keep_every_steps=5)) as writer:
        for step in range(1, 9):
            writer.save(state.replace(step=np.int32(step)), {"config": "c", "corpus": "d"})
    return folder


def test_the_newest_and_the_spaced_ones_are_kept(run):
    assert checkpoints.steps(run) == [5, 7, 8]
    assert checkpoints.steps(run / "nowhere") == []


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 4)])
def test_comes_back_on_any_mesh(run, state, devices, fsdp):
    recipe = recipe_from(tiny_config())
    mesh = make_mesh(ParallelConfig(fsdp, 1), jax.devices()[:devices])
    with checkpoints.Checkpoints(run, recipe.checkpoint) as reader:
        back, meta = reader.restore(8, abstract_sharded_state(recipe, mesh))
    assert meta.items() >= {"config": "c", "corpus": "d", "step": 8, "format": 2}.items() and int(back.step) == 8
    assert states.state_hash(back) == states.state_hash(state.replace(step=jax.numpy.int32(8)))
    assert all(isinstance(leaf.sharding, NamedSharding) for leaf in jax.tree.leaves(back.params))


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 4)])
def test_the_first_step_takes_over_what_was_restored_or_says_so(run, state, devices, fsdp, capsys):
    """No buffer of the restored state outlives a step that may have them all; of one that may not, one line tells."""
    recipe = recipe_from(tiny_config())
    mesh = make_mesh(ParallelConfig(fsdp, 1), jax.devices()[:devices])
    with checkpoints.Checkpoints(run, recipe.checkpoint) as reader:
        restored, _ = initial_state(reader, 8, recipe, mesh, "d")
    assert states.state_hash(restored) == states.state_hash(state.replace(step=jax.numpy.int32(8)))
    wanted = jax.tree.map(lambda a: a.sharding, abstract_sharded_state(recipe, mesh))
    assert jax.tree.map(lambda a: a.sharding, restored) == wanted

    def step(s):
        return jax.tree.map(lambda x: x + x, s)

    jax.block_until_ready(jax.jit(step)(restored))
    warn_if_kept(restored)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(restored)) / 2**20
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith(f"warning: the first step copied {size:,.1f} MiB of its state")
    jax.block_until_ready(jax.jit(step, donate_argnums=0)(restored))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(restored))
    warn_if_kept(restored)
    assert capsys.readouterr().err == ""


def test_one_item_needs_no_mesh(run, state):
    teacher, meta = checkpoints.restore_teacher(run, 7)
    assert meta["step"] == 7
    for a, b in zip(jax.tree.leaves(teacher), jax.tree.leaves(state.teacher), strict=True):
        assert isinstance(a, np.ndarray)
        np.testing.assert_array_equal(a, b)


def test_an_opened_item_is_read_array_by_array_and_compared(run, state, tmp_path):
    """Shapes cost no reading; each array is what was saved, or is named."""
    opened, meta = checkpoints.open_teacher(run, 7)
    assert meta["teacher_digest"] and jax.tree.structure(opened) == jax.tree.structure(state.teacher)
    for a, b in zip(jax.tree.leaves(opened), jax.tree.leaves(state.teacher), strict=True):
        assert isinstance(a, checkpoints.StoredArray) and (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(np.asarray(a), b)
    other = dataclasses.replace(opened["backbone"]["cls_token"], fingerprint="0" * 16)
    with pytest.raises(checkpoints.Damaged, match="teacher/backbone/cls_token is not what was saved"):
        np.asarray(other)


def test_parse(run, tmp_path):
    assert checkpoints.parse(str(run)) == (run, 8)
    assert checkpoints.parse(f"{run}@5") == (run, 5)
    for name, message in (
        (f"{run}@6", "no step 6; write one of 5, 7, 8"),
        (str(tmp_path / "nowhere"), "no folder"),
        (str(tmp_path), "no finished checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoints.parse(name)
