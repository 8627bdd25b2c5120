"""How XLA is asked to compile the step: all flags of all backends, each with its reason."""

from typing import Any

import jax

_MIB = 2**20
_OPTIONS: dict[str, dict[str, Any]] = {
    "gpu": {
        # One collective for about a layer of ViT-g (28 M parameters in bfloat16) instead of one for each kernel: a
        # kernel alone is too small to reach the bandwidth of NVLink.
        "xla_gpu_all_gather_combine_threshold_bytes": 64 * _MIB,
        "xla_gpu_reduce_scatter_combine_threshold_bytes": 64 * _MIB,
        "xla_gpu_all_reduce_combine_threshold_bytes": 64 * _MIB,
    },
    # libtpu overlaps and combines collectives by itself. But it would split the products of sharded kernels into one a
    # shard, to hide the gathering behind them: partial results of activations, which are larger than the kernels here,
    # then travel through memory as often.
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 2**20},
    "cpu": {},
}
# O1 brings the latency-hiding scheduler and pipelined collectives, which XLA leaves off for GPUs by default.
_OPTIMIZATION_LEVEL = {"gpu": "O1"}


def options(platform: str) -> dict[str, Any]:
    """`compiler_options` for `jax.stages.Lowered.compile` on "cpu", "gpu" or "tpu"."""
    return dict(_OPTIONS[platform])


def options_for_once(platform: str) -> dict[str, Any]:
    """`compiler_options` for a program that runs once: on a CPU making its machine code fast takes longer than running
    it. Elsewhere those of every program."""
    return {"xla_backend_optimization_level": 0} if platform == "cpu" else options(platform)


def configure(platform: str) -> None:
    """Sets what is an option of JAX and not of one program. Before the first compilation."""
    jax.config.update("jax_optimization_level", _OPTIMIZATION_LEVEL.get(platform, "UNKNOWN"))
