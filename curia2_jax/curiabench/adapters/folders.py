"""Models of transformers in a folder: DINOv2, with registers, DINOv3, RAD-DINO, Curia, Curia-2, and ours.

The folder's weights are read as safetensors, and none of its code is run.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers

from curia2_jax.curiabench import model as models
from curia2_jax.curiabench.adapters import intensities
from curia2_jax.curiabench.adapters.adapter import Adapter, Tokens, Volume, each, fingerprint
from curia2_jax.errors import UserError

KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CURIA: dict[str, Callable] = {
    "curia": intensities.curia_v1,
    "curia-tensor": intensities.curia_v1_tensor,
    "curia-2": intensities.curia_2,
}
CURIA_SIDE = 512
Other = tuple[transformers.PreTrainedModel, str]  # weights in place of the folder's own, and their fingerprint


def ours(folder: Path, device: str, trust_remote_code: bool, other: Other | None = None, times: int = 1) -> Adapter:
    """A folder of launch/convert.py: its own processor, which is that of this package or has to be trusted."""
    weights = other or own(folder)
    network, mark = weights
    processor = models.load_processor(folder, trust_remote_code)
    processor.crop_size *= times

    def finish(slices: torch.Tensor, modality: str) -> torch.Tensor:
        clip = modality == "CT" if modality else None  # unknown: what the processor says
        return processor(list(slices[:, 0]), clip_below_air=clip, return_tensors="pt")["pixel_values"]

    larger = lambda times: ours(folder, device, trust_remote_code, weights, times)  # noqa: E731
    words = ("ours", mark) if times == 1 else ("ours", times, mark)
    mark = fingerprint([folder / models.SETTINGS, folder / models.PROCESSOR.name], *words)
    line = f"the folder's processor: {processor.crop_size} pixels, CT clipped at air, z-score of each slice"
    encode, side = _encoder(network, device), processor.crop_size
    return Adapter(folder.name, "slice", each(_as_they_are), encode, mark, line, finish, side, larger=larger)


def _as_they_are(volume: Volume) -> torch.Tensor:
    """Slices as they came: the processor of ours resizes many at a time, on the device. As int16 where that says the
    same, which is half as much to send."""
    voxels = np.array(volume.voxels, np.float32, order="C")
    with np.errstate(invalid="ignore"):  # out of range, and then not the same
        small = voxels.astype(np.int16)
    return torch.from_numpy(small if (small == voxels).all() else voxels)[:, None]


def curia(name: str, folder: Path, device: str, other: Other | None = None, times: int = 1) -> Adapter:
    """Curia or Curia-2 by name, with what its published processor does, quirks and all; that code is not run."""
    weights, settings = other or own(folder), _settings(folder)
    network, mark = weights
    side, clip = int(settings.get("crop_size", CURIA_SIDE)) * times, bool(settings.get("clip_below_air", True))
    eps = float(settings.get("eps", 1e-6))
    prepare = lambda volume, numbers: CURIA[name](volume.voxels, side, clip, eps, numbers)  # noqa: E731
    larger = lambda times: curia(name, folder, device, weights, times)  # noqa: E731
    mark = fingerprint([], name, side, clip, eps, mark)
    line = f"{name}'s published processor: {side} pixels, clip_below_air={clip}"
    return Adapter(f"{name}:{folder.name}", "slice", prepare, _encoder(network, device), mark, line, larger=larger)


def natural(folder: Path, device: str, rad_dino: bool = False, other: Other | None = None, times: int = 1) -> Adapter:
    """Any DINOv2, DINOv2 with registers or DINOv3 folder: scans as gray pictures in as many channels as it has."""
    weights, settings = other or own(folder), _settings(folder)
    network, mark = weights
    config = network.config
    channels, side = config.num_channels, _side(settings, config) * times
    mean, spread = (np.resize(settings.get(key) or default, channels)[:, None, None].astype(np.float32)
                    for key, default in (("image_mean", IMAGENET[0]), ("image_std", IMAGENET[1])))  # fmt: skip

    def pixels(volume: Volume) -> torch.Tensor:
        gray = (
            intensities.min_max(volume.voxels) if rad_dino else intensities.unit_range(volume.voxels, volume.modality)
        )
        square = intensities.squares(gray, side).expand(-1, channels, -1, -1)
        return (square - torch.from_numpy(mean)) / torch.from_numpy(spread)

    window = "each slice over its range" if rad_dino else "CT -1000 to 1000 HU, else percentiles 0.5 to 99.5"
    line = f"{window}, {side} pixels, {channels} equal channels, mean {mean.ravel().round(4).tolist()}"
    larger = lambda times: natural(folder, device, rad_dino, weights, times)  # noqa: E731
    mark = fingerprint([], line, spread.tolist(), mark)
    return Adapter(folder.name, "slice", each(pixels), _encoder(network, device), mark, line, larger=larger)


def random(folder: Path, seed: int, layerscale: float = 1.0) -> Other:
    """The architecture of a folder with the weights of a seed."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    mark = fingerprint([folder / "config.json"], "random", seed, layerscale)
    return models.initial(config, seed, layerscale), mark


def own(folder: Path) -> Other:
    """A model of `KINDS` with every weight of the folder in its place."""
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: found no config.json with *.safetensors; write a folder that has them")
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (ValueError, AttributeError):
        raise UserError(f"{folder / 'config.json'}: not JSON; fetch the model anew") from None
    if kind not in KINDS:
        raise UserError(
            f"{folder}: found model_type {kind!r}; {', '.join(KINDS)} are read, and FILE.py:NAME is anything"
        )
    return models.load_weights(folder, KINDS), fingerprint(sorted(folder.glob("*.safetensors")))


def _settings(folder: Path) -> dict:
    path = folder / models.SETTINGS
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not JSON ({error}); fetch the model anew") from None


def _side(settings: dict, config) -> int:
    """Of the crop, else of the size, else of the config; a whole number of patches."""
    for key in ("crop_size", "size"):
        found = settings.get(key)
        found = next(iter(found.values())) if isinstance(found, dict) and found else found
        if isinstance(found, int):
            return max(found // config.patch_size, 1) * config.patch_size
    return config.image_size // config.patch_size * config.patch_size


def _encoder(network: transformers.PreTrainedModel, device: str) -> Callable[[torch.Tensor, bool], Tokens]:
    network.requires_grad_(False).eval().to(device=device, dtype=torch.float32)
    return functools.partial(_encode, network)


@torch.inference_mode()
def _encode(network: transformers.PreTrainedModel, batch: torch.Tensor, normed: bool) -> Tokens:
    """Class token and patches; without `normed` those of the last block, as the public trainer takes for volumes."""
    config, found = network.config, network(batch.to(network.device), output_hidden_states=not normed)
    hidden = (found.last_hidden_state if normed else found.hidden_states[-1]).float()
    prefix = 1 + getattr(config, "num_register_tokens", 0)
    grid = [side // config.patch_size for side in batch.shape[2:]]
    return Tokens(hidden[:, 0], hidden[:, prefix:].reshape(len(batch), *grid, -1))
