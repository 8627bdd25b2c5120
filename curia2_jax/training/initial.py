"""Where a run's first state comes from: its own newest checkpoint, else `init_from`, else random numbers."""

from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.errors import UserError
from curia2_jax.models import pos_embed
from curia2_jax.parallel import compiler, sharding
from curia2_jax.parallel.sharding import path_of
from curia2_jax.training import checkpoints
from curia2_jax.training.checkpoints import Checkpoints
from curia2_jax.training.recipe import Recipe
from curia2_jax.training.state import TrainState, abstract_state, from_params, init_params, init_state

PyTree = Any


def abstract_sharded_state(recipe: Recipe, mesh: Mesh | AbstractMesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing allocated."""
    abstract = abstract_state(recipe)
    shardings = sharding.state_shardings(abstract, mesh)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def initial_state(saved: Checkpoints, newest: int | None, recipe: Recipe, mesh: Mesh, contract_hash: str) -> TrainState:
    """The state to go on from: that of the checkpoint `newest`, if there is one.

    Raises:
      UserError: that checkpoint was trained on another corpus, or `init_from` does not fit the model.
    """
    abstract = abstract_sharded_state(recipe, mesh)
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    if newest is not None:
        state, meta = saved.restore(newest, abstract)
        if meta["corpus"] != contract_hash:
            raise UserError(_of_another_corpus(recipe.data.corpus, contract_hash, meta["corpus"]))
        return state
    key = jax.random.key(recipe.seed)
    if not recipe.init_from:
        program = jax.jit(lambda: init_state(key, recipe), out_shardings=shardings).lower()
        return program.compile(compiler.options_for_once(jax.default_backend()))()
    params, teacher = pretrained(recipe)
    random = jax.jit(lambda: init_params(key, recipe), out_shardings=shardings.params)()
    # Heads that the folder lacks (a converted backbone has none) start at random.
    params, teacher = (
        {**random, **jax.device_put(tree, {k: shardings.params[k] for k in tree})} for tree in (params, teacher)
    )
    return jax.jit(lambda p, t: from_params(p, t, recipe), out_shardings=shardings)(params, teacher)


def _of_another_corpus(corpus: str, found: str, before: str) -> str:
    """Why a run does not go on, and what to write."""
    if any(before in contract.get("replaces", ()) for contract in Corpus(corpus).contracts):
        return (
            f"config.data.corpus: {corpus} was changed after this run began (its contract was {before[:12]}, now it is "
            f"{found[:12]}: slices were added, or patients withdrew); write another --workdir, and "
            "--config.init_from=RUN to begin with the weights of this run"
        )
    return (
        f"config.data.corpus: {corpus} has the contract {found[:12]}, the checkpoints of this run are of "
        f"{before[:12]}; write the corpus of the run, or another --workdir"
    )


def pretrained(recipe: Recipe) -> tuple[PyTree, PyTree]:
    """Student and teacher of `init_from` as NumPy trees, the position grid interpolated to this recipe's.

    Raises:
      UserError: an array has another shape than this config's model, named.
    """
    run, step = checkpoints.parse(recipe.init_from)
    expected = abstract_state(recipe).params
    trees = []
    for item in ("params", "teacher"):
        tree = checkpoints.restore_item(run, step, item)
        grid = tree["backbone"]["pos_embed"]
        tree["backbone"]["pos_embed"] = pos_embed.resize_grid(grid, recipe.model.grid, recipe.model.position_form)
        found = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        kept = {name: expected[name] for name in tree if name in expected}
        wanted = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(kept)}
        for path in sorted(found.keys() | wanted.keys()):
            if found.get(path) != wanted.get(path):
                raise UserError(
                    f"config.init_from: {path} is {found.get(path)} in {recipe.init_from}, {wanted.get(path)} in this "
                    "config; write a run with the same model and heads"
                )
        trees.append(tree)
    return trees[0], trees[1]
