"""Where the time of a step goes on a TPU, by the compiler's own estimate of each operation that it schedules.

The estimates are in cycles of the core, and know nothing of what overlaps with what: read the shares. Kernels written
by hand carry no estimate in cycles, but say how many FLOPs and bytes they are.
"""

import collections
import dataclasses
import re
from typing import Any

from curia2_jax.planning import hlo
from curia2_jax.planning.chips import Chip

# Parts of a step by the scopes in JAX's op_name; the first that is found in it counts.
PARTS = (
    ("feed-forward", r"blocks/.*ffn"),
    ("attention projections", r"blocks/.*attn/\(?(query|key|value|out)\b"),
    ("attention", r"blocks/.*attn"),
    ("LayerNorm", r"blocks/.*norm[12]"),
    ("LayerScale, residual, drop path", r"blocks/|ViT\)*/while"),
    ("embedding and final norm", r"ViT"),
    ("heads", r"DINOHead"),
    ("prototypes", r"targets|term_(dino|ibot)|srb,bk->srk"),
    ("SigReg or KoLeo", r"term_(sigreg|koleo)"),
    ("crops and augmentation", r"augment"),
    ("optimizer and the rest", r""),
)
KERNELS = "kernels, by roofline"
# Operations that change where numbers lie, or their type, and make no new ones.
_MOVES = ("bitcast", "bitcast-convert", "broadcast", "concatenate", "constant", "convert", "copy", "copy-done",
          "copy-start", "dynamic-slice", "dynamic-update-slice", "get-tuple-element", "iota", "pad", "parameter",
          "reshape", "slice", "slice-done", "slice-start", "transpose", "tuple")  # fmt: skip
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COST = re.compile(r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"')


@dataclasses.dataclass
class _Cost:
    seconds: float = 0.0
    moves: float = 0.0


def part_of(source: str) -> str:
    """The part of the step that an op_name belongs to."""
    return next(part for part, scope in PARTS if re.search(scope, source))


def costs(text: str, chip: Chip) -> dict[str, _Cost]:
    """Seconds of a run of the program by part, loops multiplied; `moves` is the share of bare movement in them.

    Args:
      text: a program that was compiled for `chip`.
    """
    computations = hlo.computations(text)[1]
    found: dict[str, _Cost] = collections.defaultdict(_Cost)

    def moves(i: hlo.Instruction) -> bool:
        if i.opcode != "fusion":
            return i.opcode in _MOVES
        return all(moves(inner) for name in i.called for inner in computations.get(name, ()))

    for i, times in hlo.scheduled(text):
        if m := _CYCLES.search(i.rest):
            seconds = times * int(m.group(1)) / chip.clock
            cost = found[part_of(i.source)]
            cost.seconds += seconds
            cost.moves += seconds if moves(i) else 0.0
        elif m := _COST.search(i.rest):
            flops, moved = (int(n) for n in m.groups())
            found[KERNELS].seconds += times * max(flops / chip.flops, moved / chip.bandwidth)
    return found


def table(text: str, chip: Chip) -> list[dict[str, Any]]:
    """A row for each part that is there, and one for all."""
    found = costs(text, chip)
    total = _Cost(sum(c.seconds for c in found.values()), sum(c.moves for c in found.values()))
    names = [name for name in (*(part for part, _ in PARTS), KERNELS) if name in found]
    rows = [(name, found[name]) for name in names] + [("all", total)]
    return [
        {
            "part of the step": name,
            "ms": round(cost.seconds * 1e3, 2),
            "share": round(cost.seconds / total.seconds, 3) if total.seconds else 0.0,
            "ms of it bare moves": round(cost.moves * 1e3, 2),
        }
        for name, cost in rows
    ]
