"""Where a run's first state comes from: its own newest checkpoint, else `init_from`, else random numbers."""

import dataclasses
import pathlib
from collections.abc import Mapping, Set
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.errors import UserError
from curia2_jax.models.dino_head import HeadConfig
from curia2_jax.models.projector import ProjectorConfig
from curia2_jax.parallel import compiler, sharding
from curia2_jax.training import adapt, checkpoints
from curia2_jax.training.adapt import Fitted
from curia2_jax.training.checkpoints import Checkpoints
from curia2_jax.training.recipe import Recipe
from curia2_jax.training.state import TrainState, abstract_state, from_params, init_params, init_state

PyTree = Any
REGISTERS = "backbone/register_tokens"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a first state comes from: a phrase, and for a folder that weights were read from what was done to them."""

    line: str
    record: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Parameters of `init_from` as NumPy arrays, without what is drawn anew."""

    params: PyTree
    teacher: PyTree
    origin: Origin


def abstract_sharded_state(recipe: Recipe, mesh: Mesh | AbstractMesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing allocated."""
    abstract = abstract_state(recipe)
    shardings = sharding.state_shardings(abstract, mesh)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def initial_state(
    saved: Checkpoints, newest: int | None, recipe: Recipe, mesh: Mesh, contract_hash: str
) -> tuple[TrainState, Origin]:
    """The state to go on from, and what it is: that of the checkpoint `newest`, if there is one; else that of
    `init_from`, if it is given; else random.

    Raises:
      UserError: that checkpoint was trained on another corpus, or `init_from` does not fit the model.
    """
    abstract = abstract_sharded_state(recipe, mesh)
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    if newest is not None:
        state, meta = saved.restore(newest, abstract)
        if meta["corpus"] != contract_hash:
            raise UserError(_of_another_corpus(recipe.data.corpus, contract_hash, meta["corpus"]))
        instead = " (init_from was for its start)" if recipe.init_from else ""
        return state, Origin(f"this run's own checkpoint of step {newest:,}{instead}")
    if not recipe.init_from:
        key = jax.random.key(recipe.seed)
        program = jax.jit(lambda: init_state(key, recipe), out_shardings=shardings).lower()
        state = program.compile(compiler.options_for_once(jax.default_backend()))()
        return state, Origin(f"random numbers of seed {recipe.seed}")
    found = pretrained(recipe)
    places = flatten_dict(shardings.params, sep="/")
    drawn = _drawn(recipe, places.keys() - flatten_dict(found.teacher, sep="/").keys(), places)
    params, teacher = (
        unflatten_dict({path: jax.device_put(leaf, places[path]) for path, leaf in flat.items()} | drawn, sep="/")
        for flat in (flatten_dict(tree, sep="/") for tree in (found.params, found.teacher))
    )
    state = jax.jit(lambda p, t: from_params(p, t, recipe), out_shardings=shardings)(params, teacher)
    return state, found.origin


def _drawn(recipe: Recipe, absent: Set[str], places: Mapping[str, NamedSharding]) -> dict[str, Array]:
    """The random numbers that a new model of this recipe has at some paths; the others are not computed."""

    def some() -> dict[str, Array]:
        flat = flatten_dict(init_params(jax.random.key(recipe.seed), recipe), sep="/")
        return {path: flat[path] for path in sorted(absent)}

    return jax.jit(some, out_shardings={path: places[path] for path in sorted(absent)})() if absent else {}


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


def pretrained(recipe: Recipe) -> Pretrained:
    """Student and teacher of `init_from`, made to fit by the rules of `init.adapt`. A folder that has the teacher alone
    (a converted one) gives both.

    Raises:
      UserError: no such folder, or something there does not fit; with the keys that would.
    """
    run, step = checkpoints.parse(recipe.init_from)
    meta = checkpoints.read_meta(run, step)
    items = ("teacher",) if "params" not in meta.get("arrays", checkpoints.ITEMS) else ("params", "teacher")
    trees = {item: checkpoints.restore_item(run, step, item) for item in items}
    try:
        fitted = {item: _fitted(tree, _known(run, meta), recipe) for item, tree in trees.items()}
    except UserError as e:
        raise UserError(f"config.init_from: {recipe.init_from}: {e}") from None
    teacher = fitted["teacher"]
    student = fitted.get("params", teacher)
    record: dict[str, Any] = {
        "init_from": recipe.init_from,
        "step": step,
        "adapt": recipe.init.adapt,
        "adapted": list(teacher.adapted),
        "drawn anew": _absent(recipe, teacher.params),
        "left out": [name for name in meta.get("left_out", ()) if name] + list(teacher.dropped),
    }
    said = [f"{what}: {', '.join(record[what])}" for what in ("adapted", "drawn anew", "left out") if record[what]]
    origin = Origin("; ".join([f"{recipe.init_from} at step {step:,}", *said]), record)
    return Pretrained(student.params, teacher.params, origin)


def _known(run: pathlib.Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the maker of a checkpoint says of the model and its arrays do not show: the number of attention heads."""
    model = meta.get("model") or (checkpoints.read_config(run)["model"] if (run / "config.json").exists() else {})
    return {"heads": model["heads"]} if "heads" in model else {}


def _fitted(tree: PyTree, known: Mapping[str, Any], recipe: Recipe) -> Fitted:
    """`adapt.fit`, and a look at every shape. Raises UserError."""
    every: dict[str, HeadConfig | ProjectorConfig]
    every = {"dino_head": recipe.dino_head, "ibot_head": recipe.ibot_head, "projector": recipe.projector}
    heads = {name: every[name] for name in abstract_state(recipe).params if name != "backbone"}
    try:
        fitted = adapt.fit(tree, known, recipe.model, heads, recipe.init.rules)
    except UserError:
        raise
    except (KeyError, ValueError, AttributeError, TypeError) as e:
        raise UserError(f"no weights of a model of this code ({type(e).__name__}: {e}); write another run") from None
    wanted = {path: leaf.shape for path, leaf in flatten_dict(abstract_state(recipe).params, sep="/").items()}
    found = {path: leaf.shape for path, leaf in flatten_dict(fitted.params, sep="/").items()}
    modules = {path.partition("/")[0] for path in found}
    for path in sorted(wanted.keys() | found.keys()):
        drawn = path not in found and (path == REGISTERS or path.partition("/")[0] not in modules)
        if not drawn and found.get(path) != wanted.get(path):
            raise UserError(
                f"{path} is {found.get(path, 'not')} there, {wanted.get(path, 'not')} in this config; write a run with "
                "the same model and heads"
            )
    return fitted


def _absent(recipe: Recipe, params: PyTree) -> list[str]:
    """What is drawn anew, by the name of the head or the path of the parameter."""
    expected = abstract_state(recipe).params
    heads = [name for name in expected if name not in params]
    return heads + [REGISTERS] * (recipe.model.registers > 0 and "register_tokens" not in params["backbone"])
