"""What the numbers of a volume mean, and how they become int16.

CT is stored as Hounsfield units. MR keeps its numbers where they fit 16 bits; other MR is quantized once for the whole
volume, with slope and intercept kept, so that the error is at most half of range / 65535.
"""

import dataclasses
from typing import Any

import numpy as np

from curia2_jax.data.ingest import hounsfield
from curia2_jax.data.ingest.hounsfield import PADDING_BELOW
from curia2_jax.data.readers.volume import Refusal, Volume

AIR = -1000
_SAMPLE_SIZE = 1 << 20
# Range of all voxels in ranges of 99.8 % of them, above which 65,536 steps are too few for these.
_MOST_OUTLYING = 64


def sample(volume: Volume) -> np.ndarray:
    """About a million finite values in HU or the scanner's unit, evenly spread; float64 (n,)."""
    step = max(1, int(np.ceil((volume.raw.size / _SAMPLE_SIZE) ** (1 / 3))))
    some = volume.raw[step // 2 :: step, step // 2 :: step, step // 2 :: step].astype(np.float64).ravel()
    some *= volume.slope
    some += volume.intercept
    whole = volume.raw.dtype.kind in "iu" and np.isfinite([volume.slope, volume.intercept]).all()
    return some if whole else some[np.isfinite(some)]


def settle(volume: Volume, modality: str | None = None) -> Volume:
    """The volume with its modality decided (`modality` overrides) and a CT in HU; corrections are noted.

    Raises:
      Refusal: a CT that is not in HU, or numbers of which nobody says whether they are CT or MR.
    """
    values = sample(volume)
    said = modality or volume.modality
    notes, shift = list(volume.notes), 0
    fits = hounsfield.is_hounsfield(values)
    if said in ("", "CT") and not fits:
        shift = hounsfield.offset(values)
        if shift:
            notes.append(("ct_offset", f"{-shift} taken from values stored without a sign"))
    if said == "CT" and not shift:
        shift = hounsfield.offset_applied_twice(values, volume.intercept)
        if shift:
            notes.append(("ct_offset", f"{shift} added: the values had an offset before RescaleIntercept"))
        else:
            _check_hounsfield(volume, values, fits)
    if not said and not fits and not shift and hounsfield.has_both_signs(values):
        raise Refusal(
            "unknown_modality", f"values from {values.min():g} to {values.max():g}: write --modality CT or MR"
        )
    decided = said or ("CT" if shift or fits else "MR")
    if not said:
        notes.append(("modality_assumed", decided))
    return dataclasses.replace(volume, modality=decided, intercept=volume.intercept + shift, notes=notes)


def _check_hounsfield(volume: Volume, values: np.ndarray, fits: bool) -> None:
    """That what is called CT may be HU.

    Raises:
      Refusal: it is not.
    """
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    windowed = (volume.raw.dtype.itemsize == 1 and 100 < high - low < 1000) or (low, high) == (0, 255)
    rescaled = volume.modality == "CT" and volume.intercept != 0  # DICOM said how to get HU
    clipped = not fits and -900 < low < 0 and np.mean(values == low) > 0.02
    if windowed or clipped or hounsfield.is_too_low(values) or (not (fits or rescaled) and low >= 0 and high > 400):
        raise Refusal("not_hounsfield", f"values from {low:g} to {high:g} called CT")


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
        low, high = _without_outliers(volume, low, high)
        if whole and high - low <= 65535:
            shift = 0.0 if low >= -32768 and high <= 32767 else -32768.0 - low
            return cls(slope, intercept - shift * slope, gain=1.0, bias=shift, fill=low + shift)
        step = max((high - low) / 65535, float(np.finfo(np.float32).tiny))
        lowest = (low + 32768 * step) * slope + intercept
        return cls(step * slope, lowest, gain=1 / step, bias=-32768 - low / step, fill=-32768.0)

    @property
    def notes(self) -> list[tuple[str, str]]:
        """(what, detail) of what was mapped so far."""
        found = (("non_finite", self.non_finite), ("padding", self.padded), ("clipped", self.clipped))
        out = [(what, f"{count} voxels") for what, count in found if count]
        return out if self.is_ct or self.gain == 1 else [*out, ("quantized", f"step {self.slope:.4g}")]

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """int16 of the shape of `raw`, contiguous."""
        stored: np.ndarray[Any, np.dtype[Any]]
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
            holes = stored < PADDING_BELOW
            if hole is not None:
                holes |= hole
            self.padded += int(np.count_nonzero(holes))
            stored[holes] = AIR
        over = int(np.count_nonzero(stored > 32767)) + int(np.count_nonzero(stored < -32768))
        self.clipped += over
        if over:
            np.clip(stored, -32768, 32767, out=stored)
        return stored.astype(np.int16)


def _without_outliers(volume: Volume, low: float, high: float) -> tuple[float, float]:
    """The range to quantize: a few voxels far outside of all others are clipped, as they would take all the steps."""
    some = volume.raw[:: max(1, len(volume.raw) // 32)]
    inner = np.percentile(some[np.isfinite(some)] if some.dtype.kind == "f" else some, (0.1, 99.9))
    reach = max(float(np.ptp(inner)), float(np.finfo(np.float32).tiny))
    if high - low <= _MOST_OUTLYING * reach:
        return low, high
    return max(low, float(inner[0]) - _MOST_OUTLYING / 4 * reach), min(
        high, float(inner[1]) + _MOST_OUTLYING / 4 * reach
    )


def _range(raw: np.ndarray) -> tuple[float, float, bool]:
    """(least, greatest, whether all are whole numbers) of the finite values, read slice by slice."""
    low, high, whole = np.inf, -np.inf, True
    for block in raw:
        values = block[np.isfinite(block)] if block.dtype.kind == "f" else block
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
            whole = whole and (values.dtype.kind != "f" or bool(np.all(values == np.rint(values))))
    return (low, high, whole) if low <= high else (0.0, 0.0, True)
