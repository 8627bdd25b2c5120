"""CT and MR slices -> what this model was trained on. Self-contained: needs NumPy and PyTorch, and takes part in
transformers where that is installed.

    processor = transformers.AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    tokens = model(**processor(slice_in_hounsfield_units, return_tensors="pt")).last_hidden_state

or, without transformers, `CuriaImageProcessor(**json.load(open("FOLDER/preprocessor_config.json")))`.
"""

import warnings

import numpy as np
import torch

try:
    from transformers import BaseImageProcessor, BatchFeature
except ImportError:
    BatchFeature = dict  # type: ignore[misc, assignment]

    class BaseImageProcessor:  # type: ignore[no-redef]
        def __init__(self, **kwargs):
            for name, value in kwargs.items():
                setattr(self, name, value)

        def __call__(self, images, *args, **kwargs):
            return self.preprocess(images, *args, **kwargs)  # type: ignore[attr-defined]


AIR = -1000.0  # HU


class CuriaImageProcessor(BaseImageProcessor):
    """Resize the whole slice to a square, clip CT, z-score: float32 throughout.

    A slice is (rows, columns). Its rows grow towards posterior and its columns towards left in axial planes, inferior
    and left in coronal, inferior and posterior in sagittal planes. CT comes in Hounsfield units, without any window:
    one that the model wants is applied here. MR comes in scanner units; its scale and offset do not matter, because the
    z-score removes them.

    Args:
      crop_size: side R of the square, in pixels. The aspect ratio is not kept.
      clip_below_air: what to do with values under -1000 when a call does not say so itself. True is right for CT. MR
        was never clipped in training; pass `clip_below_air=False` with MR that has such values.
      window: lowest and highest HU that CT is clipped to instead, where values under -1000 are; None: no such bounds.
      eps: a slice whose standard deviation is smaller is only centered.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers wants a list

    def __init__(self, crop_size=256, clip_below_air=True, eps=1e-6, window=None, **kwargs):
        super().__init__(**kwargs)
        self.crop_size = crop_size
        self.clip_below_air = clip_below_air
        self.eps = eps
        self.window = window

    def preprocess(self, images, clip_below_air=None, return_tensors=None, device=None, **kwargs):
        """What calling the processor does.

        Args:
          images: one slice (H, W); a volume (S, H, W), slices first; or a list of slices of any sizes. NumPy arrays or
            tensors of any real dtype, on any device; or gray PIL images, whose numbers are taken as they are (the
            pipelines of transformers reduce every image to 8 bits first: right for MR in that range, not for CT).
          clip_below_air: overrides the setting of the processor for this call.
          return_tensors: "pt" for PyTorch, which is also the default, or "np" for NumPy.
          device: where the tensor shall lie; by default where the slices do.
          kwargs: what transformers passes to processors in general. Nothing of it applies here; names are warned of.
        Returns:
          {"pixel_values": (B, 1, R, R) float32}, one row a slice, each normalized by its own statistics.
        Raises:
          ValueError: another shape or dtype, an empty slice, a value that is not finite, a color image, or another
            `return_tensors`.
        """
        if kwargs:
            warnings.warn(f"CuriaImageProcessor: ignored {', '.join(sorted(kwargs))}", stacklevel=2)
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors: found {return_tensors!r}; write 'pt' or 'np'")
        clip = self.clip_below_air if clip_below_air is None else clip_below_air
        pixels = torch.stack([self._pixels(_tensor(image), clip) for image in _slices(images)]).to(device=device)
        return BatchFeature({"pixel_values": pixels.cpu().numpy() if return_tensors == "np" else pixels})

    def _pixels(self, image, clip):
        """(H, W) float32 -> (1, R, R) float32."""
        # Mean and spread are those of the slice as it came; resizing comes before clipping, so that what the cubic
        # kernel overshoots is clipped too.
        low, high = (self.window or (AIR, None)) if clip else (-torch.inf, None)
        native = image.clamp(low, high).double()
        mean, std = native.mean(), native.std(correction=0)
        pixels = torch.nn.functional.interpolate(
            image[None, None], (self.crop_size, self.crop_size), mode="bicubic", align_corners=False, antialias=True
        )[0]
        pixels = pixels.clamp(low, high)
        return (pixels - mean.float()) / (std.float() if std >= self.eps else 1.0)


def _slices(images):
    """A list of 2-D arrays."""
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("images: an empty list; pass at least one slice (H, W)")
        images = [_unwrapped(image) for image in images]
        for i, image in enumerate(images):
            if np.ndim(image) != 2:
                raise ValueError(f"images[{i}] has shape {_shape(image)}; pass slices (H, W) in a list")
        return images
    images = _unwrapped(images)
    if np.ndim(images) == 2:
        return [images]
    if np.ndim(images) != 3:
        raise ValueError(f"images has shape {_shape(images)}; pass (H, W), (S, H, W) slices first, or a list of (H, W)")
    depth, height, width = _shape(images)
    if depth == 0:
        raise ValueError(f"images has shape {(depth, height, width)}: a volume without slices")
    if depth == height != width:
        raise ValueError(
            f"images has shape {(depth, height, width)}, which looks like slices on the last axis; move them to the "
            "first axis, or pass list(images) if they are there"
        )
    return list(images)


def _unwrapped(image):
    """A PIL image as its gray values (H, W); anything else as it is."""
    if not hasattr(image, "getbands"):
        return image
    values = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise ValueError(f"images: a color image of mode {image.mode}; pass gray values")
        values = values[..., 0]
    return values


def _shape(image):
    return tuple(getattr(image, "shape", np.shape(image)))


def _tensor(image):
    """(H, W) float32 tensor of finite values."""
    if not isinstance(image, torch.Tensor):
        image = np.asarray(image)
        if image.dtype.kind not in "biuf":
            raise ValueError(f"images: dtype {image.dtype}; pass real numbers")
        # A copy: PyTorch neither shares read-only memory nor knows negative strides or foreign byte orders.
        image = torch.from_numpy(np.array(image, np.float32, order="C"))
    if image.is_complex():
        raise ValueError(f"images: dtype {image.dtype}; pass real numbers")
    image = image.to(torch.float32)
    if image.numel() == 0:
        raise ValueError(f"images: an empty slice of shape {tuple(image.shape)}")
    if not torch.isfinite(image).all():
        raise ValueError("images: NaN or infinite values; replace them (in CT, outside of the field of view, by -1000)")
    return image
