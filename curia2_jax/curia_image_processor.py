"""CT and MR slices -> what this model was trained on. Self-contained: needs NumPy and PyTorch, and takes part in
transformers where that is installed.

    processor = transformers.AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    tokens = model(**processor(slice_in_hounsfield_units, modality="CT")).last_hidden_state

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
AT_ONCE = 64  # slices of one size: enough for any device, and little memory


class CuriaImageProcessor(BaseImageProcessor):
    """Resize the whole slice to a square, clip CT, z-score: float32 throughout.

    A slice is (rows, columns). Its rows grow towards posterior and its columns towards left in axial planes, inferior
    and left in coronal, inferior and posterior in sagittal planes. CT comes in Hounsfield units, without any window:
    one that the model wants is applied here. MR comes in scanner units; its scale and offset do not matter, because the
    z-score removes them.

    Args:
      crop_size: side R of the square, in pixels. The aspect ratio is not kept.
      clip_below_air: what to do with values under -1000 when a call says neither this nor the modality. True is right
        for CT. MR was never clipped in training; pass `modality="MR"` with it.
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

    def preprocess(
        self,
        images,
        clip_below_air=None,
        return_tensors=None,
        device=None,
        modality=None,
        slice_axis=None,
        **kwargs,
    ):
        """What calling the processor does.

        Args:
          images: one slice (H, W); a volume (S, H, W), slices first; or a list of slices of any sizes. NumPy arrays or
            tensors of any real dtype, on any device; or gray PIL images, whose numbers are taken as they are (the
            pipelines of transformers reduce every image to 8 bits first: right for MR in that range, not for CT).
          clip_below_air: overrides the setting of the processor, and what the modality says, for this call.
          return_tensors: "pt" for PyTorch, which is also the default, or "np" for NumPy.
          device: where the work is done and the tensor lies; by default where the slices do.
          modality: "CT" (clipped, and warned of where the values cannot be Hounsfield units) or "MR" (neither). Not
            said, slices are clipped as the setting says, and those that are clipped are taken for CT.
          slice_axis: the axis of a volume that counts its slices: -1 for (H, W, S). Not said, it is the first one, and
            what looks otherwise is refused.
          kwargs: what transformers passes to processors in general. Nothing of it applies here; names are warned of.
        Returns:
          {"pixel_values": (B, 1, R, R) float32}, one row a slice, each normalized by its own statistics.
        Raises:
          ValueError: another shape or dtype, an empty slice, a value that is not finite, a color image, slices that
            seem to lie on another axis, or another word for `modality` or `return_tensors`.
        """
        if kwargs:
            warnings.warn(f"CuriaImageProcessor: ignored {', '.join(sorted(kwargs))}", stacklevel=2)
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors: found {return_tensors!r}; write 'pt' or 'np'")
        if modality not in (None, "CT", "MR"):
            raise ValueError(f"modality: found {modality!r}; write 'CT' or 'MR'")
        clip = clip_below_air if clip_below_air is not None else {"CT": True, "MR": False}.get(modality)
        clip = self.clip_below_air if clip is None else clip
        rows: dict[int, torch.Tensor] = {}
        ranges = []
        for places, stack in _stacks(images, slice_axis):
            for start in range(0, len(stack), AT_ONCE):
                some = stack[start : start + AT_ONCE].to(device=device).to(torch.float32)
                ranges.append(torch.stack(torch.aminmax(some)))
                rows |= zip(places[start : start + AT_ONCE], self._pixels(some, clip), strict=True)
        _check_units(torch.stack(ranges), modality or ("CT" if clip else "MR"), bool(modality))
        pixels = torch.stack([rows[place] for place in range(len(rows))])
        return BatchFeature({"pixel_values": pixels.cpu().numpy() if return_tensors == "np" else pixels})

    def _pixels(self, stack, clip):
        """(S, H, W) float32 -> (S, 1, R, R) float32."""
        # Mean and spread are those of the slice as it came; resizing comes before clipping, so that what the cubic
        # kernel overshoots is clipped too.
        low, high = (self.window or (AIR, None)) if clip else (-torch.inf, None)
        native = stack.clamp(low, high).flatten(1).double()
        mean, std = native.mean(1), native.std(1, correction=0)
        scale = torch.where(std >= self.eps, std, 1.0)
        pixels = torch.nn.functional.interpolate(
            stack[:, None], (self.crop_size, self.crop_size), mode="bicubic", align_corners=False, antialias=True
        )
        pixels = pixels.clamp(low, high)
        return (pixels - mean.float()[:, None, None, None]) / scale.float()[:, None, None, None]


