"""What tests of runs share: a small corpus, and compilations, which are most of what a run of a tiny model takes."""

import dataclasses
import pathlib

import jax
import pytest

from curia2_jax.parallel.mesh import make_mesh
from curia2_jax.training import capsule, loop, prepare
from curia2_jax.training.checkpoints import donatable
from tests.data.small_corpus import write_small_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data") / "corpus"
    write_small_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> pathlib.Path:
    """One compilation cache for all processes that tests start."""
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="module")
def programs():
    """Compiled steps and first states."""
    return {}


@pytest.fixture
def quick(programs, monkeypatch):
    """Runs inside the process of a test, on one device: those of a file compile once, and draw nothing."""
    one = jax.devices()[:1]

    def compile_once(recipe, mesh, state, batch, name, _real=prepare.compile_step):
        program = dataclasses.replace(recipe, data=None, guard=None, checkpoint=None)
        key = (program, tuple(sorted(batch)))
        if key not in programs:
            programs[key] = _real(recipe, mesh, state, batch, name)
        return programs[key]

    def begin_once(saved, newest, recipe, mesh, contract, _real=prepare.initial_state):
        if newest is not None:
            return _real(saved, newest, recipe, mesh, contract)
        key = (recipe.seed, recipe.model, recipe.heads)
        if key not in programs:
            state, origin = _real(saved, None, recipe, mesh, contract)
            programs[key] = jax.device_get(state), jax.tree.map(lambda x: x.sharding, state), origin
        values, shardings, origin = programs[key]
        return donatable(jax.device_put(values, shardings)), origin

    monkeypatch.setattr(prepare, "initial_state", begin_once)
    for module in (prepare, capsule):
        monkeypatch.setattr(module, "make_mesh", lambda c: make_mesh(c, one))
    for module in (loop, capsule):
        monkeypatch.setattr(module, "compile_step", compile_once)
    monkeypatch.setattr(loop.reports, "picture_of_crops", lambda *_: None)
    monkeypatch.setattr(loop.reports, "draw_curves", lambda *_: None)
    monkeypatch.setattr(loop.reports, "print_start", lambda *_: None)


@pytest.fixture
def taken(monkeypatch) -> list[tuple[int, bytes]]:
    """(step, slices) in the order in which the loop sends batches to the devices."""
    sent = []
    real = loop.to_devices

    def record(rows, mesh):
        sent.append((int(rows["step"][0]) + 1, rows["slices"].tobytes()))
        return real(rows, mesh)

    monkeypatch.setattr(loop, "to_devices", record)
    return sent
