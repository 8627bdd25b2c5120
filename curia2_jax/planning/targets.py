"""Accelerators that are not here, described to their compilers: TPU slices and GPUs."""

import importlib.util
from typing import NamedTuple

import jax
from jax.experimental import topologies

from curia2_jax.errors import UserError
from curia2_jax.planning.chips import Chip


class _Gpu(NamedTuple):
    """Figures of NVIDIA's data sheets, tuning guides and CUDA programming guide that XLA's cost model reads."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: float  # GHz, boost
    l2: int  # bytes
    shared: int  # bytes of a multiprocessor; a block can have 1 KiB less


_GPUS = {
    "a100": _Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 40 * 2**20, 164 * 2**10),
    "h100": _Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 50 * 2**20, 228 * 2**10),
    "h200": _Gpu("NVIDIA H200", (9, 0), 132, 1.98, 50 * 2**20, 228 * 2**10),
    "b200": _Gpu("NVIDIA B200", (10, 0), 148, 1.965, 126 * 2**20, 228 * 2**10),
}
# Of the environment that the program is compiled for: CUDA 13, cuDNN 9.10.
_CUDNN = (9, 10)
_TEMPLATE = """
platform_name: "CUDA"
device_description_str: "{name}"
runtime_version {{ major: 13 }}
dnn_version_info {{ major: {cudnn[0]} minor: {cudnn[1]} }}
gpu_device_info {{
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]}{extension} }}
  core_count: {multiprocessors}
  fpus_per_core: {fpus}
  clock_rate_ghz: {clock}
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory:.0f}
  l2_cache_size: {l2}
  shared_memory_per_core: {shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {optin}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""


def tpu_devices(topology: str) -> list[jax.Device]:
    """Descriptions of the devices of a TPU slice.

    Raises:
      UserError: libtpu does not know the slice.
    """
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as e:  # libtpu raises what it likes
        raise UserError(f"--topology={topology}: {' '.join(str(e).split())[:200]}") from e


def gpu_compiler_installed() -> bool:
    """Whether XLA's compiler for NVIDIA GPUs is in this environment."""
    return any(importlib.util.find_spec(f"jax_cuda{major}_plugin") for major in (12, 13))


def gpu_devices(chip: Chip, number: int) -> list[jax.Device]:
    """Descriptions of GPUs in whole nodes of `chip.node`, or of fewer in one."""
    gpu, node = _GPUS[chip.name], min(chip.node, number)
    target = _TEMPLATE.format(
        **gpu._asdict(), cudnn=_CUDNN, bandwidth=chip.bandwidth, memory=chip.memory, optin=gpu.shared - 1024,
        fpus=64 if gpu.capability == (8, 0) else 128,
        # From Hopper on, tensor cores have instructions of their generation alone (sm_90a).
        extension=" feature_extension: ACCELERATED_FEATURES" if gpu.capability >= (9, 0) else "",
    )  # fmt: skip
    shape = f"1x{number // node}x{node}"  # slices x hosts x GPUs of a host
    return list(topologies.get_topology_desc(platform="cuda", target_config=target, topology=shape).devices)
