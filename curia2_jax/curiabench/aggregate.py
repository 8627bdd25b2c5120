"""How the tokens of a model become the feature of a sample: every choice by name, and the two published protocols."""

from typing import Any, Literal, NamedTuple

import numpy as np

from curia2_jax.errors import UserError


class Choice(NamedTuple):
    """How a sample is pooled.

    Attributes:
      over: `slices`, each counts the same; or `tokens`, so that a slice counts by its masked area.
      norm: tokens after the final norm or before it; single slices are always taken after it.
      unmasked: `class` token or mean of `patches`, where a volume has no mask.
      single: the same, of a single slice without a mask.
      window: how many slices around the middle masked one (of those, or of all without a mask); 0 = all.
      edges: a window that begins before the first slice is `cut` there, or takes slices from the end as well (`wrap`).
      chunk: volumes of more slices than this have their tokens after the norm, whatever `norm` says; 0 = none.
      padding: whether attention over slices may read what fills up a shorter volume.
    """

    over: Literal["slices", "tokens"]
    norm: Literal["after", "before"]
    unmasked: Literal["class", "patches"]
    single: Literal["class", "patches"] = "class"
    window: int = 0
    edges: Literal["cut", "wrap"] = "cut"
    chunk: int = 0
    padding: Literal["masked", "read"] = "masked"

    def of_patches(self) -> "Choice":
        """The same with the mean of the patches wherever there is no mask."""
        return self._replace(unmasked="patches", single="patches")


class Defect(NamedTuple):
    """What the public trainer of Curia does otherwise (raidium-med/curia, trainer.py at 8b4afa3a).

    `key` of a `Choice` has the value `found` there; `mended` says what to write for it to go.
    """

    key: str
    found: Any
    mended: str
    changes: str


DEFECTS = (
    Defect("norm", "before", "norm=after", "tokens of a volume are taken before the final norm, of a slice after it"),
    Defect("chunk", 64, "chunk=0", "a volume of more slices than the batch has its tokens after the norm all the same"),
    Defect("over", "tokens", "over=slices", "a slice of a volume counts by the area of its mask"),
    Defect("unmasked", "patches", "unmasked=class", "without a mask a volume is its patches, a slice its class token"),
    Defect("edges", "wrap", "edges=cut", "a window that begins before the first slice takes slices from the other end"),
    Defect("padding", "read", "padding=masked", "attention over slices reads the padding of shorter volumes"),
)
CURIA_2 = Choice("slices", "after", "class")
PRESETS = {"curia-2": CURIA_2, "curia-v1": CURIA_2._replace(**{one.key: one.found for one in DEFECTS})}
VALUES = {
    "over": ("slices", "tokens"),
    "norm": ("after", "before"),
    "unmasked": ("class", "patches"),
    "single": ("class", "patches"),
    "edges": ("cut", "wrap"),
    "padding": ("masked", "read"),
}
NUMBERS = ("window", "chunk")


def parse(text: str) -> Choice:
    """A preset, and what differs from it: `curia-v1,norm=after,window=3`.

    Raises:
      UserError: no such preset, choice or value.
    """
    preset, *changes = text.split(",")
    if preset not in PRESETS:
        raise UserError(f"--pooling: found {preset!r}; write {' or '.join(PRESETS)}, then changes such as norm=after")
    found = PRESETS[preset]._asdict()
    for change in changes:
        name, _, value = change.partition("=")
        allowed = VALUES.get(name)
        if name in NUMBERS and value.isdigit():
            found[name] = int(value)
        elif allowed and value in allowed:
            found[name] = value
        else:
            known = ", ".join(f"{key}={'|'.join(one)}" for key, one in VALUES.items())
            raise UserError(f"--pooling: found {change!r}; write {known}, window=SLICES, chunk=SLICES")
    return Choice(**found)


def defects(choice: Choice) -> dict[str, str]:
    """Those of `DEFECTS` that a choice has, as one writes them, and what each changes."""
    values = choice._asdict()
    return {
        f"{one.key}={values[one.key]}": one.changes for one in DEFECTS if f"{one.key}={values[one.key]}" != one.mended
    }


def after_norm(choice: Choice, depth: int) -> bool:
    """Whether tokens of a volume of so many slices are taken after the final norm."""
    return choice.norm == "after" or 0 < choice.chunk < depth


def counted(mask: np.ndarray | None, depth: int, choice: Choice) -> list[int]:
    """The slices of a volume that count, of those in the window: all, or those with a masked pixel (S, H, W)."""
    return [z for z in window(mask, depth, choice) if mask is None or mask[z].any()]


def window(mask: np.ndarray | None, depth: int, choice: Choice) -> list[int]:
    """`choice.window` slices around the lower median of the masked ones (S, H, W), as far as there are any. (Beyond the
    last slice the public trainer breaks.)"""
    if not choice.window:
        return list(range(depth))
    masked = np.flatnonzero(mask.any((1, 2))) if mask is not None else np.empty(0)
    middle = int(masked[(len(masked) - 1) // 2]) if len(masked) else depth // 2
    start = middle - choice.window // 2
    first = 0 if choice.edges == "cut" else -depth
    return [z % depth for z in range(max(start, first), min(start + choice.window, depth))]
