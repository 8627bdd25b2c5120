"""What a compiled program does, read from its HLO text: matrix products and collectives, each with how often it runs.

XLA's own cost analysis counts the body of a loop once, so a scan over 1 or 40 layers looks alike; here every operation
is multiplied by the trip counts of the loops around it.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+[a-z]*)?)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Operation:
    """A matrix product or a collective, as one device sees it."""

    kind: str  # "dot" or one of COLLECTIVES
    times: int  # how often a run of the program does it
    bytes: int  # of its result: what a device holds after it; of a reduce-scatter, of its operand
    flops: float  # of one; 0 for a collective
    dtypes: tuple[str, ...]  # of the operands
    group: int  # devices that take part
    loop: int  # loops around it
    name: str  # where in the source it comes from: JAX's op_name


@dataclasses.dataclass
class Instruction:
    """A line of a computation: `name = shape opcode(rest`."""

    name: str
    shape: str
    opcode: str
    rest: str
    root: bool

    @property
    def source(self) -> str:
        """Where in the source it comes from: JAX's op_name."""
        m = _NAME.search(self.rest)
        return m.group(1) if m else ""

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        names = _CALLED.findall(self.rest)
        if m := _BRANCHES.search(self.rest):
            names += [c.strip().lstrip("%") for c in m.group(1).split(",")]
        return names


def shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Every (dtype, dimensions) in a shape, which may be a tuple of several."""
    return [
        (dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in _SHAPE.findall(text)
        if dtype in _BITS or re.search(r"\d", dtype)
    ]


def size(text: str) -> int:
    """Bytes of a shape."""
    total = 0.0
    for dtype, dims in shapes(text):
        bits = _BITS.get(dtype) or int(re.findall(r"\d+", dtype)[0])
        total += math.prod(dims) * bits / 8
    return int(total)


def _members(shape: str) -> list[str]:
    """The shapes that a tuple is made of, each of which may be a tuple."""
    members, depth = [""], 0
    for c in shape.strip()[1:-1]:
        depth += (c in "({[") - (c in ")}]")
        if c == "," and depth == 0:
            members.append("")
        else:
            members[-1] += c
    return members


def computations(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """The name of the entry, and the lines of every computation by its name."""
    entry, current = "", None
    found: dict[str, list[Instruction]] = {}
    for line in _COMMENT.sub("", text).splitlines():
        if line and not line[0].isspace() and (m := _COMPUTATION.match(line)):
            current = found.setdefault(m.group(2), [])
            entry = m.group(2) if m.group(1) else entry
        elif current is not None and (m := _INSTRUCTION.match(line.strip())):
            name, shape, opcode, rest = m.groups()
            current.append(Instruction(name, shape, opcode, rest, root=line.strip().startswith("ROOT ")))
    return entry, found


def trips_of(loop: Instruction, found: dict[str, list[Instruction]]) -> int:
    """How often a loop runs: as noted by XLA, else the constant that its condition compares the counter with."""
    if m := _TRIPS.search(loop.rest):
        return int(m.group(1))
    condition = re.findall(r"condition=%?([\w.\-]+)", loop.rest)[0]
    instructions = {i.name: i for i in found.get(condition, [])}
    for i in instructions.values():
        if i.opcode == "compare" and "direction=LT" in i.rest:
            bound = instructions.get(_operands(i.rest).split("%")[-1].strip())
            if bound is not None and bound.opcode == "constant":
                return int(re.findall(r"\d+", bound.rest)[0])
    return 1


def scheduled(text: str) -> Iterator[tuple[Instruction, int]]:
    """(operation, how often a run of the program does it) of all that a device does one after another.

    A fusion is one operation, whatever is inside. Of a conditional every branch counts.
    """
    entry, found = computations(text)

    def visit(name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for i in found[name]:
            yield i, times
            if i.opcode in ("while", "conditional", "call", "async-start"):
                trips = trips_of(i, found) if i.opcode == "while" else 1
                for inner in i.called:
                    if inner in found and f"condition=%{inner}" not in i.rest:
                        yield from visit(inner, times * trips)

    yield from visit(entry, 1)


def custom_calls(text: str) -> dict[str, int]:
    """How often a run of the program calls each library or kernel, by its target."""
    runs: collections.Counter[str] = collections.Counter()
    for i, times in scheduled(text):
        if i.opcode == "custom-call" and (m := _TARGET.search(i.rest)):
            runs[m.group(1)] += times
    return dict(runs)


def _group(rest: str) -> int:
    """Devices of one replica group: `mesh['a'=4,'b'=2] {'a'}`, `{{0,1},{2,3}}`, `[4,2]<=[8]`; 2 of a permutation."""
    if m := _MESH.search(rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", m.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", m.group(2)))
    if m := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(m.group(2))
    if m := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(m.group(1).split(","))
    if "source_target_pairs" in rest:
        return 2
    return 0


def _operands(rest: str) -> str:
    """The text between the parentheses of an operation."""
    depth = 1
    for i, c in enumerate(rest):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return rest[:i]
    return rest


def operations(text: str) -> list[Operation]:
    """Every matrix product and collective of a compiled program (`jax.stages.Compiled.as_text()`).

    A loop whose trip count cannot be read counts once. Of a conditional every branch counts. TPUs spread a collective
    over several fusions that overlap it with products: the same channel, shape and loop are one.
    """
    entry, found = computations(text)
    out: list[Operation] = []
    seen: set[tuple] = set()

    def visit(name: str, times: int, loop: int, body: str) -> None:
        table = {i.name: i.shape for i in found[name]}
        for i in found[name]:
            kind = i.opcode.removesuffix("-start").removesuffix("-done")
            if i.opcode.endswith("-done"):
                continue
            operand_text = _operands(i.rest)
            names = re.findall(r"%([\w.\-]+)", operand_text)
            operand_shapes = [table.get(n, "") for n in names] if names else [operand_text]
            where = i.source
            if kind == "dot":
                lhs = shapes(operand_shapes[0])[0][1] if names else shapes(operand_text)[0][1]
                contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)
                over = math.prod(lhs[int(d)] for d in contracted.group(1).split(",") if d) if contracted else 1
                result = math.prod(shapes(i.shape)[0][1])
                dtypes = tuple(shapes(s)[0][0] for s in operand_shapes if shapes(s))
                out.append(Operation("dot", times, size(i.shape), 2.0 * result * over, dtypes, 0, loop, where))
            elif kind == "convolution":
                out.append(_convolution(i, operand_shapes, times, loop, where))
            elif kind in COLLECTIVES:
                channel = m.group(1) if (m := _CHANNEL.search(i.rest)) else f"{name} {i.name}"
                key = (channel, str(shapes(i.shape)), body)
                if key in seen:
                    continue
                seen.add(key)
                dtypes = tuple(dict.fromkeys(s[0] for shape in operand_shapes for s in shapes(shape)))
                moved = sum(size(s) for s in operand_shapes)
                if kind != "reduce-scatter":
                    # What starts an all-gather and the like is (operands, results, ...), of an all-reduce results.
                    paired = i.opcode.endswith("-start") and kind != "all-reduce"
                    moved = size(_members(i.shape)[1] if paired else i.shape)
                out.append(Operation(kind, times, moved, 0.0, dtypes, _group(i.rest), loop, where))
            trips = trips_of(i, found) if i.opcode == "while" else 1
            called = i.called
            if i.opcode in ("all-reduce", "reduce-scatter", "all-reduce-start", "reduce", "sort", "scatter", "map"):
                continue  # what they apply is a scalar function
            before = len(out)
            for computation in called:
                if computation in found:
                    inner = computation if i.opcode == "while" else body
                    visit(computation, times * trips, loop + (i.opcode == "while"), inner)
            if "all-reduce-scatter" in i.name or any("all-reduce-scatter" in c for c in called):
                out[before:] = [_as_reduce_scatter(o) for o in out[before:]]

    visit(entry, 1, 0, entry)
    return out


def _as_reduce_scatter(o: Operation) -> Operation:
    """TPU: a fusion of an all-reduce with the slice of it that a device keeps is the hardware's reduce-scatter."""
    return dataclasses.replace(o, kind="reduce-scatter") if o.kind == "all-reduce" else o


