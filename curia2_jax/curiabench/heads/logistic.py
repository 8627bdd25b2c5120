"""Multinomial logistic regression along a path of penalties, on the device of the features.

What is minimized is scikit-learn's: C x sum of cross-entropies + half of the squared weights of standardized features,
the intercepts free, and for two classes one vector of weights. It is minimized in coordinates in which the Hessian at
zero is the identity: features of a Vision Transformer are so correlated that it would else take thousands of steps.
Each strength starts where the one before ended. Values and gradients are float64 and decide what is found; Hessians
only point the way and are float32, which takes half of the time.
"""

from typing import NamedTuple

import torch

from curia2_jax.curiabench.heads import newton

ROWS = 8192  # at a time, which bounds the memory of the logits


class Fit(NamedTuple):
    """Of raw features; a class that no row has is given a bias of minus infinity."""

    weights: torch.Tensor  # (D, K)
    bias: torch.Tensor  # (K,)
    converged: bool


class _Spread(NamedTuple):
    """What all strengths share. `basis` (D, r): directions without correlation, in units of raw features."""

    center: torch.Tensor  # (D,)
    basis: torch.Tensor
    rough: torch.Tensor  # the basis in float32
    variances: torch.Tensor  # (r,), along the basis, of standardized features


class _Coordinates(NamedTuple):
    """Weights along the basis = `stretch` x point[:-1] (r, K); biases about the center = `bias_stretch` x point[-1].

    `penalty`: of the squared weights of standardized features; the mean loss has weight 1.
    """

    stretch: torch.Tensor  # (r, 1)
    bias_stretch: float
    penalty: float

    @property
    def shrink(self) -> torch.Tensor:
        """What the penalty adds to the curvature of each coordinate, (r, 1)."""
        return self.penalty * self.stretch**2


def fit(
    features: torch.Tensor, labels: torch.Tensor, strengths: tuple[float, ...], tolerance: float, max_steps: int
) -> list[Fit]:
    """One fit a strength.

    Args:
      features: (n, D) float64.
      labels: (n, K) float64, shares of each class that add up to 1.
      strengths: scikit-learn's C, best in ascending order.
      tolerance: of the largest entry of the gradient of the mean loss, in the coordinates of this module.
    """
    present = labels.sum(0) > 0
    count, number = len(features), int(present.sum())
    data = _Data(features, features.float(), labels[:, present], _spread(features))
    along, bias, fits = features.new_zeros((data.spread.basis.shape[1], number)), features.new_zeros(number), []
    for strength in strengths:
        # Two classes: one vector of weights w instead of +-w / 2 halves the penalty, and with it C.
        penalty = 1 / (count * strength / (2 if number == 2 else 1))
        stretch = (data.spread.variances / number + penalty).rsqrt()[:, None]
        coordinates = _Coordinates(stretch, number**0.5, penalty)
        start = torch.cat([along / stretch, bias[None] / coordinates.bias_stretch])
        found = newton.minimize(_objective(data, coordinates), start, tolerance, max_steps)
        along, bias = stretch * found.point[:-1], coordinates.bias_stretch * found.point[-1]
        weights, shown = (
            features.new_zeros((features.shape[1], len(present))),
            features.new_full((len(present),), -torch.inf),
        )
        weights[:, present] = data.spread.basis @ along
        shown[present] = bias - data.spread.center @ weights[:, present]
        fits.append(Fit(weights, shown, found.converged))
    return fits


def probabilities(features: torch.Tensor, one: Fit) -> torch.Tensor:
    """Classes of (m, D) features, (m, K)."""
    return (features @ one.weights + one.bias).softmax(1)


class _Data(NamedTuple):
    """What is fitted to; `rough` are the features in float32."""

    features: torch.Tensor
    rough: torch.Tensor
    labels: torch.Tensor
    spread: _Spread


