"""Whether numbers are Hounsfield units, and by how much they are off: told from the peaks of air, fat and muscle.

Every scan of a body has fat near -100 HU (-130 to -80 in the scans at hand) and muscle near 50; air around it is at
-1000, to some units.
"""

import numpy as np

# Nothing in a body or its noise is as low as this; scanners write -2000 and -3024 outside of the field of view.
PADDING_BELOW = -1500
_OFFSETS = (1024, 1000)  # that writers add so that HU need no sign
_FAT = -95


def is_hounsfield(values: np.ndarray) -> bool:
    """Whether values look like HU: air or lung near -1000, and next to nothing below but padding.

    Phase images of MR reach as low, but spread evenly over thousands of values down to -4096.
    """
    air = np.mean((values <= -300) & (values > PADDING_BELOW))
    return bool(air >= 0.002 and not is_too_low(values))


def is_too_low(values: np.ndarray) -> bool:
    """Whether there is more below air than padding, which is a number or a few."""
    below = values[values <= PADDING_BELOW]
    return len(below) >= 0.001 * len(values) and len(np.unique(below)) > 4


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


def offset(values: np.ndarray) -> int:
    """What makes HU of values that were stored without a sign: -1024 or -1000, 0 where nothing or neither does.

    Air lies 24 apart in the two. Where it was clipped or left out, fat tells.
    """
    if not looks_unsigned(values):
        return 0
    counts = np.bincount(values.clip(0).astype(int), minlength=1200)[:1200]
    near_0, near_24 = float(counts[1:12].mean()), float(counts[18:31].mean())
    if max(near_0, near_24) * 60 > 0.005 * len(values) and not 0.7 < near_0 / max(near_24, 1e-9) < 1.4:
        return -_OFFSETS[near_0 > near_24]
    smooth = np.convolve(counts, np.ones(9) / 9, "same")
    fat = 850 + int(smooth[850:980].argmax())
    apart = [abs(fat - taken - _FAT) for taken in _OFFSETS]
    return -_OFFSETS[int(np.argmin(apart))] if abs(apart[0] - apart[1]) > 8 else 0


def offset_applied_twice(values: np.ndarray, intercept: float) -> int:
    """What makes HU of values to which a negative `intercept` was added though they were HU already, else 0."""
    if not -1100 <= intercept <= -900:
        return 0
    values = values[:: max(1, len(values) >> 16)]
    moved = values - intercept
    tissue = [
        np.mean((some > low) & (some < high)) for some in (values, moved) for low, high in ((-130, -60), (20, 100))
    ]
    if max(tissue[:2]) < 0.01 < min(tissue[2:]) and is_hounsfield(moved) and np.mean(values < PADDING_BELOW) > 0.002:
        return -round(intercept)
    return 0


def has_both_signs(values: np.ndarray) -> bool:
    """Whether values are below and above zero as no magnitude of MR is: phases, field maps, statistics, CT without
    air. Interpolation leaves one or two of a hundred below."""
    some = values[values != 0]
    return len(some) > 0 and bool(0.05 < np.mean(some < 0) < 0.95)
