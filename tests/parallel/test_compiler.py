"""Compiler flags exist, whatever backend they are for."""

import jax
import jax.numpy as jnp
import pytest

from curia2_jax.parallel import compiler


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_xla_knows_every_flag(platform):
    """XLA refuses an unknown flag on any backend, so a misspelt one for GPUs is found here."""
    lowered = jax.jit(jnp.sin).lower(1.0)
    lowered.compile(compiler.options(platform))
    with pytest.raises(Exception, match="xla_gpu_no_such_flag"):
        lowered.compile({"xla_gpu_no_such_flag": True})


def test_options_are_a_copy():
    compiler.options("gpu").clear()
    assert compiler.options("gpu")


def test_optimization_level():
    before = jax.config.jax_optimization_level
    try:
        compiler.configure("gpu")
        assert jax.config.jax_optimization_level == "O1"
        compiler.configure("cpu")
        assert jax.config.jax_optimization_level == "UNKNOWN"
    finally:
        jax.config.update("jax_optimization_level", before)
