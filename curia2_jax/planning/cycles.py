"""Where a TPU program spends its time, by the compiler's own cost model: `estimated_cycles` of every operation.

An estimate and no clock: operations of a loop count as often as it runs, nothing overlaps, and collectives that run
beside others have no cycles. Kernels of our own (Pallas) carry no estimate either; of them the operations and bytes
that they declare are taken, at the chip's peaks.
"""

import collections
import re
from typing import NamedTuple

from curia2_jax.planning import hlo
from curia2_jax.planning.chips import Chip

# Categories by the scope that an operation's name has; the first that matches.
CATEGORIES = (
    ("feed-forward", r"blocks/ffn"),
    ("attention projections", r"attn/(query|key|value|out)"),
    ("attention", r"blocks/attn"),
    ("LayerNorm", r"norm[12]"),
    ("LayerScale, residual, drop path", r"/blocks"),
    ("embedding, final norm, saved activations", r"ViT"),
    ("heads", r"DINOHead"),
    ("regularizers", r"term_(koleo|sigreg)"),
    ("prototypes: logits, targets, cross-entropy", r"term_|targets|srb,bk->srk"),
    ("crops and augmentation", r"augment"),
    ("optimizer and the rest", r""),
)
_MOVES = re.compile(r"copy|convert|broadcast|transpose|bitcast|pad")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_DECLARED = re.compile(r'"cost_estimate":\{"flops":"(\d+)","transcendentals":"\d+","bytes_accessed":"(\d+)"')


class Row(NamedTuple):
    """One category; milliseconds on one chip."""

    category: str
    ms: float
    moves_ms: float  # of it bare copies, converts, broadcasts


def table(text: str, chip: Chip) -> list[Row]:
    """A row for every category of a compiled program, the largest first, then the kernels and the sum."""
    total: dict[str, float] = collections.defaultdict(float)
    moves: dict[str, float] = collections.defaultdict(float)
    kernels = 0.0
    for instruction, times in hlo.executed(text):
        name = m.group(1) if (m := re.search(r'op_name="([^"]*)"', instruction.rest)) else ""
        if m := _CYCLES.search(instruction.rest):
            ms = int(m.group(1)) * times / chip.clock * 1e3
            category = next(c for c, pattern in CATEGORIES if re.search(pattern, name))
            total[category] += ms
            if _MOVES.search(instruction.name) and "convolution" not in instruction.name:
                moves[category] += ms
        elif m := _DECLARED.search(instruction.rest):
            flops, moved = map(int, m.groups())
            kernels += max(flops / chip.flops, moved / chip.bandwidth) * times * 1e3
    rows = [Row(category, total[category], moves[category]) for category in sorted(total, key=total.get, reverse=True)]
    rows.append(Row("attention kernels, by what they declare", kernels, 0.0))
    return [*rows, Row("sum", sum(row.ms for row in rows), sum(row.moves_ms for row in rows))]
