"""What the accelerators can do at most, by their makers' data sheets; the one table that MFU and planning divide by."""

import dataclasses
import math
import re

from curia2_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one accelerator."""

    name: str
    flops: float  # dense bfloat16, FLOP/s
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes/s
    links: float  # bytes/s that a device can take in from its own node or slice during an all-gather
    network: float  # bytes/s between nodes or slices, a device's share
    node: int  # devices of a node; 0: a slice of any size is one
    clock: float = 0.0  # Hz of a TPU's cores: what its compiler's cycles are divided by


# NVLink counts one direction; InfiniBand is 200 Gbit/s (A100) or 400 Gbit/s a device. TPU links count both directions
# of every axis of the torus (two axes for v5e and v6e, three for v5p); their network is the data center's, a chip.
# Clocks: of v5e and v5p as JAX's scaling book gives them; of v6e what its peak is by four arrays of 256 x 256.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("a100", 312e12, 80e9, 2.04e12, 300e9, 25e9, 8),
        Chip("h100", 989e12, 80e9, 3.35e12, 450e9, 50e9, 8),
        Chip("h200", 989e12, 141e9, 4.8e12, 450e9, 50e9, 8),
        Chip("b200", 2250e12, 180e9, 8.0e12, 900e9, 50e9, 8),
        Chip("v5e", 197e12, 16 * 2**30, 0.82e12, 180e9, 3.1e9, 0, 1.5e9),
        Chip("v5p", 459e12, 95 * 2**30, 2.77e12, 540e9, 6.2e9, 0, 1.75e9),
        Chip("v6e", 918e12, 32 * 2**30, 1.64e12, 360e9, 12.5e9, 0, 1.75e9),
    )
}
# How `jax.Device.device_kind` spells them.
_KINDS = {
    "a100": "a100",
    "h100": "h100",
    "h200": "h200",
    "b200": "b200",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5p": "v5p",
    "tpu v5": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
}


def chip(name: str) -> Chip:
    """The chip of that name.

    Raises:
      UserError: it is not in the table.
    """
    if name not in CHIPS:
        raise UserError(f"chip {name!r}: write one of {', '.join(CHIPS)}")
    return CHIPS[name]


def target(topology: str | None, gpus: str | None) -> tuple[Chip, int]:
    """(chip, devices) of the flags of launch/plan.py.

    Raises:
      UserError: neither or both were given, or one that says nothing or what cannot be.
    """
    if (topology is None) == (gpus is None):
        raise UserError("--topology or --gpus: write one of them, such as --topology=v5p:4x4x4 or --gpus=h100x64")
    if topology is not None:
        m = re.fullmatch(r"(v\w+):(\d+(?:x\d+)+)", topology)
        if not m:
            raise UserError(f"--topology={topology}: write CHIP:AxB or CHIP:AxBxC, such as v5e:8x8 or v5p:4x4x4")
        return chip(m.group(1)), math.prod(int(side) for side in m.group(2).split("x"))
    m = re.fullmatch(r"(\w+?)x(\d+)", gpus or "")
    if not m or int(m.group(2)) < 1:
        raise UserError(f"--gpus={gpus}: write CHIPxNUMBER, such as h100x64")
    found, number = chip(m.group(1)), int(m.group(2))
    if not found.node:
        known = ", ".join(c.name for c in CHIPS.values() if c.node)
        raise UserError(f"--gpus={gpus}: not a GPU; write one of {known}, such as h100x64")
    if number > found.node and number % found.node:
        raise UserError(f"--gpus={gpus}: not whole nodes of {found.node}; write a multiple of {found.node}")
    return found, number


def chip_of(device_kind: str) -> Chip | None:
    """The chip behind a `jax.Device.device_kind`, or None for one that has no line in the table, as every CPU."""
    kind = device_kind.lower()
    found = [name for spelling, name in _KINDS.items() if spelling in kind]
    return CHIPS[found[0]] if found else None
