"""A Vision Transformer of timm in a folder: config.json with its architecture, and model.safetensors."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from curia2_jax.curiabench.adapters import intensities
from curia2_jax.curiabench.adapters.adapter import Adapter, Tokens, Volume, each, fingerprint
from curia2_jax.errors import UserError


def load(folder: Path, device: str) -> Adapter:
    """Needs timm. Pictures are gray in all channels, with mean and spread of the config."""
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError("timm is not installed; write: pip install timm") from None
    config, weights = folder / "config.json", folder / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise UserError(f"{folder}: found no config.json with model.safetensors; write a folder of timm's")
    settings = json.loads(config.read_text())
    facts = settings.get("pretrained_cfg", settings)
    arguments = settings.get("model_args", {})
    network = timm.create_model(settings["architecture"], pretrained=False, num_classes=0, **arguments)
    wrong = network.load_state_dict(load_file(weights), strict=False)
    if wrong.missing_keys:
        raise UserError(f"{weights}: lacks {len(wrong.missing_keys)} weights, first {wrong.missing_keys[0]}")
    network.requires_grad_(False).eval().to(device)
    channels, side = facts["input_size"][0], facts["input_size"][-1]
    mean, spread = (torch.tensor(facts[key]).reshape(-1, 1, 1) for key in ("mean", "std"))

    def pixels(volume: Volume) -> torch.Tensor:
        gray = intensities.squares(intensities.unit_range(volume.voxels, volume.modality), side)
        return (gray.expand(-1, channels, -1, -1) - mean) / spread

    @torch.inference_mode()
    def encode(batch: torch.Tensor, normed: bool) -> Tokens:
        hidden = network.forward_features(batch.to(device)).float()
        if hidden.ndim == 4:  # a convolutional network: its last map, and the mean of it
            patches = hidden.movedim(1, -1)
            return Tokens(patches.mean((1, 2)), patches)
        prefix = network.num_prefix_tokens
        whole = hidden[:, 0] if prefix else hidden.mean(1)
        return Tokens(whole, hidden[:, prefix:].reshape(len(batch), *network.patch_embed.grid_size, -1))

    line = f"CT -1000 to 1000 HU, else percentiles 0.5 to 99.5, {side} pixels, {channels} equal channels"
    mark = fingerprint([config, weights], line)
    return Adapter(f"timm:{folder.name}", "slice", each(pixels), encode, mark, line)
