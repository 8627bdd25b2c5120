"""How fast samples are encoded, files to features, beside what the backbone could do if nothing else had to be done,
and what each stage on the way takes.
"""

import json
import os
import platform
import resource
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from curia2_jax.curiabench import forward, model, stream
from curia2_jax.curiabench.adapters.adapter import SLICES, Adapter
from curia2_jax.curiabench.adapters.load import load
from curia2_jax.curiabench.aggregate import PRESETS
from curia2_jax.curiabench.splits import Split
from curia2_jax.curiabench.stages import Stages
from curia2_jax.data.ingest import benchmark_schema

SAMPLES = {"cpu": 48, "cuda": 16384}  # for minutes of two CPU cores, and some seconds of a GPU
DIFFERENT = 2048  # slices; what is more are other names of the same files, in other series
SHAPES = ((512, 512), (480, 512))  # of slices
WARM = {"cpu": 0.0, "cuda": 0.25}  # of the samples come before the clock of the steady state starts
REPEATS = {"cpu": 1, "cuda": 50}  # batches of the backbone alone
CHOICE = PRESETS["curia-2"]


def measure(folder: str | None) -> dict[str, Any]:
    """Slices a second of a folder of launch/convert.py, or of a random ViT-B, on a GPU where there is one.

    `backbone`: random batches that lie on the device, the better of two rounds, one before and one after the others.
    `plain` and `masked`: .npy files of int16 noise to features, with class tokens and with the mean under a mask; each
    with its `ratio` to the backbone, and its stages (see `_shares`). `on_the_device`: slices a second that the device
    could copy from pinned memory and prepare if it did nothing else, and the ratio that is left when it does both.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as place:
        adapter = load(folder or str(_vit_b(Path(place, "vit-b"))), device, trust_remote_code=False)
        pixels = torch.randn(forward.BATCH[device], 1, adapter.side, adapter.side, device=device)
        out: dict[str, Any] = {
            "model": folder or "ViT-B/16, 256 pixels, random",
            "workers": stream.workers(device),
            "precision": forward.precision(device),
        }
        rates = [_backbone(adapter, pixels, device)]
        found = {kind: _end_to_end(adapter, _samples(Path(place, kind), SAMPLES[device], kind == "masked"), device)
                 for kind in ("plain", "masked")}  # fmt: skip
        rates.append(_backbone(adapter, pixels, device))
        out["backbone"] = {"slices_per_s": max(rates), "rounds": rates, "batch": len(pixels)}
        for one in found.values():
            one["ratio"] = one["slices_per_s"] / max(rates)
        prepared = _prepared(adapter, device)
        out["on_the_device"] = {"slices_per_s": prepared, "ratio_at_most": prepared / (prepared + max(rates))}
        return (
            out
            | found
            | {"bfloat16": _accuracy(adapter, pixels, device), "memory": _memory(device), **_machine(device)}
        )


def _vit_b(folder: Path) -> Path:
    """A random model as launch/convert.py writes one; LayerScale 1, so that every block counts."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, image_size=256, patch_size=16, num_channels=1,
        use_swiglu_ffn=True, layerscale_value=1.0,
    )  # fmt: skip
    transformers.utils.logging.disable_progress_bar()
    transformers.Dinov2Model(config).save_pretrained(folder)
    (folder / model.SETTINGS).write_text(json.dumps({"crop_size": 256}))
    shutil.copyfile(model.PROCESSOR, folder / model.PROCESSOR.name)
    return folder


