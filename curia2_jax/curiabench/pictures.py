"""Pictures of the report, as PNG data URIs: slices, and the patch tokens of slices as colors."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from skimage.filters import threshold_otsu

from curia2_jax.curiabench import features
from curia2_jax.curiabench.model import Backbone, Model
from curia2_jax.curiabench.splits import Split, read_sample

CT_WINDOW = (-200.0, 300.0)  # HU; soft tissue and bone
SIDE = 256  # pixels of a picture in the report


class SlicePicture(NamedTuple):
    """One slice of the test split: the slice, and its tokens with trained and with random weights."""

    slice: str
    trained: str
    random: str


def png(array: np.ndarray, size: tuple[int, int] | None = None) -> str:
    """Data URI of (H, W) or (H, W, 3) uint8; brought to (width, height), enlarged without inventing pixels."""
    image = Image.fromarray(array)
    if size is not None:
        enlarge = size[0] >= image.width and size[1] >= image.height
        image = image.resize(size, Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def embed(path: str | Path) -> str:
    """Data URI of a PNG file."""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()


def token_pictures(split: Split, model: Model, slices: np.ndarray, count: int = 6) -> list[SlicePicture]:
    """Pictures of `count` slices of a split, spread over its files; `slices` (n,) says which samples share an image.

    Colors are the first three principal components of the foreground patches (DINOv2, figure 1), computed over all
    the slices together, so that one color means one thing; the background is black. The foreground is what lies above
    Otsu's threshold of the patches' mean intensity, the same for both rows.
    """
    _, first = np.unique(slices, return_index=True)
    chosen = np.sort(first)[np.unique(np.linspace(0, len(first) - 1, count + 2).round().astype(int)[1:-1])]
    images = [_middle(*read_sample(split, index)) for index in chosen]
    modalities = split.modalities[chosen]
    pixels = torch.cat([features.to_pixels(model.processor, *pair) for pair in zip(images, modalities, strict=True)])
    trained, random = (_token_colors(backbone, pixels) for backbone in (model.trained, model.randoms[0]))
    out = []
    for i, (image, modality) in enumerate(zip(images, modalities, strict=True)):
        size = _size(image.shape)
        out.append(SlicePicture(png(_window(image, modality), size), png(trained[i], size), png(random[i], size)))
    return out


def _token_colors(backbone: Backbone, pixels: torch.Tensor) -> np.ndarray:
    """RGB (n, g, g, 3) uint8 of the patches of (n, 1, R, R) pixels; the foreground depends on the pixels alone."""
    tokens = features.tokens(backbone, pixels)[1].numpy()
    level = torch.nn.functional.avg_pool2d(pixels, backbone.patch_size)[:, 0].numpy()
    foreground = np.stack([one > threshold_otsu(one) if np.ptp(one) else one >= one for one in level])
    return principal_colors(tokens, foreground)


def principal_colors(tokens: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """RGB (n, g, g, 3) uint8 of tokens (n, g, g, D): three principal components of the foreground (n, g, g) bool.

    Each component is stretched from its 2nd to its 98th percentile; its sign makes the largest loading positive. Not
    scikit-learn's PCA, which refuses fewer points than components: a slice with one bright patch has a picture too.
    """
    points = tokens[foreground].astype(np.float64)
    centered = points - points.mean(0)
    _, vectors = np.linalg.eigh(centered.T @ centered)
    axes = vectors[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    values = centered @ axes
    low, high = np.percentile(values, [2, 98], axis=0)
    scaled = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    colors = np.zeros((*foreground.shape, 3), np.uint8)
    colors[foreground] = np.rint(25 + 230 * scaled)
    return colors


def _middle(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The slice itself, or the slice of a volume with the largest mask, without masks the middle one."""
    if image.ndim == 2:
        return image
    return image[..., image.shape[2] // 2 if mask is None else int(mask.sum((0, 1)).argmax())]


def _window(image: np.ndarray, modality: str) -> np.ndarray:
    low, high = CT_WINDOW if modality == "CT" else np.percentile(image, [0.5, 99.5])
    return np.rint(255 * np.clip((image - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def _size(shape: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a picture with the aspect ratio of the slice's pixels."""
    height, width = shape
    scale = SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))
