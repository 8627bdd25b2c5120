"""Slices as PNG data URIs: in their window, with the outline of a mask, in the shape that their pixels have."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

CT_WINDOW = (-200.0, 300.0)  # HU; soft tissue and bone
SIDE = 256  # pixels of a picture in the report
OUTLINE = (255, 176, 0)  # amber: seen on black, gray and white, and by those who see no red or green


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


def middle(image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The slice itself, or the slice of a volume with the largest mask, without masks the middle one; and its mask."""
    if image.ndim == 2:
        return image, mask
    if mask is None:
        return image[..., image.shape[2] // 2], None
    place = int(mask.sum((0, 1)).argmax())
    return image[..., place], mask[..., place]


def windowed(image: np.ndarray, modality: str) -> np.ndarray:
    """(H, W) uint8: CT in `CT_WINDOW`, all else between its 0.5th and 99.5th percentile."""
    low, high = CT_WINDOW if modality == "CT" else np.percentile(image, [0.5, 99.5])
    return np.rint(255 * np.clip((image - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def outlined(gray: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """A slice (H, W) uint8 in its size in the report, with the line around its mask: (h, w, 3) uint8.

    The line lies outside of the mask, so that what is asked about stays to be seen.
    """
    size = size_of(gray.shape)
    shown = np.array(Image.fromarray(gray).resize(size, Image.Resampling.BICUBIC))
    color = np.stack([shown] * 3, axis=-1)
    if mask is not None:
        inside = np.array(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
        color[ndimage.binary_dilation(inside, iterations=1) & ~inside] = OUTLINE
    return color


def size_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """(width, height) of a picture with the aspect ratio of the pixels of a slice (H, W)."""
    height, width = shape
    scale = SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))