def _samples(folder: Path, count: int, masked: bool) -> Split:
    """Slices of noise in files, as a benchmark holds them: int16 HU, 512 or so pixels a side."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(-1000, 1500, SHAPES[0], np.int16)
    images: list[Path] = []
    for number in range(count):
        path = benchmark_schema.image_path(folder, f"{number:06d}")
        path.parent.mkdir(exist_ok=True)
        height, width = SHAPES[number % DIFFERENT % len(SHAPES)]
        if number < DIFFERENT:
            np.save(path, np.roll(noise, number, 1)[:height, :width])
        else:
            os.link(images[number % DIFFERENT], path)
        if masked:
            mask = np.zeros((height, width), np.uint8)
            mask[height // 4 : height // 2, width // 3 : width // 2] = 1
            first = benchmark_schema.mask_path(images[number % len(SHAPES)] if number >= len(SHAPES) else path)
            if first.exists():
                os.link(first, benchmark_schema.mask_path(path))
            else:
                np.save(first, mask)
        images.append(path)
    series = np.array([f"{number // 64:06d}" for number in range(count)])
    return Split(images, np.zeros(count, np.int64), series, series, np.full(count, "CT"), masked)


@torch.inference_mode()
def _backbone(adapter: Adapter, pixels: torch.Tensor, device: str) -> float:
    for _ in range(1 if device == "cpu" else 10):
        forward.encode(adapter, pixels, True, device)
    _wait(device)
    start = time.perf_counter()
    for _ in range(REPEATS[device]):
        forward.encode(adapter, pixels, True, device)
    _wait(device)
    return REPEATS[device] * len(pixels) / (time.perf_counter() - start)


@torch.inference_mode()
def _prepared(adapter: Adapter, device: str) -> float:
    """Slices a second that are copied to the device and finished there, one part after the other."""
    noise = torch.randint(-1000, 1500, (SLICES, 1, *SHAPES[0]), dtype=torch.int16, pin_memory=device == "cuda")

    def part() -> None:
        pixels = noise.to(device, non_blocking=True)
        if adapter.finish:
            adapter.finish(pixels, "CT")

    for _ in range(1 if device == "cpu" else 10):
        part()
    _wait(device)
    start = time.perf_counter()
    for _ in range(REPEATS[device]):
        part()
    _wait(device)
    return REPEATS[device] * len(noise) / (time.perf_counter() - start)


def _end_to_end(adapter: Adapter, split: Split, device: str) -> dict[str, Any]:
    """From files to features: in the steady state, and with the start of the workers."""
    stages, spent = Stages(), _cpu_seconds()
    start, ends = time.perf_counter(), []
    parts = stream.parts(split, adapter, CHOICE, frozenset(), device, stages)
    for _ in forward.features(adapter, parts, [CHOICE], device, stages):
        ends.append(time.perf_counter() - start)
    whole = time.perf_counter() - start  # workers have ended, too
    # Samples of a batch come together, so those after a moment are counted, and not the moments between two of them.
    warm = ends[int(len(ends) * WARM[device])] if WARM[device] else 0.0
    spent = {who: seconds - spent[who] for who, seconds in _cpu_seconds().items()}
    return {
        "slices_per_s": sum(end > warm for end in ends) / (ends[-1] - warm),
        "slices_per_s_with_start": len(ends) / ends[-1],
        "slices": len(ends),
        "seconds": ends[-1],
        **_shares(stages, spent, len(ends), whole),
    }


def _cpu_seconds() -> dict[str, float]:
    """Of this process, and of workers that have ended."""
    whose = {"this process": resource.RUSAGE_SELF, "workers": resource.RUSAGE_CHILDREN}
    used = {name: resource.getrusage(who) for name, who in whose.items()}
    return {name: one.ru_utime + one.ru_stime for name, one in used.items()}


def _shares(stages: Stages, spent: dict[str, float], slices: int, seconds: float) -> dict[str, Any]:
    """What bounds a run, from start to end.

    `core_ms_per_slice`: CPU time of each stage and of whole processes, in milliseconds a slice. A thread that waits for
    a GPU may spin. `share_of_time`: of the clock, what the one thread of the device spends on each stage, and the one
    that receives; a thread without time to wait is the bound, and so are cores of which all are busy.
    """
    here = {name: wall for name, wall in stages.wall.items() if not name.startswith("worker")}
    return {
        "core_ms_per_slice": {
            name: used / slices * 1e3 for name, used in [*sorted(stages.cpu.items()), *spent.items()]
        },
        "share_of_time": {name: wall / seconds for name, wall in sorted(here.items())},
        "busy_cores": sum(spent.values()) / seconds,
    }


@torch.inference_mode()
def _accuracy(adapter: Adapter, pixels: torch.Tensor, device: str) -> dict[str, float]:
    """Of features in bfloat16 beside those in float32: the largest |difference| / |feature| of a slice."""
    exact = adapter.encode(pixels[:16], True)
    with torch.autocast(device, torch.bfloat16):
        rounded = adapter.encode(pixels[:16], True)
    assert exact.whole is not None and rounded.whole is not None
    assert exact.patches is not None and rounded.patches is not None
    pairs = {
        "class token": (exact.whole, rounded.whole),
        "mean of patches": (exact.patches.mean((1, 2)), rounded.patches.mean((1, 2))),
    }
    return {
        f"relative difference, {name}": float(((a - b).norm(dim=1) / a.norm(dim=1)).max())
        for name, (a, b) in pairs.items()
    }


def _memory(device: str) -> dict[str, int]:
    kilo = 1 if platform.system() == "Darwin" else 1024
    whose = {"host_peak_bytes": resource.RUSAGE_SELF, "worker_peak_bytes": resource.RUSAGE_CHILDREN}
    host = {name: resource.getrusage(who).ru_maxrss * kilo for name, who in whose.items()}
    return host | ({"device_peak_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {})


def _machine(device: str) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
