"""A small exported model, on disk and loaded."""

import weakref

import pytest

from curia2_jax.curiabench import forward
from curia2_jax.curiabench import model as models
from curia2_jax.curiabench.model import load_model
from tests import small_benchmark


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_benchmark.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "cpu")


@pytest.fixture
def alive(monkeypatch):
    """How many backbones are in memory, the new one counted, whenever one is loaded, and at each `forward.encode`."""
    made, counts = [], []

    def still_there():
        return sum(one() is not None for one in made)

    def noted(load):
        def loaded(*arguments):
            counts.append(still_there() + 1)
            network = load(*arguments)
            made.append(weakref.ref(network))
            return network

        return loaded

    def encode(*arguments):
        counts.append(still_there())
        return encoded(*arguments)

    encoded = forward.encode
    monkeypatch.setattr(forward, "encode", encode)
    for name in ("initial", "load_weights"):
        monkeypatch.setattr(models, name, noted(getattr(models, name)))
    return counts
