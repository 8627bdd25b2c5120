"""Parts -> features: slices of many samples in one batch, in bfloat16 on CUDA, pooled where they were made.

On CUDA the next parts are copied from pinned memory and prepared while a batch is encoded: by a thread of their own,
since preparing waits for the device, and on a stream of their own, whose kernels go first. What was pooled comes back
one batch later, so that the device need not wait.
"""

import collections
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from curia2_jax.curiabench import masks as masking
from curia2_jax.curiabench import stream
from curia2_jax.curiabench.adapters.adapter import Adapter, Tokens, Volume
from curia2_jax.curiabench.aggregate import Choice
from curia2_jax.curiabench.stages import Stages
from curia2_jax.curiabench.stream import Known, Part

BATCH = {"cpu": 32, "cuda": 128}  # slices, at least, as long as there are some
AHEAD = 4  # parts that are ready for the next batch; of volumes one
BEHIND = 1  # batches whose features are still on their way
GATHERED = 64  # uses whose tokens are pooled at a time


class Feature(NamedTuple):
    """Of a sample: `rows` (D,) float32, one a choice; none where the feature was known."""

    sample: int
    key: str
    rows: list[np.ndarray]


def precision(device: str) -> str:
    """In which a device encodes. Weights, normalization and sums are float32 on both (torch.autocast)."""
    return "bfloat16" if device == "cuda" else "float32"


def features(
    adapter: Adapter, parts: Iterator[Part | Known], choices: Sequence[Choice], device: str, stages: Stages
) -> Iterator[Feature]:
    """Yields each sample as soon as its last slice is encoded.

    `choices` differ in what they take of a slice and not in the slices, nor in the norm. `stages` gets what this thread
    did, and how long it waited for parts and for the device.
    """
    sums = _Sums(choices)
    flying: collections.deque[_Pooled] = collections.deque()
    for batch in _batches(adapter, parts, device, stages):
        if isinstance(batch, Known):
            yield Feature(*batch, [])
            continue
        sums.expect(batch.began)
        with stages("main: encode and pool"):
            flying.append(_pooled(adapter, batch, choices, device))
        if len(flying) > (BEHIND if device == "cuda" else 0):
            yield from _finished(sums, flying.popleft(), stages)
    for pooled in flying:
        yield from _finished(sums, pooled, stages)


def _finished(sums: "_Sums", pooled: "_Pooled", stages: Stages) -> Iterator[Feature]:
    if pooled.landed:
        with stages("main: wait for the device"):
            pooled.landed.synchronize()
    with stages("main: sum"):
        sums.add(pooled)
        found = list(sums.finished())
    yield from found


class _Batch(NamedTuple):
    began: list[tuple[int, str, int]]
    pixels: torch.Tensor  # (B, ...) on the device
    normed: bool
    single: bool
    rows: torch.Tensor  # (U,) on the device
    samples: np.ndarray  # (U,)
    masks: torch.Tensor | None  # (U, ...) on the device


class _Pooled(NamedTuple):
    samples: np.ndarray
    values: list[torch.Tensor]  # (U, D), one a choice
    weights: list[torch.Tensor]  # (U,)
    landed: torch.cuda.Event | None


def _batches(adapter: Adapter, parts: Iterator[Part | Known], device: str, stages: Stages) -> Iterator[_Batch | Known]:
    beside = torch.cuda.Stream(priority=-1) if device == "cuda" else None
    ready = _ready(adapter, parts, device, beside, stages)
    if stream.workers(device):
        ready = _ahead(ready, 1 if adapter.takes == "volume" else AHEAD)
    waiting: dict[tuple, list[Part]] = {}
    for part in stages.each("main: wait for parts", ready):
        if isinstance(part, Known):
            yield part
            continue
        same = waiting.setdefault((part.pixels.shape[1:], part.single, part.normed), [])
        same.append(part)
        if adapter.takes == "volume" or sum(len(one.pixels) for one in same) >= BATCH[device]:
            yield _joined(same, beside, stages)
            same.clear()
    for same in waiting.values():
        if same:
            yield _joined(same, beside, stages)


