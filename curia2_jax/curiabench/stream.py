"""Samples of a split -> parts for the device: read, hashed and prepared, on CUDA by worker processes beside it.

A slice on which several samples lie (one a structure) is read and sent once. A volume is sent a few slices at a time,
so that a worker holds one volume and little more.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from curia2_jax.curiabench import masks as masking
from curia2_jax.curiabench.adapters.adapter import SLICES, Adapter, Volume
from curia2_jax.curiabench.aggregate import Choice, after_norm, counted
from curia2_jax.curiabench.slots import Sent, Slots
from curia2_jax.curiabench.splits import Split, read_sample
from curia2_jax.curiabench.stages import Stages
from curia2_jax.errors import UserError

GROUP = 256  # samples whose slices are compared with each other; a series of more is cut
WORKERS = 16  # at most: each holds a volume
SHARED, WORKER_BYTES = "/dev/shm", 2**28  # what waits for the device where `Slots` cannot take it


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
      rows, samples: (u,) int64, the slice of each use, and the sample that it counts for.
      masks: (u, R, R) or (1, X, Y, Z) bool at the size of the model's pixels; None in tasks without masks.
    """

    began: list[tuple[int, str, int]]
    pixels: torch.Tensor
    modality: str
    single: bool
    normed: bool
    rows: np.ndarray
    samples: np.ndarray
    masks: torch.Tensor | None


class _InSlot(NamedTuple):
    """A part whose pixels and masks lie in a slot; `rest`: its other fields."""

    rest: dict[str, Any]
    sent: Sent


class _Work(NamedTuple):
    split: Split
    adapter: Adapter
    choice: Choice
    known: frozenset[str]


def parts(
    split: Split, adapter: Adapter, choice: Choice, known: frozenset[str], device: str, stages: Stages
) -> Iterator[Part | Known]:
    """All samples, in the order of their series; the same parts whatever the number of workers, save for their order.

    Workers start when this is called, and end with the iterator. `stages` gets what they did, and what it took to copy
    what they sent, to pinned memory for CUDA.

    Raises:
      UserError: a sample is at fault.
    """
    number = workers(device)
    slots = Slots(number) if number else None
    loader = DataLoader(
        _Stream(_Work(split, adapter, choice, known), slots),
        batch_size=None,
        num_workers=number,
        collate_fn=_as_it_is,
        # Forked, since closures of adapters cannot be sent; the workers never touch the device.
        multiprocessing_context="fork" if number else None,
    )
    return _received(iter(loader), slots, device == "cuda", stages)


def _received(found: Iterator, slots: Slots | None, pinned: bool, stages: Stages) -> Iterator[Part | Known]:
    """What workers sent, out of their slots."""
    for one in stages.each("receive: wait for workers", found) if slots else found:
        if isinstance(one, UserError):
            del found  # the fault would hold it in a cycle, in which PyTorch cannot end its workers
            raise one
        if isinstance(one, Stages):
            stages.add(one)
            continue
        with stages("receive: copy"):
            landed = _landed(one, slots, pinned)
        yield landed


def _landed(found: Part | Known | _InSlot, slots: Slots | None, pinned: bool) -> Part | Known:
    if isinstance(found, _InSlot):
        assert slots
        pixels, *masks = (_copied(view, pinned) for view in slots.views(found.sent))
        slots.give_back(found.sent)
        return Part(**found.rest, pixels=pixels, masks=masks[0] if masks else None)
    if isinstance(found, Part) and pinned:
        under = None if found.masks is None else found.masks.pin_memory()
        return found._replace(pixels=found.pixels.pin_memory(), masks=under)
    return found


def _copied(view: np.ndarray, pinned: bool) -> torch.Tensor:
    tensor = torch.empty(view.shape, dtype=torch.from_numpy(view).dtype, pin_memory=pinned)
    np.copyto(tensor.numpy(), view)  # by this thread alone, and without the GIL
    return tensor


