"""Two heads on frozen tokens that need nothing but NumPy: ridge regression and nearest neighbors; and their scores.

Small enough to run between two steps of a training, on the host, in float64.
"""

import dataclasses
import math

import numpy as np

from curia2_jax.errors import UserError

RIDGE = (1.0, 10.0, 100.0, 1e3, 1e4)  # what is added to the eigenvalues of n standardized tokens
FOLDS = 4
NEIGHBORS = 20
TEMPERATURE = 0.07  # of a neighbor's vote, exp(cosine / temperature), as DINO has it


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """How often a run asks its teacher what it knows, and by how many slices. See training/probe.py."""

    every_steps: int  # 0: never
    slices: int
    corpus: str  # "": that of the training

    def __post_init__(self):
        if self.every_steps < 0:
            raise UserError(f"every_steps: found {self.every_steps}; write 0 for never, or more")
        if self.slices < 2:
            raise UserError(f"slices: found {self.slices}; write 2 or more, or every_steps=0 for no probe")


def standardized(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) and (m, D) float64 with the mean and spread of `train` taken out; constant columns become 0."""
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    scale = np.where(std > 1e-12, 1 / np.maximum(std, 1e-12), 0.0)
    return (train - mean) * scale, (test - mean) * scale


def ridge(train: np.ndarray, targets: np.ndarray, test: np.ndarray, penalties: tuple[float, ...]) -> np.ndarray:
    """Ridge regression with an intercept at every penalty: (n, D), (n, C), (m, D) -> (penalties, m, C).

    By one eigendecomposition of the (n, n) products of tokens, whatever D is.
    """
    x, y = standardized(train, test)
    center = targets.mean(0)
    values, axes = np.linalg.eigh(x @ x.T)
    turned = axes.T @ (targets - center)
    across = (y @ x.T) @ axes
    return np.stack([across @ (turned / (values + p)[:, None]) + center for p in penalties])


def ridge_probe(train: np.ndarray, targets: np.ndarray, groups: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Ridge regression of (n, C) targets whose penalty leaves the least squared error on patients left out: (m, C).

    groups: (n,) int, the patient of each; each of FOLDS folds is all slices of some.
    """
    folds = np.unique(groups, return_inverse=True)[1] % FOLDS
    errors = np.zeros(len(RIDGE))
    for fold in range(FOLDS):
        out = folds == fold
        if out.any() and not out.all():
            found = ridge(train[~out], targets[~out], train[out], RIDGE)
            errors += ((found - targets[out]) ** 2).sum((1, 2))
    return ridge(train, targets, test, (RIDGE[int(errors.argmin())],))[0]


def neighbors(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Mean target of the NEIGHBORS nearest by cosine, each weighted by exp(cosine / TEMPERATURE): (m, C)."""
    similarity = _unit(test) @ _unit(train).T
    k = min(NEIGHBORS, len(train))
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    votes = np.exp((np.take_along_axis(similarity, nearest, 1) - similarity.max(1, keepdims=True)) / TEMPERATURE)
    return (votes[:, :, None] * targets[nearest]).sum(1) / votes.sum(1, keepdims=True)


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def explained(truth: np.ndarray, found: np.ndarray) -> float:
    """R squared of (m, 1) answers: 1 all, 0 no better than the mean of the test. NaN where all truths are one."""
    total = ((truth - truth.mean(0)) ** 2).sum()
    return float(1 - ((truth - found) ** 2).sum() / total) if total > 0 else math.nan


def auroc(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean area under the ROC over the columns of truth (m, C), 0 and 1, that have both; found (m, C), any scores."""
    areas = []
    for wanted, score in zip(truth.T > 0.5, found.T, strict=True):
        if wanted.any() and not wanted.all():
            order = np.unique(score, return_inverse=True, return_counts=True)
            below = np.cumsum(order[2]) - order[2]
            ranks = (below + (order[2] + 1) / 2)[order[1]]  # equal scores share their mean rank
            hits = wanted.sum()
            areas.append((ranks[wanted].sum() - hits * (hits + 1) / 2) / (hits * (len(wanted) - hits)))
    return float(np.mean(areas)) if areas else math.nan


def balanced_accuracy(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean over the classes that occur of the share of them that is told; truth and found (m, C), one-hot and votes."""
    right = truth.argmax(1) == found.argmax(1)
    return float(np.mean([right[truth.argmax(1) == c].mean() for c in np.unique(truth.argmax(1))]))
