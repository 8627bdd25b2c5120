"""Where the body is in the slices of a corpus, found anew at the resolution at which ingest found it."""

import functools
from collections.abc import Callable

import numpy as np

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.data.ingest import foreground

_SLICES = 8  # that stand for a series when its threshold is found


def finder(corpus: Corpus) -> Callable[[int], tuple[np.ndarray, int]]:
    """A function of the number of a slice: its foreground, bool (h, w) in cells, and the pixels along a cell."""
    first, count = corpus.series()

    @functools.cache
    def mr_threshold(series: int) -> float:
        taken = first[series] + np.linspace(0, count[series] - 1, min(_SLICES, count[series])).astype(int)
        reduced = [foreground.reduce(corpus.read(int(i))[None]).ravel() for i in taken]
        return foreground.mr_threshold(np.concatenate(reduced))

    def find(i: int) -> tuple[np.ndarray, int]:
        at, pixels = np.array([i]), corpus.read(i)
        is_ct = bool(corpus.rows(at)["is_ct"][0])
        if is_ct:
            slope, intercept = (float(corpus.take(name, at)[0]) for name in ("slope", "intercept"))
            threshold = (foreground.CT_THRESHOLD - intercept) / slope
        else:
            threshold = mr_threshold(int(np.searchsorted(first, i, side="right")) - 1)
        mask = foreground.body(foreground.reduce(pixels[None]), threshold, is_ct)[0]
        return mask, -(-max(pixels.shape) // max(mask.shape))

    return find