def _check_units(ranges, modality, is_said):
    """Refuses what is no number, and warns of CT that cannot be in Hounsfield units: `ranges` (n, 2), least and
    largest values, which are NaN where any value is."""
    if not torch.isfinite(ranges).all():
        raise ValueError("images: NaN or infinite values; replace them (in CT, outside of the field of view, by -1000)")
    low, high = float(ranges[:, 0].min()), float(ranges[:, 1].max())
    if modality == "MR" or low == high:
        return
    if low >= 0 and high <= 255:
        warnings.warn(
            f"CuriaImageProcessor: all values lie within 0 to {1 if high <= 1 else 255}: CT has to come in Hounsfield "
            "units (HU), neither scaled nor windowed; write modality='MR' if it is MR",
            stacklevel=3,
        )
    elif is_said and low > -500:
        warnings.warn(
            f"CuriaImageProcessor: CT without values under -500 HU (the least is {low:g}): Hounsfield units are stored "
            "values times RescaleSlope plus RescaleIntercept; air is -1000",
            stacklevel=3,
        )


def _stacks(images, slice_axis):
    """Yields (places in the order of the result, tensor (S, H, W)): slices of one size each."""
    images = _unwrapped(images)
    if not isinstance(images, (list, tuple)) and np.ndim(images) == 3:
        stack = _tensor(_slices_first(images, slice_axis))
        yield range(len(stack)), stack
        return
    if slice_axis is not None:
        raise ValueError("slice_axis: goes with one array of three axes; leave it out")
    if not isinstance(images, (list, tuple)):
        if np.ndim(images) != 2:
            raise ValueError(
                f"images has shape {_shape(images)}; pass (H, W), (S, H, W) slices first, or a list of (H, W)"
            )
        images = [images]
    if not images:
        raise ValueError("images: an empty list; pass at least one slice (H, W)")
    by_size: dict[tuple, list] = {}
    for i, image in enumerate(map(_unwrapped, images)):
        if np.ndim(image) != 2:
            color = ", which looks like a color image (RGB)" if _is_color(_shape(image)) else ""
            raise ValueError(f"images[{i}] has shape {_shape(image)}{color}; pass slices (H, W) in a list")
        image = _tensor(image)
        by_size.setdefault((image.shape, image.dtype, image.device), []).append((i, image))
    for items in by_size.values():
        places, same = zip(*items, strict=True)
        yield places, torch.stack(same)


def _slices_first(images, slice_axis):
    """A volume with its slices on axis 0."""
    shape = depth, height, width = _shape(images)
    if slice_axis is not None:
        if slice_axis not in range(-3, 3):
            raise ValueError(f"slice_axis: found {slice_axis!r}; write 0, 1 or 2, or -1 for the last")
        return images.movedim(slice_axis, 0) if isinstance(images, torch.Tensor) else np.moveaxis(images, slice_axis, 0)
    if depth == 0:
        raise ValueError(f"images has shape {shape}: a volume without slices")
    if _is_color(shape) and (width <= 4 or images.dtype in (np.uint8, torch.uint8)):
        raise ValueError(
            f"images has shape {shape}, which looks like a color image (RGB); pass gray values, or write slice_axis=0 "
            "or slice_axis=-1 if these are slices"
        )
    if depth == height != width or 2 * width < min(depth, height):
        raise ValueError(
            f"images has shape {shape}, which looks like slices on the last axis; write slice_axis=-1 if they are "
            "there, slice_axis=0 if not"
        )
    return images


def _is_color(shape):
    """Whether three axes may be rows, columns and two to four channels, first or last."""
    return len(shape) == 3 and (shape[-1] in (3, 4) or shape[0] in (3, 4)) and max(shape) > 4


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
    """A tensor of real numbers, none of them touched yet unless PyTorch has no such type."""
    if not isinstance(image, torch.Tensor):
        image = np.asarray(image)
        if image.dtype.kind not in "biuf":
            raise ValueError(f"images: dtype {image.dtype}; pass real numbers")
        # A copy: PyTorch neither shares read-only memory nor knows negative strides or foreign byte orders.
        small = image.dtype.name in ("int16", "uint8")  # travels to a device as it is
        image = torch.from_numpy(np.array(image, image.dtype.name if small else np.float32, order="C"))
    if image.is_complex():
        raise ValueError(f"images: dtype {image.dtype}; pass real numbers")
    if image.numel() == 0:
        raise ValueError(f"images: an empty slice of shape {tuple(image.shape)}")
    return image