def workers(device: str) -> int:
    """Processes that prepare for a device: none for a CPU, which has no time to spare beside the model."""
    if device == "cpu":
        return 0
    shared = shutil.disk_usage(SHARED).free if os.path.isdir(SHARED) else 0
    return min(len(os.sched_getaffinity(0)), WORKERS, shared // WORKER_BYTES)


def _as_it_is(part):
    return part


class _Stream(IterableDataset):
    """Parts of a worker's share of the samples, or a fault; at the end what they took."""

    def __init__(self, work: _Work, slots: Slots | None):
        self.work, self.slots = work, slots

    def __iter__(self):
        worker, stages = get_worker_info(), Stages()
        mine = _groups(self.work.split.series)
        try:
            for group in mine[worker.id :: worker.num_workers] if worker else mine:
                for part in _parts(group, self.work, stages):
                    with stages("worker: send"):
                        sent = _in_slot(part, self.slots, worker.id) if worker and self.slots else part
                    yield sent
        except UserError as error:  # PyTorch would wrap it into the traceback of a worker
            yield error
        yield stages


def _in_slot(part: Part | Known, slots: Slots, worker: int) -> Part | Known | _InSlot:
    """A part as it is where no slot can have it: PyTorch then sends it, which takes longer."""
    if isinstance(part, Known):
        return part
    rest = part._asdict()
    arrays = [rest.pop("pixels"), rest.pop("masks")]
    sent = slots.put(worker, [array.numpy() for array in arrays if array is not None])
    return _InSlot(rest, sent) if sent else part


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


def _parts(group: np.ndarray, work: _Work, stages: Stages) -> Iterator[Part | Known]:
    alone: dict[tuple[bytes, str], tuple[Volume, list]] = {}
    for index in group.tolist():
        yield from _sample(index, work, alone, stages)
    yield from _slices(alone, work.adapter, stages)


def _sample(index: int, work: _Work, alone: dict, stages: Stages) -> Iterator[Part | Known]:
    """The parts of a volume; a single slice goes to `alone`. No volume outlives this."""
    split, adapter = work.split, work.adapter
    with stages("worker: read"):
        image, mask = read_sample(split, index)
    modality = str(split.modalities[index])
    affine = None if split.affines is None or np.isnan(split.affines[index]).any() else split.affines[index]
    with stages("worker: hash"):
        digest, key = _digests(image, mask, modality, affine)
    volume, mask = Volume(_slices_first(image), modality, affine), None if mask is None else _slices_first(mask)
    if key in work.known:
        yield Known(index, key)
    elif adapter.takes == "volume":
        with stages("worker: prepare"):
            part = _whole(index, key, volume, mask, adapter)
        yield part
    elif len(volume.voxels) > 1:
        yield from _volume(index, key, volume, mask, work, stages)
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


def _slices(alone: dict, adapter: Adapter, stages: Stages) -> Iterator[Part]:
    """Single slices, those of one size and modality together."""
    waiting: dict[tuple, list] = {}
    for (_, modality), (volume, uses) in alone.items():
        with stages("worker: prepare"):
            (pixels,) = adapter.prepare(volume, [0])
        same = waiting.setdefault((pixels.shape, pixels.dtype, modality), [])
        same.append((pixels, uses))
        if len(same) == SLICES:
            yield _together(same, modality, adapter, stages)
            same.clear()
    for (*_, modality), same in waiting.items():
        if same:
            yield _together(same, modality, adapter, stages)


def _together(same: list, modality: str, adapter: Adapter, stages: Stages) -> Part:
    uses = [(row, *use) for row, (_, found) in enumerate(same) for use in found]
    with stages("worker: join"):
        pixels = torch.cat([one for one, _ in same])
    rows, samples = np.array([use[0] for use in uses]), np.array([use[1] for use in uses])
    under = _resized([mask[0] for *_, mask in uses if mask is not None], pixels, adapter, stages)
    return Part([(index, key, 1) for _, index, key, _ in uses], pixels, modality, True, True, rows, samples, under)


def _resized(masks: list[np.ndarray], pixels: torch.Tensor, adapter: Adapter, stages: Stages) -> torch.Tensor | None:
    """Masks at the size of the model's pixels, None in tasks without."""
    with stages("worker: masks"):
        resize = functools.partial(masking.resized, side=adapter.side or pixels.shape[-1])
        return torch.stack([resize(mask) for mask in masks]) if masks else None


def _volume(index: int, key: str, volume: Volume, mask, work: _Work, stages: Stages) -> Iterator[Part]:
    """The slices of a volume that count: those with a masked pixel, within the window."""
    numbers = counted(mask, len(volume.voxels), work.choice)
    normed = after_norm(work.choice, len(volume.voxels))
    began, done = [(index, key, len(numbers))], 0
    for pixels in stages.each("worker: prepare", work.adapter.prepare(volume, numbers)):
        some, done = numbers[done : done + len(pixels)], done + len(pixels)
        under = _resized([] if mask is None else [mask[z] for z in some], pixels, work.adapter, stages)
        rows = np.arange(len(some))
        yield Part(began, pixels, volume.modality, False, normed, rows, np.full_like(rows, index), under)
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
    first = np.zeros(1, np.int64)
    return Part([(index, key, 1)], pixels, volume.modality, False, True, first, first + index, under)