def _convolution(i: Instruction, operand_shapes: list[str], times: int, loop: int, where: str) -> Operation:
    """TPUs write matrix products as convolutions: features are contracted, and so is a spatial axis of which the result
    has one place; the others are axes of the batch, where a dilated window meets one place of the left side."""
    left, right = (shapes(s)[0][1] for s in operand_shapes[:2])
    result = shapes(i.shape)[0][1]
    l_axes, r_axes, out_axes = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)[0]
    spatial = [c for c in r_axes if c.isdigit()]
    window = {key: value.split("x") for key, value in re.findall(r"(\w+)=([\d_x]+)", _window(i.rest))}
    pairs = 1.0
    for n, axis in enumerate(spatial):
        part = {key: value[n] for key, value in window.items()}
        pairs *= _meetings(left[l_axes.index(axis)], right[r_axes.index(axis)], result[out_axes.index(axis)], part)
    rest = math.prod(result[n] for n, axis in enumerate(out_axes) if axis in "bf")
    flops = 2.0 * rest * right[r_axes.index("i")] * pairs
    dtypes = tuple(shapes(s)[0][0] for s in operand_shapes if shapes(s))
    return Operation("dot", times, size(i.shape), flops, dtypes, 0, loop, where)


def _window(rest: str) -> str:
    m = re.search(r"window=\{([^}]*)\}", rest)
    return m.group(1) if m else ""


@functools.lru_cache(maxsize=4096)
def _count_meetings(left: int, right: int, out: int, stride: int, low: int, dilate: int, right_dilate: int) -> int:
    place = np.arange(out)[:, None] * stride + np.arange(right)[None, :] * right_dilate - low
    return int(((place >= 0) & (place <= (left - 1) * dilate) & (place % dilate == 0)).sum())


def _meetings(left: int, right: int, out: int, window: dict[str, str]) -> int:
    """How many (place of the result, place of the kernel) meet an element of the left side and not padding."""
    numbers = (int(window.get(key, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate"))
    stride, dilate, right_dilate = numbers
    return _count_meetings(left, right, out, stride, int(window.get("pad", "0_0").split("_")[0]), dilate, right_dilate)


def total_flops(text: str) -> float:
    """Of all matrix products of a run of the program, on one device."""
    return sum(o.times * o.flops for o in operations(text) if o.kind == "dot")


def collectives(text: str) -> dict[str, dict[str, float]]:
    """By kind: `count` (in the text), `runs` (loops multiplied) and `bytes` (runs times result, on one device)."""
    table: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"count": 0, "runs": 0, "bytes": 0})
    for o in operations(text):
        if o.kind in COLLECTIVES:
            row = table[o.kind]
            row["count"] += 1
            row["runs"] += o.times
            row["bytes"] += o.times * o.bytes
    return {kind: dict(table[kind]) for kind in COLLECTIVES if kind in table}


def wire_bytes(text: str) -> dict[str, float]:
    """Bytes that one device sends in a run of the program, by kind, with ring algorithms: (n - 1) / n of what is
    gathered or scattered, twice that for an all-reduce, all of a permutation."""
    share = {"all-reduce": 2.0, "collective-permute": 2.0}  # a pair has n = 2
    sent = dict.fromkeys(COLLECTIVES, 0.0)
    for o in operations(text):
        if o.kind in COLLECTIVES and o.group > 1:
            sent[o.kind] += o.times * o.bytes * share.get(o.kind, 1.0) * (o.group - 1) / o.group
    return sent
