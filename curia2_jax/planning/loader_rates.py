"""How many slices a second the loader delivers, beside two other ways to the same crops; called by launch/bench.py."""

import dataclasses
import importlib.util
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from curia2_jax.data.corpus.records import halved
from curia2_jax.data.crops.batches import batches
from curia2_jax.data.crops.loader import StepLoader
from curia2_jax.errors import UserError
from curia2_jax.training.recipe import Recipe


class Rate(NamedTuple):
    """`per_core` counts seconds of CPU time, so that it means the same on a busy machine; `wall` those of the clock."""

    what: str
    per_core: float  # slices a second
    wall: float


def run(recipe: Recipe, *, seconds: float = 10.0, nifti: str | None = None) -> list[Rate]:
    """Measures and prints, one thread each and `seconds` long:

    the loader (read, checksum, decode, boxes, masks, batch), its parts, the loader on slices of half their size where
    the corpus gives such, the loader with the same boxes cropped and resized by PIL on the CPU, and, given a folder
    `nifti` of .nii.gz files, a PyTorch DataLoader with MONAI that takes a random slice of a random file.

    The batch is that of the recipe: `--config.data.global_batch=64` for a figure that can be compared. Raises UserError
    when MONAI is not installed or the folder has no such file.
    """
    files = sorted(str(path) for path in pathlib.Path(nifti).rglob("*.nii.gz")) if nifti else []
    if nifti and not files:
        raise UserError(f"--nifti={nifti}: no .nii.gz in it; write a folder of volumes")
    if nifti and not importlib.util.find_spec("monai"):
        raise UserError("--nifti: needs MONAI, not installed; run pip install 'curia2-jax[eval,bench]'")
    sections = recipe.data, recipe.crops, recipe.masks, recipe.model.patch_size
    started = time.perf_counter()
    with batches(*sections, seed=recipe.seed) as stream:
        next(stream)
    first = time.perf_counter() - started
    loader = _loader(recipe)
    rows, corpus = len(loader.rows), loader.corpus
    extent = np.mean([loader(step)["extent"].prod(-1).mean() for step in range(2)])
    for contract in corpus.contracts:
        print(f"{contract['bytes'] / contract['slices'] / 1000:.0f} kB a slice: {contract['record']['codec']}")
    print(f"{rows} slices a batch, on average {extent**0.5:.0f} pixels a side, canvas {loader.data.side}")
    print(f"first batch after {first:.2f} s ({recipe.data.num_threads} threads, {recipe.data.num_workers} processes)")

    steps = itertools.count()
    rates = [_rate("loader", rows, seconds, lambda: loader(next(steps)))]
    records = loader.sampler.records(np.arange(rows), recipe.seed)
    rates.append(_rate("  of it: read, checksum, decode", rows, seconds / 4, lambda: _read(loader, records)))
    if corpus.reduces and not recipe.data.reduce:
        half = _loader(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, reduce=1)))
        rates.append(_rate("loader, config.data.reduce=1", rows, seconds, lambda: half(next(steps))))
    rates.append(_rate("loader + crops by PIL", rows, seconds, lambda: _pil(loader(next(steps)), recipe)))
    if files:
        volumes = _monai(files, recipe)
        next(volumes)
        rates.append(_rate("MONAI + DataLoader, .nii.gz", 1, seconds, lambda: next(volumes)))
    for rate in rates:
        print(f"{rate.what:32s} {rate.per_core:8.1f} slices/s per core {rate.wall:8.1f} by the clock")
    return rates


def _rate(what: str, slices: int, seconds: float, work: Callable[[], Any]) -> Rate:
    work()
    wall, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < wall + seconds:
        work()
        done += slices
    return Rate(what, done / (time.process_time() - cpu), done / (time.perf_counter() - wall))


def _loader(recipe: Recipe) -> StepLoader:
    with batches(recipe.data, recipe.crops, recipe.masks, recipe.model.patch_size, seed=recipe.seed) as stream:
        return stream.loader


def _read(loader: StepLoader, records: np.ndarray) -> None:
    """Every record to the same place, as in memory that was used before."""
    reduce, canvas = loader.data.reduce, np.empty((loader.data.side, loader.data.side), np.int16)
    for record, row in zip(records.tolist(), loader.corpus.rows(records), strict=True):
        height, width = (halved(int(row[side]), reduce) for side in ("height", "width"))
        loader.corpus.read(record, canvas[:height, :width], reduce)


def _pil(batch: dict[str, np.ndarray], recipe: Recipe) -> list[np.ndarray]:
    """The crops of a batch as PIL's antialiased bicubic gives them: what the accelerator does otherwise."""
    crops = []
    for row, (height, width) in enumerate(batch["extent"].tolist()):
        image = Image.fromarray(batch["slices"][row, :height, :width].astype(np.float32))
        for name, size in (("global_boxes", recipe.crops.global_size), ("local_boxes", recipe.crops.local_size)):
            for y0, x0, y1, x1 in batch[name][row].tolist():
                crops.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, (x0, y0, x1, y1))))
    return crops


def _monai(files: list[str], recipe: Recipe) -> Iterator[Any]:
    """Endless slices with their crops from a DataLoader without processes, so that its CPU time is this process's."""
    import monai.transforms as mt
    import torch

    config = recipe.crops
    views = []
    for number, size, area in (
        (2, config.global_size, config.global_area),
        (config.num_local, config.local_size, config.local_area),
    ):
        low, high = (a**0.5 for a in area)
        crop = mt.Compose(
            [
                mt.RandScaleCrop(roi_scale=low, max_roi_scale=high, random_size=True),
                mt.Resize((size, size), mode="bicubic", anti_aliasing=True),
            ]
        )
        views += [crop] * number

    class Slices(torch.utils.data.IterableDataset):
        def __iter__(self):
            rng, load = np.random.default_rng(recipe.seed), mt.LoadImage(ensure_channel_first=True, image_only=True)
            while True:
                volume = load(files[rng.integers(len(files))])
                slice_ = volume[..., int(rng.integers(volume.shape[-1]))]
                yield [view(slice_) for view in views]

    return iter(torch.utils.data.DataLoader(Slices(), batch_size=1))
