"""How the tokens of a model become the feature of a sample: every choice by name, and the two published protocols."""

from typing import Literal, NamedTuple

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
    """

    over: Literal["slices", "tokens"]
    norm: Literal["after", "before"]
    unmasked: Literal["class", "patches"]
    single: Literal["class", "patches"] = "class"
    window: int = 0

    def of_patches(self) -> "Choice":
        """The same with the mean of the patches wherever there is no mask."""
        return self._replace(unmasked="patches", single="patches")


PRESETS = {
    "curia-2": Choice("slices", "after", "class"),
    "curia-v1": Choice("tokens", "before", "patches"),
}
VALUES = {"over": ("slices", "tokens"), "norm": ("after", "before"), "unmasked": ("class", "patches")}
VALUES["single"] = VALUES["unmasked"]


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
        if name == "window" and value.isdigit():
            found[name] = int(value)
        elif allowed and value in allowed:
            found[name] = value
        else:
            known = ", ".join(f"{key}={'|'.join(one)}" for key, one in VALUES.items())
            raise UserError(f"--pooling: found {change!r}; write {known}, window=SLICES")
    return Choice(**found)


def window(mask: np.ndarray | None, depth: int, size: int) -> slice:
    """The slices that count: `size` around the lower median of the masked ones, cut at the ends of the volume (the
    public trainer wraps around below and breaks above)."""
    if not size:
        return slice(0, depth)
    masked = np.flatnonzero(mask.any((1, 2))) if mask is not None else np.empty(0)
    middle = int(masked[(len(masked) - 1) // 2]) if len(masked) else depth // 2
    start = middle - size // 2
    return slice(max(start, 0), min(start + size, depth))
