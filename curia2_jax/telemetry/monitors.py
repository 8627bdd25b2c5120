"""What a set of tokens says of the network that made them. NumPy in float64, on the host: their eigenvalues would cost
a TPU program a minute of compilation. `rankme` of telemetry/metrics.py is another of these."""

import math

import numpy as np

SHRINKAGE = 1e-4  # added to the variance inside images, as in the paper of LiDAR


def lidar(tokens: np.ndarray) -> float:
    """Effective rank of what tells images apart, beside what varies between views of one (LiDAR, arXiv 2312.04000).

    tokens: (n, V, D), V >= 2 views of each of n >= 2 images. Exponential of the entropy of the eigenvalues of the
    covariance between images, relative to that inside them: at most min(n - 1, D), 1 where one direction does it all.
    NaN where tokens are not all finite or all images are one.
    """
    if not np.isfinite(tokens).all():
        return math.nan
    x = tokens.astype(np.float64)
    images, views, dim = x.shape
    means = x.mean(1)
    between = means - means.mean(0)
    inside = (x - means[:, None]).reshape(-1, dim)
    within = inside.T @ inside / (images * (views - 1)) + SHRINKAGE * np.eye(dim)
    values, axes = np.linalg.eigh(within)
    # Singular values of the whitened means, squared: the eigenvalues of within^-1/2 between within^-1/2.
    whitened = between @ (axes / np.sqrt(values))
    return _exp_entropy(np.linalg.svd(whitened, compute_uv=False) ** 2)


def spread(tokens: np.ndarray) -> float:
    """Mean over dimensions of the standard deviation of unit-length (n, D) tokens, times sqrt(D): 0 is collapse."""
    x = tokens.astype(np.float64)
    unit = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return float(unit.std(0).mean() * math.sqrt(x.shape[-1]))


def first_choices(choices: np.ndarray, prototypes: int) -> float:
    """Share of the prototypes that n images could share, which they do share; choices (n,): the nearest of each.

    Exponential of the entropy of the histogram of choices, over min(n, prototypes); 1 / n where all choose the same.
    """
    counts = np.bincount(choices, minlength=1).astype(np.float64)
    return _exp_entropy(counts) / min(len(choices), prototypes)


def _exp_entropy(weights: np.ndarray) -> float:
    """exp(entropy) of non-negative weights; NaN where all are zero. Rounded as `rankme` is, for the same reason."""
    if not weights.sum() > 0:
        return math.nan
    p = weights / weights.sum()
    p = p[p > 0]
    return float(np.float32(np.exp(-np.sum(p * np.log(p)))))
