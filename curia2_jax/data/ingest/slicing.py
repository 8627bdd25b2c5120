"""A volume -> the slices that a corpus stores: int16, oriented, at most 512 pixels a side, each with its index row."""

import collections.abc
import dataclasses
import time

import numpy as np
from PIL import Image

from curia2_jax.data.ingest import foreground as anatomy
from curia2_jax.data.ingest import intensity
from curia2_jax.data.readers.volume import MAX_SIDE, Refusal, Volume, in_plane, plane_affine, planes_of

_BLOCK = 32 << 20  # bytes of int32 that a block of slices may take while it is worked on


@dataclasses.dataclass
class Timer:
    """Seconds of processor time spent in each stage."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def __call__(self, stage: str, since: float) -> float:
        now = time.process_time()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


def slices(
    volume: Volume, planes: tuple[str, ...], notes: list[tuple[str, str]], timer: Timer
) -> collections.abc.Iterator[tuple[np.ndarray, dict]]:
    """(int16 (height, width), index row without keys, label and place in a file) of each stored slice of a settled
    volume.

    Slices with next to no foreground are left out. Appends to `notes` what was corrected. Raises Refusal before the
    first slice when the volume gives none for its shape, or is constant.
    """
    chosen = planes_of(volume.raw.shape, volume.spacing, planes, volume.across)
    quantise = intensity.Quantiser.of(volume)
    threshold = _threshold(volume, chosen[0], dataclasses.replace(quantise))
    empty = reduced = 0
    for plane in chosen:
        view, affine = in_plane(volume.raw, plane), plane_affine(volume, plane)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        along = affine[:3, 0] / spacing[0]
        height, width = view.shape[1:]
        step = max(1, _BLOCK // (4 * height * width))
        for start in range(0, len(view), step):
            since = time.process_time()
            block = quantise(np.ascontiguousarray(view[start : start + step]))
            pixel = spacing[1:]
            if max(height, width) > MAX_SIDE:
                block = np.stack([shrink(one) for one in block])
                pixel = pixel * (height / block.shape[1], width / block.shape[2])
                reduced += len(block)
            since = timer("orient and quantise", since)
            found = anatomy.find(block, threshold, volume.modality == "CT")
            timer("anatomy", since)
            for z, one in enumerate(block):
                if not found.fraction[z] >= anatomy.MIN_FOREGROUND:
                    empty += 1
                    continue
                k = start + z
                yield (
                    one,
                    {
                        "modality": volume.modality,
                        "plane": plane,
                        "position": float(k),
                        "position_mm": float(along @ (affine[:3, 3] + k * affine[:3, 0])),
                        "spacing_y": float(pixel[0]),
                        "spacing_x": float(pixel[1]),
                        "spacing_z": float(spacing[0]),
                        "obliquity": volume.obliquity,
                        "slope": float(quantise.slope),
                        "intercept": float(quantise.intercept),
                        "foreground": float(found.fraction[z]),
                        "anatomy_y": float(found.y[z]),
                        "anatomy_x": float(found.x[z]),
                        "anatomy_std_y": float(found.std_y[z]),
                        "anatomy_std_x": float(found.std_x[z]),
                    },
                )
    notes += quantise.notes
    notes += [(what, f"{count} slices") for what, count in (("near_empty", empty), ("reduced", reduced)) if count]
    if volume.obliquity > 1:
        notes.append(("oblique", f"{volume.obliquity:.1f} degrees off the axes of the patient"))


def shrink(pixels: np.ndarray) -> np.ndarray:
    """int16 slice with its longer side brought to 512 pixels, bicubic with antialiasing (Pillow's)."""
    scale = MAX_SIDE / max(pixels.shape)
    size = [max(1, round(side * scale)) for side in pixels.shape]
    image = Image.fromarray(pixels.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.clip(np.rint(np.asarray(image)), -32768, 32767).astype(np.int16)


def _threshold(volume: Volume, plane: str, quantise: intensity.Quantiser) -> float:
    """Threshold of the foreground in stored numbers, from at most 32 slices of the volume."""
    view = in_plane(volume.raw, plane)
    some = quantise(np.ascontiguousarray(view[:: max(1, len(view) // 32)]))
    if some.min() == some.max() and len(some) == len(view):
        raise Refusal("no_foreground", f"every voxel is {some.min() * quantise.slope + quantise.intercept:g}")
    if volume.modality == "CT":
        return anatomy.CT_THRESHOLD
    return anatomy.mr_threshold(anatomy.reduce(some).ravel())
