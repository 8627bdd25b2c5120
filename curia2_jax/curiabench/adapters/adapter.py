"""What a model is to the evaluator, and the volume that it gets."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

SLICES = 32  # prepared and encoded at a time, whatever the length of a volume


class Volume(NamedTuple):
    """S slices of one plane, rows and columns as CuriaBench has them (PL axial, IL coronal, IP sagittal).

    `affine`: (4, 4) from (slice, row, column) to mm in LPS, None where a task does not know it; a model that wants a
    spacing or an orientation then gets the voxels as they lie.
    """

    voxels: np.ndarray  # (S, H, W) float32, HU or scanner units
    modality: str  # CT, MR or "" = unknown
    affine: np.ndarray | None = None


class Tokens(NamedTuple):
    """What a model says of a batch, float32 on its device."""

    whole: torch.Tensor | None  # (B, D) class token or pooled output
    patches: torch.Tensor | None  # (B, g, h, D) of slices, (B, x, y, z, D) of volumes


class Adapter(NamedTuple):
    """A frozen model.

    Attributes:
      takes: slices, each a row of a batch, or volumes, one at a time.
      prepare: a volume, which may be one slice, and the numbers of the slices that are wanted -> batches of at most
        `SLICES` of them, (B, C, R, R), on the CPU; a model of volumes gives one batch, (1, C, X, Y, Z). It runs in
        worker processes where the model runs on CUDA.
      encode: that, and whether after the final norm -> tokens.
      fingerprint: SHA-256 of weights and preprocessing.
      preprocessing: one line for the result.
      finish: what `prepare` leaves to the device, where it is faster: a batch and its modality -> pixels; None =
        nothing. `side` is then that of the pixels.
      carry: of models of volumes, how a mask as voxels (S, H, W) goes where their voxels go, (X, Y, Z); None = slices
        last and padded at the end.
      larger: times -> the same weights with a square input of so many times the side; None = the model takes one size.
    """

    name: str
    takes: Literal["slice", "volume"]
    prepare: Callable[[Volume, list[int]], Iterator[torch.Tensor]]
    encode: Callable[[torch.Tensor, bool], Tokens]
    fingerprint: str
    preprocessing: str
    finish: Callable[[torch.Tensor, str], torch.Tensor] | None = None
    side: int = 0
    carry: Callable[[Volume], torch.Tensor] | None = None
    larger: Callable[[int], "Adapter"] | None = None


def each(pixels: Callable[[Volume], torch.Tensor]) -> Callable[[Volume, list[int]], Iterator[torch.Tensor]]:
    """`prepare` of a model that looks at each slice by itself."""

    def prepare(volume: Volume, numbers: list[int]) -> Iterator[torch.Tensor]:
        for start in range(0, len(numbers), SLICES):
            yield pixels(volume._replace(voxels=volume.voxels[numbers[start : start + SLICES]]))

    return prepare


def fingerprint(files: list[Path], *words: object) -> str:
    """SHA-256 over the content of files and whatever else decides what a model says."""
    digest = hashlib.sha256(repr(words).encode())
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
