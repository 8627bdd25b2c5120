"""A 3-D network of MONAI in a folder: config.json {network, arguments, window, spacing} and model.safetensors.

    {"network": "SegResNet", "arguments": {"spatial_dims": 3, "init_filters": 16}, "window": [-175, 250],
     "spacing": [1.5, 1.5, 1.5]}

The window goes to [0, 1]. A volume whose affine is known is brought to RAS and to the spacing; one without is taken as
it lies, slices last. The tokens are those of the deepest level of the encoder.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional

from curia2_jax.curiabench.adapters.adapter import Adapter, Tokens, Volume, fingerprint
from curia2_jax.errors import UserError

ENCODERS = {"SegResNet": lambda net, x: net.encode(x)[0], "SwinUNETR": lambda net, x: net.swinViT(x)[-1]}
MULTIPLE = 32  # of every axis, which encoders halve up to five times


def load(folder: Path, device: str) -> Adapter:
    """Needs MONAI."""
    try:
        from monai.networks import nets
    except ModuleNotFoundError:
        raise UserError("monai is not installed; write: pip install -e '.[bench]'") from None
    config, weights = folder / "config.json", folder / "model.safetensors"
    if not config.is_file() or not weights.is_file():
        raise UserError(f"{folder}: found no config.json with model.safetensors; write both")
    facts = json.loads(config.read_text())
    if facts.get("network") not in ENCODERS:
        raise UserError(f"{config}: found network {facts.get('network')!r}; write {' or '.join(ENCODERS)}")
    network = getattr(nets, facts["network"])(**facts.get("arguments", {}))
    network.load_state_dict(load_file(weights))
    network.requires_grad_(False).eval().to(device)
    (low, high), spacing = facts["window"], facts.get("spacing")

    def carry(volume: Volume) -> torch.Tensor:
        voxels = np.moveaxis(volume.voxels, 0, 2) if volume.affine is None else ras(volume, spacing)
        missing = [-size % MULTIPLE for size in voxels.shape]
        dense = torch.from_numpy(np.ascontiguousarray(voxels, np.float32))
        return functional.pad(dense, [0, missing[2], 0, missing[1], 0, missing[0]])

    def prepare(volume: Volume, numbers: list[int]) -> Iterator[torch.Tensor]:
        unit = ((volume.voxels - low) / (high - low)).clip(0, 1)
        yield carry(volume._replace(voxels=unit))[None, None]

    @torch.inference_mode()
    def encode(batch: torch.Tensor, normed: bool) -> Tokens:
        patches = ENCODERS[facts["network"]](network, batch.to(device)).float().movedim(1, -1)
        return Tokens(patches.mean((1, 2, 3)), patches)

    line = f"{facts['network']}: window {low} to {high}, RAS at {spacing} mm where the affine is known, padded"
    return Adapter(
        f"monai:{folder.name}", "volume", prepare, encode, fingerprint([config, weights], line), line, carry=carry
    )


def ras(volume: Volume, spacing: list[float] | None) -> np.ndarray:
    """Voxels (X, Y, Z) growing to the right, front and top, at a spacing in mm, linearly; None keeps the spacing."""
    assert volume.affine is not None
    axes = np.abs(volume.affine[:3, :3]).argmax(0)  # the direction of the patient that each array axis runs along
    order = np.argsort(axes)
    voxels = volume.voxels.transpose(order)
    steps = volume.affine[axes[order], order] * np.array([-1, -1, 1])  # LPS -> RAS
    voxels = voxels[tuple(slice(None, None, -1 if step < 0 else 1) for step in steps)]
    if spacing is None:
        return np.ascontiguousarray(voxels)
    sizes = np.linalg.norm(volume.affine[:3, :3], axis=0)[order]
    shape = [max(round(n * size / wanted), 1) for n, size, wanted in zip(voxels.shape, sizes, spacing, strict=True)]
    dense = torch.from_numpy(np.ascontiguousarray(voxels, np.float32))[None, None]
    return functional.interpolate(dense, shape, mode="trilinear", align_corners=False)[0, 0].numpy()
