"""Samples of a split -> parts for the device: read, hashed and prepared, on CUDA by worker processes beside it.

A slice on which several samples lie (one a structure) is read and sent once. A volume is sent a few slices at a time,
so that a worker holds one volume and little more.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from curia2_jax.curiabench import masks as masking
from curia2_jax.curiabench.adapters.adapter import SLICES, Adapter, Volume
from curia2_jax.curiabench.aggregate import Choice, after_norm, counted
from curia2_jax.curiabench.splits import Split, read_sample
from curia2_jax.errors import UserError

GROUP = 256  # samples whose slices are compared with each other; a series of more is cut
WORKERS = 16  # at most: each holds a volume
SHARED, WORKER_BYTES = "/dev/shm", 2**28  # what waits for the device: three parts of 1024 x 1024 pixels a worker


class Known(NamedTuple):
    """A sample whose feature need not be encoded."""

    sample: int
    key: str


class Part(NamedTuple):
    """Some slices of one size and modality, or one volume for a network of volumes.

    Attributes:
      began: (sample, key, number of uses) of each sample whose first use is here.
      pixels: (b, ...) as `Adapter.prepare` made them.
      single: whether the samples are single slices.
      normed: whether their tokens are taken after the final norm.
      rows, samples: (u,) the slice of each use, and the sample that it counts for.
      masks: (u, R, R) or (1, X, Y, Z) bool at the size of the model's pixels; None in tasks without masks.
    """

    began: list[tuple[int, str, int]]
    pixels: torch.Tensor
    modality: str
    single: bool
    normed: bool
    rows: torch.Tensor
    samples: torch.Tensor
    masks: torch.Tensor | None


def parts(split: Split, adapter: Adapter, choice: Choice, known: frozenset[str], device: str) -> Iterator[Part | Known]:
    """All samples, in the order of their series; the same parts whatever the number of workers, save for their order.

    Raises:
      UserError: a sample is at fault.
    """
    stream, number = _Stream(split, adapter, choice, known), workers(device)
    # Forked, since closures of adapters cannot be sent; the workers never touch the device.
    context = "fork" if number else None
    for part in DataLoader(
        stream,
        batch_size=None,
        num_workers=number,
        collate_fn=_as_it_is,
        pin_memory=device == "cuda",
        multiprocessing_context=context,
    ):
        if isinstance(part, UserError):
            raise part
        yield part


def workers(device: str) -> int:
    """Processes that prepare for a device: none for a CPU, which has no time to spare beside the model."""
    if device == "cpu":
        return 0
    shared = shutil.disk_usage(SHARED).free if os.path.isdir(SHARED) else 0
    return min(len(os.sched_getaffinity(0)), WORKERS, shared // WORKER_BYTES)


def _as_it_is(part):
    return part


class _Stream(IterableDataset):
    def __init__(self, *what):
        self.split, *self.rest = what

    def __iter__(self):
        worker = get_worker_info()
        mine = _groups(self.split.series)
        try:
            for group in mine[worker.id :: worker.num_workers] if worker else mine:
                yield from _parts(group, self.split, *self.rest)
        except UserError as error:  # PyTorch would wrap it into the traceback of a worker
            yield error


def _groups(series: np.ndarray) -> list[np.ndarray]:
    """Numbers of samples, a series together as far as `GROUP` goes, and small ones with their neighbors."""
    order = np.argsort(series, kind="stable")
    edges = np.flatnonzero(series[order][1:] != series[order][:-1]) + 1
    groups, start = [], 0
    for edge in [*edges.tolist(), len(order)]:
        while edge - start >= SLICES:
            groups.append(order[start : min(edge, start + GROUP)])
            start = min(edge, start + GROUP)
    return groups + ([order[start:]] if start < len(order) else [])


def _parts(
    group: np.ndarray, split: Split, adapter: Adapter, choice: Choice, known: frozenset[str]
) -> Iterator[Part | Known]:
    alone: dict[tuple[bytes, str], tuple[Volume, list]] = {}
    for index in group.tolist():
        yield from _sample(index, split, adapter, choice, known, alone)
    yield from _slices(alone, adapter)


def _sample(
    index: int, split: Split, adapter: Adapter, choice: Choice, known: frozenset[str], alone: dict
) -> Iterator[Part | Known]:
    """The parts of a volume; a single slice goes to `alone`. No volume outlives this."""
    image, mask = read_sample(split, index)
    modality = str(split.modalities[index])
    affine = None if split.affines is None or np.isnan(split.affines[index]).any() else split.affines[index]
    digest, key = _digests(image, mask, modality, affine)
    volume, mask = Volume(_slices_first(image), modality, affine), None if mask is None else _slices_first(mask)
    if key in known:
        yield Known(index, key)
    elif adapter.takes == "volume":
        yield _whole(index, key, volume, mask, adapter)
    elif len(volume.voxels) > 1:
        yield from _volume(index, key, volume, mask, adapter, choice)
    else:
        alone.setdefault((digest, modality), (volume, []))[1].append((index, key, mask))


def _digests(image: np.ndarray, mask: np.ndarray | None, modality: str, affine: np.ndarray | None) -> tuple[bytes, str]:
    """Hash of an image, and the key of a sample: of all that a feature depends on beside model and pooling."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data.cast("B"))
    digest.update(b"" if affine is None else affine.tobytes())
    key = hashlib.sha256(digest.digest() + modality.encode())
    key.update(b"" if mask is None else np.packbits(mask).tobytes())
    return digest.digest(), key.hexdigest()


