"""How the tokens of a model become the feature of a sample: every choice by name, and the two published protocols."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch

from curia2_jax.curiabench.adapters.adapter import Adapter, Volume
from curia2_jax.curiabench.features import patch_mask
from curia2_jax.errors import UserError


class Choice(NamedTuple):
    """How a sample is pooled.

    Attributes:
      over: `slices`, each counts the same; or `tokens`, so that a slice counts by its masked area.
      norm: tokens after the final norm or before it; single slices are always taken after it.
      unmasked: `class` token or mean of `patches`, where a volume has no mask. A single slice gives its class token.
      window: how many slices around the middle masked one (of those, or of all without a mask); 0 = all.
    """

    over: Literal["slices", "tokens"]
    norm: Literal["after", "before"]
    unmasked: Literal["class", "patches"]
    window: int = 0


PRESETS = {
    "curia-2": Choice("slices", "after", "class"),
    "curia-v1": Choice("tokens", "before", "patches"),
}
VALUES = {"over": ("slices", "tokens"), "norm": ("after", "before"), "unmasked": ("class", "patches")}


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


def feature(adapter: Adapter, volume: Volume, mask: np.ndarray | None, choice: Choice) -> np.ndarray:
    """(D,) float32 of a volume (S, H, W), or of a slice if S is 1, under its mask bool of that shape."""
    if adapter.takes == "volume":
        return _of_volume(adapter, volume, mask)
    single = len(volume.voxels) == 1
    chosen = window(mask, len(volume.voxels), choice.window)
    total, count = torch.zeros(1), 0.0
    for tokens, number in _slices(adapter, volume, mask, chosen, choice, single):
        weight = 1 if choice.over == "slices" else number
        total, count = total + weight * tokens.double().cpu(), count + weight
    return (total / count).float().numpy()


def _slices(adapter, volume, mask, chosen: slice, choice: Choice, single: bool) -> Iterator[tuple[torch.Tensor, int]]:
    """The mean token of each slice that counts, and of how many tokens; slices with an empty mask are left out."""
    numbers = [z for z in range(chosen.start, chosen.stop) if mask is None or mask[z].any()]
    done = 0
    for batch in adapter.prepare(volume, numbers):
        tokens = adapter.encode(batch, single or choice.norm == "after")
        part, done = numbers[done : done + len(batch)], done + len(batch)
        for row, z in enumerate(part):
            patches = None if tokens.patches is None else tokens.patches[row]
            if patches is None or (mask is None and (single or choice.unmasked == "class")):
                yield tokens.whole[row], 1
            elif mask is None:
                yield patches.flatten(0, 1).mean(0), patches[..., 0].numel()
            else:
                side = batch.shape[-1]
                under = patch_mask(mask[z], side, side // patches.shape[1]).to(patches.device)
                yield patches[under].mean(0), int(under.sum())


def _of_volume(adapter: Adapter, volume: Volume, mask: np.ndarray | None) -> np.ndarray:
    """Pooled output of a 3-D network, or the mean of the tokens whose cell holds masked voxels.

    The mask goes to the cells as the volume does where it has no affine: slices last, padded at the end.
    """
    (batch,) = adapter.prepare(volume, list(range(len(volume.voxels))))
    tokens = adapter.encode(batch, True)
    if mask is None or tokens.patches is None or volume.affine is not None:
        assert tokens.whole is not None
        return tokens.whole[0].cpu().numpy()
    full = torch.zeros(batch.shape[2:])
    full[: mask.shape[1], : mask.shape[2], : mask.shape[0]] = torch.from_numpy(
        np.moveaxis(mask, 0, 2).astype(np.float32)
    )
    under = torch.nn.functional.adaptive_max_pool3d(full[None, None], tokens.patches.shape[1:4])[0, 0] > 0
    return tokens.patches[0][under.to(tokens.patches.device)].mean(0).cpu().numpy()