def _spread(features: torch.Tensor) -> _Spread:
    """Eigenvectors of the correlations; at weights of zero the Hessian is 1 / K x their eigenvalues + penalty."""
    center = features.mean(0)
    centered = features - center
    scale = centered.square().mean(0).sqrt()
    scale = torch.where(scale > 1e-12 * (1 + center.abs()), scale, 1)  # a constant has no weight
    centered /= scale
    variances, vectors = torch.linalg.eigh(centered.T @ centered / len(features))
    rank = max(min(len(features) - 1, len(variances)), 1)  # where samples do not spread, weights are zero
    basis = (vectors / scale[:, None])[:, -rank:]
    return _Spread(center, basis, basis.float(), variances[-rank:].clamp(min=0))


def _objective(data: _Data, coordinates: _Coordinates) -> newton.Objective:
    """The mean cross-entropy and the penalty, of points (r + 1, K)."""
    count = len(data.features)

    def pulled(point: torch.Tensor, along: torch.Tensor, by_bias: torch.Tensor) -> torch.Tensor:
        """Derivatives along the basis and by the biases -> by the point, with those of the penalty."""
        by_point = coordinates.stretch * along + coordinates.shrink * point[:-1]
        return torch.cat([by_point, coordinates.bias_stretch * by_bias[None]])

    def value(point: torch.Tensor):
        weights, bias = data.spread.basis @ (coordinates.stretch * point[:-1]), coordinates.bias_stretch * point[-1]
        loss, by_weight, by_bias, chances = _loss(data, weights, bias - data.spread.center @ weights)
        loss = loss / count + 0.5 * (coordinates.shrink * point[:-1] ** 2).sum()
        along = data.spread.basis.T @ (by_weight - torch.outer(data.spread.center, by_bias))
        return loss, pulled(point, along / count, by_bias / count), chances

    def product(chances: list[torch.Tensor], direction: torch.Tensor) -> torch.Tensor:
        weights = data.spread.rough @ (coordinates.stretch * direction[:-1]).float()
        bias, center = (coordinates.bias_stretch * direction[-1]).float(), data.spread.center.float()
        bias = bias - center @ weights
        by_weight, by_bias = torch.zeros_like(weights), torch.zeros_like(bias)
        for rows, chance in zip(data.rough.split(ROWS), chances, strict=True):
            change = torch.addmm(bias, rows, weights).mul_(chance)
            change.addcmul_(chance, change.sum(1, keepdim=True), value=-1)
            by_weight.addmm_(rows.T, change)
            by_bias += change.sum(0)
        along = data.spread.rough.T @ (by_weight - torch.outer(center, by_bias))
        return pulled(direction, along.double() / count, by_bias.double() / count)

    def diagonal(chances: list[torch.Tensor]) -> torch.Tensor:
        """Each class as if its samples were spread as all of them are."""
        spread = torch.stack([(chance * (1 - chance)).sum(0) for chance in chances]).sum(0).double() / count
        spread = torch.where(spread > 0, spread, 1)
        along = (coordinates.stretch**2 * data.spread.variances[:, None]) * spread + coordinates.shrink
        return torch.cat([along, coordinates.bias_stretch**2 * spread[None]])

    return newton.Objective(value, product, diagonal)


def _loss(data: _Data, weights: torch.Tensor, bias: torch.Tensor):
    """Sum of cross-entropies, its derivatives by weights (D, K) and bias (K,), and float32 probabilities by ROWS."""
    loss, by_weight, by_bias, chances = weights.new_zeros(()), torch.zeros_like(weights), torch.zeros_like(bias), []
    for rows, truth in zip(data.features.split(ROWS), data.labels.split(ROWS), strict=True):
        logits = torch.addmm(bias, rows, weights)
        log_sum = logits.logsumexp(1, keepdim=True)
        loss += log_sum.sum() - (truth * logits).sum()  # shares add up to 1
        wrong = logits.sub_(log_sum).exp_()
        chances.append(wrong.float())
        wrong.sub_(truth)
        by_weight.addmm_(rows.T, wrong)
        by_bias += wrong.sum(0)
    return loss, by_weight, by_bias, chances
