"""Multinomial logistic regression: every strength of the penalty and every fold as one batched problem on the device.

What is minimized is scikit-learn's: C x sum of cross-entropies + half of the squared weights of standardized features,
the intercepts free, and for two classes one vector of weights. It is minimized in coordinates in which the Hessian at
zero is the identity: features of a Vision Transformer are so correlated that it would else take thousands of steps.
"""

from typing import NamedTuple

import torch

from curia2_jax.curiabench.heads import newton

ROWS = 8192  # at a time, which bounds the memory of the logits


class Fits(NamedTuple):
    """B fits, problem = fold x strengths + strength. `weights` (B, D, K) and `bias` (B, K) are of raw features;
    `present` (B, K): classes that the fold has."""

    weights: torch.Tensor
    bias: torch.Tensor
    present: torch.Tensor
    converged: torch.Tensor  # (B,) bool
    steps: int


class _Coordinates(NamedTuple):
    """Per problem: weights of features = `basis` @ (`stretch` x point); see `_coordinates`."""

    center: torch.Tensor  # (B, D)
    basis: torch.Tensor  # (F, D, D), columns in units of raw features
    spectrum: torch.Tensor  # (F, D), variances along the basis
    fold: torch.Tensor  # (B,) int64
    stretch: torch.Tensor  # (B, D)
    bias_stretch: torch.Tensor  # (B,)
    penalty: torch.Tensor  # (B,), of the squared weights of standardized features; the mean loss has weight 1

    def shrink(self, which: torch.Tensor) -> torch.Tensor:
        """What the penalty adds to the curvature of each coordinate, (b, D, 1)."""
        return (self.penalty[which][:, None] * self.stretch[which] ** 2)[:, :, None]


def fit(
    features: torch.Tensor,
    labels: torch.Tensor,
    folds: torch.Tensor,
    strengths: tuple[float, ...],
    tolerance: float,
    max_steps: int,
) -> Fits:
    """Fits each fold at each strength.

    Args:
      features: (n, D) float64.
      labels: (n, K) float64, shares of each class that add up to 1.
      folds: (F, n) bool, the rows that a fold is fitted to.
      strengths: scikit-learn's C.
      tolerance: of the largest entry of the gradient of the mean loss, in the coordinates of this module.
    """
    present = torch.stack([labels[rows].sum(0) > 0 for rows in folds])
    present = present.repeat_interleave(len(strengths), 0)
    coordinates = _coordinates(features, folds, strengths, present.sum(1))
    shape = (features.shape[1] + 1, labels.shape[1])

    def value(points: torch.Tensor, which: torch.Tensor):
        points = points.reshape(-1, *shape)
        weights, bias = _raw(points, which, coordinates)
        loss, chances = _loss(features, labels, folds[coordinates.fold[which]], weights, bias, present[which])
        used = folds[coordinates.fold[which]]
        by_weight, by_bias = _sums(features, [one - labels[rows, None] for rows, one in chances], used)
        loss = loss + 0.5 * (coordinates.shrink(which) * points[:, :-1] ** 2).sum((1, 2))
        return loss, _pulled(points, by_weight, by_bias, which, coordinates).flatten(1), chances

    def product(chances, rows: torch.Tensor, directions: torch.Tensor, which: torch.Tensor):
        directions = directions.reshape(-1, *shape)
        weights, bias = _raw(directions, which, coordinates)
        flat = weights.permute(1, 0, 2).flatten(1)
        changes = []
        for part, chance in chances:
            change, chance = (features[part] @ flat).reshape(-1, *bias.shape) + bias, chance[:, rows]
            change -= (chance * change).sum(2, keepdim=True)
            changes.append(change * chance)
        by_weight, by_bias = _sums(features, changes, folds[coordinates.fold[which]])
        return _pulled(directions, by_weight, by_bias, which, coordinates).flatten(1)

    def diagonal(chances, rows: torch.Tensor, which: torch.Tensor):
        return _diagonal(chances, rows, folds[coordinates.fold[which]], which, coordinates)

    start = features.new_zeros((len(present), shape[0] * shape[1]))
    found = newton.minimize(newton.Objective(value, product, diagonal), start, tolerance, max_steps)
    everyone = torch.arange(len(present), device=features.device)
    weights, bias = _raw(found.points.reshape(-1, *shape), everyone, coordinates)
    return Fits(weights, bias, present, found.converged, found.steps)


def probabilities(features: torch.Tensor, fits: Fits, which: int) -> torch.Tensor:
    """Classes of (m, D) features by one of the fits, (m, K); a class that its fold lacks has none."""
    logits = features @ fits.weights[which] + fits.bias[which]
    return logits.masked_fill(~fits.present[which], -torch.inf).softmax(1)