def _slices_first(array: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, S) -> (S, H, W)."""
    return array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)


def _slices(alone: dict, adapter: Adapter) -> Iterator[Part]:
    """Single slices, those of one size and modality together."""
    waiting: dict[tuple, list] = {}
    for (_, modality), (volume, uses) in alone.items():
        (pixels,) = adapter.prepare(volume, [0])
        same = waiting.setdefault((pixels.shape, modality), [])
        same.append((pixels, uses))
        if len(same) == SLICES:
            yield _together(same, modality, adapter)
            same.clear()
    for (_, modality), same in waiting.items():
        if same:
            yield _together(same, modality, adapter)


def _together(same: list, modality: str, adapter: Adapter) -> Part:
    uses = [(row, *use) for row, (_, found) in enumerate(same) for use in found]
    pixels = torch.cat([one for one, _ in same])
    resize = functools.partial(masking.resized, side=adapter.side or pixels.shape[-1])
    rows, samples = torch.tensor([use[0] for use in uses]), torch.tensor([use[1] for use in uses])
    under = None if uses[0][3] is None else torch.stack([resize(mask[0]) for *_, mask in uses])
    return Part([(index, key, 1) for _, index, key, _ in uses], pixels, modality, True, True, rows, samples, under)


def _volume(index: int, key: str, volume: Volume, mask, adapter: Adapter, choice: Choice) -> Iterator[Part]:
    """The slices of a volume that count: those with a masked pixel, within the window."""
    numbers = counted(mask, len(volume.voxels), choice)
    normed = after_norm(choice, len(volume.voxels))
    began, done = [(index, key, len(numbers))], 0
    for pixels in adapter.prepare(volume, numbers):
        some, done = numbers[done : done + len(pixels)], done + len(pixels)
        side = adapter.side or pixels.shape[-1]
        under = None if mask is None else torch.stack([masking.resized(mask[z], side) for z in some])
        rows = torch.arange(len(some))
        yield Part(began, pixels, volume.modality, False, normed, rows, torch.full_like(rows, index), under)
        began = []


def _whole(index: int, key: str, volume: Volume, mask: np.ndarray | None, adapter: Adapter) -> Part:
    """A volume for a network of volumes, and its mask where the network puts the voxels: as `Adapter.carry` says, else
    slices last, padded at the end."""
    (pixels,) = adapter.prepare(volume, list(range(len(volume.voxels))))
    under = None
    if mask is not None and adapter.carry:
        under = adapter.carry(volume._replace(voxels=mask.astype(np.float32)))[None] > 0.5
    elif mask is not None:
        under = torch.zeros((1, *pixels.shape[2:]), dtype=torch.bool)
        under[0, : mask.shape[1], : mask.shape[2], : mask.shape[0]] = torch.from_numpy(np.moveaxis(mask, 0, 2).copy())
    if under is not None and not under.any():
        under = None  # lost between voxels: the volume as a whole
    first = torch.zeros(1, dtype=torch.long)
    return Part([(index, key, 1)], pixels, volume.modality, False, True, first, first + index, under)
