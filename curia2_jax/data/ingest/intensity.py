"""What the numbers of a volume mean, and how they become int16.

CT is stored as Hounsfield units. MR keeps its numbers where they fit 16 bits; other MR is quantised once for the whole
volume, with slope and intercept kept, so that the error is at most half of range / 65535.
"""

import dataclasses

import numpy as np

from curia2_jax.data.readers.volume import Refusal, Volume

AIR = -1000
# Nothing in a body or its noise is as low as this; scanners write -2000 and -3024 outside of the field of view.
PADDING_BELOW = -1500
UNSIGNED_OFFSET = 1024
_SAMPLE_SIZE = 1 << 20


def sample(volume: Volume) -> np.ndarray:
    """About a million finite values in HU or the scanner's unit, evenly spread; float64 (n,)."""
    step = max(1, int(np.ceil((volume.raw.size / _SAMPLE_SIZE) ** (1 / 3))))
    some = np.asarray(volume.raw[step // 2 :: step, step // 2 :: step, step // 2 :: step], np.float64).ravel()
    some = some * volume.slope + volume.intercept
    return some[np.isfinite(some)]


def is_hounsfield(values: np.ndarray) -> bool:
    """Whether values look like HU: air or lung near -1000, and next to nothing below but padding.

    Phase images of MR reach as low, but spread evenly over thousands of values down to -4096.
    """
    air = np.mean((values <= -300) & (values > PADDING_BELOW))
    below = values[values <= PADDING_BELOW]
    padding = len(below) == 0 or len(np.unique(below)) <= 4 or len(below) < 0.001 * len(values)
    return bool(air >= 0.002 and padding)


def looks_unsigned(values: np.ndarray) -> bool:
    """Whether values look like HU + 1024, as DICOM stores a CT before its intercept of -1024 is applied.

    Such a histogram has air near 0, one narrow peak of fat and muscle around 1000, and little in between. Tissue in MR
    spreads over a peak at least twice as wide, wherever its scale puts it.
    """
    if not len(values) or values.min() < -64 or not 1300 <= values.max() <= 8192 or np.any(values != np.rint(values)):
        return False
    body = values[values > 500]
    if np.mean(values <= 224) < 0.01 or len(body) < 0.05 * len(values):
        return False
    counts = np.convolve(np.bincount(values.clip(0).astype(int), minlength=4096), np.ones(9) / 9, "same")
    peak = counts[874:1174].max()
    soft = np.mean((body >= 824) & (body <= 1224))
    between = np.mean((values > 400) & (values < 800)) / np.mean(values > 400)
    width = np.count_nonzero(counts[500:1600] > peak / 2)
    return bool(soft > 0.65 and between < 0.1 and width < 200 and peak > 15 * counts[450:750].mean())


def settle(volume: Volume, modality: str | None = None) -> Volume:
    """The volume with its modality decided (`modality` overrides) and a CT in HU; corrections are noted.

    Raises:
      Refusal: a CT that is not in HU.
    """
    values = sample(volume)
    said = modality or volume.modality
    notes = list(volume.notes)
    unsigned = False
    if said in ("", "CT") and not is_hounsfield(values):
        unsigned = looks_unsigned(values)
        rescaled = volume.modality == "CT" and volume.intercept != 0  # DICOM said how to get HU
        if said == "CT" and not unsigned and not rescaled and len(values) and values.min() >= 0 and values.max() > 400:
            raise Refusal("not_hounsfield", f"values from {values.min():g} to {values.max():g} called CT")
    if unsigned:
        notes.append(("ct_offset", f"{UNSIGNED_OFFSET} taken from values stored without a sign"))
    decided = said or ("CT" if unsigned or is_hounsfield(values) else "MR")
    if not said:
        notes.append(("modality_assumed", decided))
    intercept = volume.intercept - (UNSIGNED_OFFSET if unsigned else 0)
    return dataclasses.replace(volume, modality=decided, intercept=intercept, notes=notes)


@dataclasses.dataclass
class Quantizer:
    """Blocks of raw numbers -> int16, the same way for the whole volume, counting what it maps.

    Attributes:
      slope, intercept: stored * slope + intercept is HU for CT (slope 1, intercept 0) and the scanner's unit for MR.
      gain, bias: raw * gain + bias is the stored number.
      fill: the stored number of what is not finite.
      is_ct: whether what is below any tissue becomes air.
      padding: raw numbers that become air.
      non_finite, padded, clipped: voxels mapped so far.
    """

    slope: float
    intercept: float
    gain: float
    bias: float
    fill: float
    is_ct: bool = False
    padding: tuple[float, ...] = ()
    non_finite: int = 0
    padded: int = 0
    clipped: int = 0

    @classmethod
    def from_volume(cls, volume: Volume) -> "Quantizer":
        """Mapping for a settled volume; reads it once, in blocks, when its range must be known."""
        raw, slope, intercept = volume.raw, volume.slope, volume.intercept
        if volume.modality == "CT":
            return cls(1.0, 0.0, gain=slope, bias=intercept, fill=AIR, is_ct=True, padding=volume.padding)
        if np.can_cast(raw.dtype, np.int16):
            return cls(slope, intercept, gain=1.0, bias=0.0, fill=0.0)
        low, high, whole = _range(raw)
        if whole and high - low <= 65535:
            shift = 0.0 if low >= -32768 and high <= 32767 else -32768.0 - low
            return cls(slope, intercept - shift * slope, gain=1.0, bias=shift, fill=low + shift)
        step = max((high - low) / 65535, np.finfo(np.float32).tiny)
        lowest = (low + 32768 * step) * slope + intercept
        return cls(step * slope, lowest, gain=1 / step, bias=-32768 - low / step, fill=-32768.0)

    @property
    def notes(self) -> list[tuple[str, str]]:
        """(what, detail) of what was mapped so far."""
        found = (("non_finite", self.non_finite), ("padding", self.padded), ("clipped", self.clipped))
        out = [(what, f"{count} voxels") for what, count in found if count]
        return out if self.is_ct or self.gain == 1 else [*out, ("quantised", f"step {self.slope:.4g}")]

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """int16 of the shape of `raw`, contiguous."""
        if raw.dtype.kind in "iu" and self.gain == 1 and self.bias == round(self.bias):
            low, high = int(raw.min()) + int(self.bias), int(raw.max()) + int(self.bias)
            fits = raw.dtype == np.int16 and low >= -32768 and high <= 32767
            stored = raw.astype(np.int16 if fits else np.int64)
            stored += stored.dtype.type(self.bias)
            if not self.padding and high <= 32767 and low >= (PADDING_BELOW if self.is_ct else -32768):
                return stored.astype(np.int16, copy=False)
            hole = np.isin(raw, self.padding) if self.padding else None
        else:
            stored = raw.astype(np.float64)
            wrong = ~np.isfinite(stored)
            count = int(np.count_nonzero(wrong))
            self.non_finite += count
            hole = np.isin(stored, self.padding) if self.padding else None
            stored *= self.gain
            stored += self.bias
            np.rint(stored, out=stored)
            if count:
                stored[wrong] = self.fill
        if self.is_ct:
            low = stored < PADDING_BELOW
            if hole is not None:
                low |= hole
            self.padded += int(np.count_nonzero(low))
            stored[low] = AIR
        over = int(np.count_nonzero(stored > 32767)) + int(np.count_nonzero(stored < -32768))
        self.clipped += over
        if over:
            np.clip(stored, -32768, 32767, out=stored)
        return stored.astype(np.int16)


def _range(raw: np.ndarray) -> tuple[float, float, bool]:
    """(least, greatest, whether all are whole numbers) of the finite values, read slice by slice."""
    low, high, whole = np.inf, -np.inf, True
    for block in raw:
        values = block[np.isfinite(block)] if block.dtype.kind == "f" else block
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            whole = whole and (values.dtype.kind != "f" or bool(np.all(values == np.rint(values))))
    return (low, high, whole) if low <= high else (0.0, 0.0, True)
