"""Truncated Newton for a convex function of many numbers (Nocedal and Wright, Numerical Optimization, 7.1)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

PRODUCTS = 200  # of the Hessian in one step, at most
HALVINGS = 30
DECREASE = 1e-4  # of Armijo
ROUNDING = 1e-14  # of a value: what is smaller is no increase


class Objective(NamedTuple):
    """A function of points, float64 of any one shape.

    `value`: point -> value (), gradient, and what `product` needs of them.
    `product`: (that, direction) -> Hessian times direction; a few digits are enough.
    `diagonal`: that -> about the diagonal of the Hessian, above zero.
    """

    value: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, Any]]
    product: Callable[[Any, torch.Tensor], torch.Tensor]
    diagonal: Callable[[Any], torch.Tensor]


class Minimum(NamedTuple):
    """Where it ended. `converged`: the largest entry of the gradient is at most the tolerance."""

    point: torch.Tensor
    converged: bool
    steps: int


def minimize(objective: Objective, start: torch.Tensor, tolerance: float, max_steps: int) -> Minimum:
    """Minimizes from `start`, in coordinates in which the Hessian is near the identity at zero."""
    point, (value, gradient, known) = start, objective.value(start)
    for step in range(max_steps):
        if float(gradient.abs().max()) <= tolerance:
            return Minimum(point, True, step)
        direction, length = _direction(objective, known, gradient), 1.0
        slope = float((direction * gradient).sum())
        for _ in range(HALVINGS):
            after = objective.value(point + length * direction)
            if float(after[0] - value) <= DECREASE * length * slope + ROUNDING * abs(float(value)):
                break
            length /= 2
        else:
            return Minimum(point, False, step)
        point, (value, gradient, known) = point + length * direction, after
    return Minimum(point, float(gradient.abs().max()) <= tolerance, max_steps)


def _direction(objective: Objective, known: Any, gradient: torch.Tensor) -> torch.Tensor:
    """Minus the inverse Hessian times the gradient, by conjugate gradients, the nearer to the end the more exact."""
    found, rest = torch.zeros_like(gradient), -gradient
    inverse = 1 / objective.diagonal(known)
    search = inverse * rest
    size = float((rest * search).sum())
    goal = size * min(size**0.5, 0.25)
    for _ in range(PRODUCTS):
        if size <= goal:
            break
        bent = objective.product(known, search)
        length = size / max(float((search * bent).sum()), 1e-300)
        found += length * search
        rest -= length * bent
        scaled = inverse * rest
        before, size = size, float((rest * scaled).sum())
        search = scaled + (size / before) * search
    return found