def _coordinates(features, folds, strengths, classes) -> _Coordinates:
    """At weights of zero the Hessian is 1 / K x covariance + penalty: its eigenvectors and the roots of its inverse."""
    centers, bases, spectra, counts = [], [], [], []
    for rows in folds:
        chosen = features[rows]
        center = chosen.mean(0)
        chosen = chosen - center
        scale = chosen.square().mean(0).sqrt()
        scale = torch.where(scale > 1e-12 * (1 + center.abs()), scale, 1)  # a constant has no weight
        chosen /= scale
        spectrum, vectors = torch.linalg.eigh(chosen.T @ chosen / len(chosen))
        centers.append(center)
        bases.append(vectors / scale[:, None])
        spectra.append(spectrum.clamp(min=0))
        counts.append(len(chosen))
    number = len(strengths)
    fold = torch.arange(len(folds), device=features.device).repeat_interleave(number)
    # Two classes: one vector of weights w instead of +-w / 2 halves the penalty, and with it C.
    strength = features.new_tensor(strengths).repeat(len(folds)) / torch.where(classes == 2, 2, 1)
    penalty = 1 / (strength * features.new_tensor(counts)[fold])
    spectrum = torch.stack(spectra)
    stretch = (spectrum[fold] / classes[:, None] + penalty[:, None]).rsqrt()
    return _Coordinates(
        torch.stack(centers)[fold], torch.stack(bases), spectrum, fold, stretch, classes.sqrt(), penalty
    )


def _raw(points: torch.Tensor, which: torch.Tensor, coordinates: _Coordinates) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (b, D + 1, K) -> weights (b, D, K) and bias (b, K) of raw features."""
    weights = coordinates.basis[coordinates.fold[which]] @ (coordinates.stretch[which][:, :, None] * points[:, :-1])
    bias = coordinates.bias_stretch[which][:, None] * points[:, -1]
    return weights, bias - (coordinates.center[which][:, :, None] * weights).sum(1)


def _diagonal(chances, rows, used, which, coordinates: _Coordinates) -> torch.Tensor:
    """Each class as if its samples were spread as all of them are, (b, (D + 1) * K); `used` (b, n): rows of folds."""
    shares = [(chance[:, rows], used[:, part].T[:, :, None]) for part, chance in chances]
    spread = torch.stack([(chance * (1 - chance) * part).sum(0) for chance, part in shares]).sum(0)
    spread = torch.where(spread > 0, spread / used.sum(1)[:, None], 1)  # a class that a fold lacks stays where it is
    variances = coordinates.stretch[which] ** 2 * coordinates.spectrum[coordinates.fold[which]]
    by_point = variances[:, :, None] * spread[:, None] + coordinates.shrink(which)
    by_last = (coordinates.bias_stretch[which] ** 2)[:, None, None] * spread[:, None]
    return torch.cat([by_point, by_last], 1).flatten(1)


def _pulled(points, by_weight, by_bias, which, coordinates: _Coordinates) -> torch.Tensor:
    """Derivatives by raw weights and bias -> by points (b, D + 1, K), with those of the penalty."""
    by_weight = by_weight - coordinates.center[which][:, :, None] * by_bias[:, None]
    turned = coordinates.basis[coordinates.fold[which]].transpose(1, 2) @ by_weight
    by_point = coordinates.stretch[which][:, :, None] * turned + coordinates.shrink(which) * points[:, :-1]
    return torch.cat([by_point, (coordinates.bias_stretch[which][:, None] * by_bias)[:, None]], 1)


def _loss(features, labels, folds, weights, bias, present):
    """Mean cross-entropy (b,), and [(rows, probabilities (rows, b, K)), ...]; `folds` (b, n)."""
    flat = weights.permute(1, 0, 2).flatten(1)
    loss, counts, chances = features.new_zeros(len(folds)), folds.sum(1), []
    for start in range(0, len(features), ROWS):
        rows = slice(start, start + ROWS)
        logits = (features[rows] @ flat).reshape(-1, *bias.shape) + bias
        logits.masked_fill_(~present, -torch.inf)
        truth = labels[rows, None]
        log_sum = logits.logsumexp(2)
        lost = log_sum * truth.sum(2) - torch.where(truth > 0, truth * logits, 0).sum(2)
        loss += torch.where(folds[:, rows].T, lost, 0).sum(0) / counts
        chances.append((rows, logits.sub_(log_sum[:, :, None]).exp_()))
    return loss, chances


def _sums(features, parts, folds):
    """Means over the rows of each fold of features^T @ parts (b, D, K), and of parts (b, K)."""
    shape = (len(folds), parts[0].shape[2])
    by_weight, by_bias = features.new_zeros((features.shape[1], shape[0] * shape[1])), features.new_zeros(shape)
    counts = folds.sum(1)
    for number, part in enumerate(parts):
        rows = slice(number * ROWS, number * ROWS + ROWS)
        part = part * (folds[:, rows].T / counts)[:, :, None]
        by_weight += features[rows].T @ part.flatten(1)
        by_bias += part.sum(0)
    return by_weight.reshape(-1, *shape).permute(1, 0, 2), by_bias