def _ahead(items: Iterator, number: int) -> Iterator:
    """The same items, none of them None, `number` of which a thread of its own takes before they are asked for."""
    thread = ThreadPoolExecutor(1)
    try:
        coming = collections.deque(thread.submit(next, items, None) for _ in range(number))
        while (item := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


def _ready(
    adapter: Adapter, parts: Iterator[Part | Known], device: str, beside: torch.cuda.Stream | None, stages: Stages
) -> Iterator[Part | Known]:
    """Parts on the device."""
    for part in parts:
        if isinstance(part, Known):
            yield part
            continue
        with stages("receive: to the device"):
            ready = _on_device(adapter, part, device, beside)
        yield ready


@torch.inference_mode()
def _on_device(adapter: Adapter, part: Part, device: str, beside: torch.cuda.Stream | None) -> Part:
    with torch.cuda.stream(beside):
        pixels = part.pixels.to(device, non_blocking=True)
        if adapter.finish:
            pixels = adapter.finish(pixels, part.modality)
        masks = None if part.masks is None else part.masks.to(device, non_blocking=True)
        return part._replace(pixels=pixels, masks=masks)


@torch.inference_mode()
def _joined(same: list[Part], beside: torch.cuda.Stream | None, stages: Stages) -> _Batch:
    with stages("main: join"), torch.cuda.stream(beside):
        starts = np.cumsum([0] + [len(part.pixels) for part in same[:-1]]).tolist()
        pixels = torch.cat([part.pixels for part in same])
        uses = np.concatenate([part.rows + start for part, start in zip(same, starts, strict=True)])
        rows = torch.from_numpy(uses).to(pixels.device, non_blocking=True)
        masks = [part.masks for part in same if part.masks is not None]
        under = torch.cat(masks) if masks else None
    if beside is not None:
        torch.cuda.current_stream().wait_stream(beside)
        for tensor in (pixels, rows, under):
            if tensor is not None:
                tensor.record_stream(torch.cuda.current_stream())
    samples = np.concatenate([part.samples for part in same])
    began = [one for part in same for one in part.began]
    return _Batch(began, pixels, same[0].normed, same[0].single, rows, samples, under)


@torch.inference_mode()
def prepared(adapter: Adapter, volume: Volume, numbers: list[int], device: str) -> Iterator[torch.Tensor]:
    """Pixels of some slices of a volume on the device, as `encode` takes them, batch by batch."""
    for pixels in adapter.prepare(volume, numbers):
        there = pixels.to(device)
        yield adapter.finish(there, volume.modality) if adapter.finish else there


@torch.inference_mode()
def encode(adapter: Adapter, pixels: torch.Tensor, normed: bool, device: str) -> Tokens:
    """Tokens of a batch on the device, in the device's precision, given as float32."""
    with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
        return adapter.encode(pixels, normed)


@torch.inference_mode()
def _pooled(adapter: Adapter, batch: _Batch, choices: Sequence[Choice], device: str) -> _Pooled:
    tokens = encode(adapter, batch.pixels, batch.normed, device)
    found = [pool(tokens, batch.rows, batch.masks, choice, batch.single) for choice in choices]
    values, weights = [one for one, _ in found], [one for _, one in found]
    if device == "cpu":
        return _Pooled(batch.samples, values, weights, None)
    values, weights = ([one.to("cpu", non_blocking=True) for one in ones] for ones in (values, weights))
    landed = torch.cuda.Event()
    landed.record()
    return _Pooled(batch.samples, values, weights, landed)


def pool(
    tokens: Tokens, rows: torch.Tensor, masks: torch.Tensor | None, choice: Choice, single: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean token (U, D) of each use of a slice, and how much it counts (U,), float32.

    `rows` (U,): its slice; `masks` (U, ...): over which of its patches, all of them without.
    """
    patches = None if tokens.patches is None else tokens.patches.flatten(1, -2).float()
    if masks is not None and patches is not None:
        assert tokens.patches is not None
        under = masking.cells(masks, tuple(tokens.patches.shape[1:-1])).float()
        number = under.sum(1)
        share = (under / number[:, None])[:, None]
        mean = torch.cat([torch.bmm(share[i : i + GATHERED], patches[rows[i : i + GATHERED]])[:, 0]
                          for i in range(0, len(rows), GATHERED)])  # fmt: skip
    elif patches is None or (tokens.whole is not None and (choice.single if single else choice.unmasked) == "class"):
        assert tokens.whole is not None
        mean, number = tokens.whole.float()[rows], torch.ones_like(rows, dtype=torch.float32)
    else:
        mean, number = patches.mean(1)[rows], torch.full_like(rows, patches.shape[1], dtype=torch.float32)
    return mean, torch.ones_like(number) if single or choice.over == "slices" else number


class _Sums:
    """Weighted sums over the slices of samples that are not finished yet."""

    def __init__(self, choices: Sequence[Choice]):
        self.keys: dict[int, str] = {}
        self.left: dict[int, int] = {}
        self.total: list[dict[int, np.ndarray]] = [{} for _ in choices]
        self.weight: list[dict[int, float]] = [{} for _ in choices]

    def expect(self, began: list[tuple[int, str, int]]) -> None:
        self.keys |= {sample: key for sample, key, _ in began}
        self.left |= {sample: uses for sample, _, uses in began}

    def add(self, pooled: _Pooled) -> None:
        samples = pooled.samples.tolist()
        for total, weight, values, weights in zip(self.total, self.weight, pooled.values, pooled.weights, strict=True):
            for sample, value, counts in zip(samples, values.double().numpy(), weights.tolist(), strict=True):
                total[sample] = total.get(sample, 0) + value * counts
                weight[sample] = weight.get(sample, 0) + counts
        for sample in samples:
            self.left[sample] -= 1

    def finished(self) -> Iterator[Feature]:
        for sample in [sample for sample, left in self.left.items() if not left]:
            rows = [
                (total.pop(sample) / weight.pop(sample)).astype(np.float32)
                for total, weight in zip(self.total, self.weight, strict=True)
            ]
            del self.left[sample]
            yield Feature(sample, self.keys.pop(sample), rows)
