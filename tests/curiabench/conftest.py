"""A small exported model, on disk and loaded."""

import pytest

from curia2_jax.curiabench.model import load_model
from tests import small_benchmark


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_benchmark.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, "cpu")
