"""Truncated Newton for many convex problems of one shape at once (Nocedal and Wright, Numerical Optimization, 7.1).

Each problem has its own step length and stops by itself, so that it costs about what it would cost alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

PRODUCTS = 200  # of the Hessian in one step, at most
HALVINGS = 30
DECREASE = 1e-4  # of Armijo
ROUNDING = 1e-14  # of a value: what is smaller is no increase


class Objective(NamedTuple):
    """B functions of P numbers.

    `value`: (points (b, P), which (b,) of B) -> values (b,), gradients (b, P), and what `product` needs of them.
    `product`: (that, rows (c,) of b, directions (c, P), which (c,) of B) -> Hessians times directions (c, P).
    `diagonal`: (that, rows (c,) of b, which (c,) of B) -> about the diagonals of the Hessians (c, P), above zero.
    """

    value: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, Any]]
    product: Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    diagonal: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


class Minimum(NamedTuple):
    """Where B problems ended. `converged`: the largest entry of the gradient is at most the tolerance."""

    points: torch.Tensor  # (B, P)
    converged: torch.Tensor  # (B,) bool
    steps: int  # of the slowest


def minimize(objective: Objective, start: torch.Tensor, tolerance: float, max_steps: int) -> Minimum:
    """Minimizes from `start` (B, P) float64, in coordinates in which the Hessian is near the identity there."""
    points, everyone = start.clone(), torch.arange(len(start), device=start.device)
    sizes = torch.full_like(start[:, 0], torch.inf)
    active, steps = everyone, 0
    while len(active) and steps <= max_steps:
        values, gradients, known = objective.value(points[active], active)
        sizes[active] = gradients.abs().amax(1)
        left = torch.nonzero(sizes[active] > tolerance)[:, 0]
        if not len(left) or steps == max_steps:
            break
        which = active[left]
        direction = _direction(objective, known, left, gradients[left], which)
        moved, found = _search(objective, points[which], values[left], gradients[left], direction, which)
        points[which] = moved
        active, steps = which[found], steps + 1
    return Minimum(points, sizes <= tolerance, steps)


def _direction(objective: Objective, known, left: torch.Tensor, gradients: torch.Tensor, which: torch.Tensor):
    """Minus the inverse Hessian times the gradient, by conjugate gradients, the nearer to the end the more exact."""
    found, rest = torch.zeros_like(gradients), -gradients
    inverse = 1 / objective.diagonal(known, left, which)
    search = inverse * rest
    size = (rest * search).sum(1)
    goal = size * torch.clamp(size.sqrt(), max=0.25)
    for _ in range(PRODUCTS):
        rows = torch.nonzero(size > goal)[:, 0]
        if not len(rows):
            break
        bent = objective.product(known, left[rows], search[rows], which[rows])
        length = (size[rows] / (search[rows] * bent).sum(1).clamp(min=1e-300))[:, None]
        found[rows] += length * search[rows]
        rest[rows] -= length * bent
        scaled = inverse[rows] * rest[rows]
        after = (rest[rows] * scaled).sum(1)
        search[rows] = scaled + (after / size[rows])[:, None] * search[rows]
        size[rows] = after
    return found


def _search(objective: Objective, points, values, gradients, direction, which):
    """Halves the step of each problem until its value falls enough; one that never does stays where it was."""
    slope = (direction * gradients).sum(1)
    moved, found = points.clone(), torch.zeros_like(values, dtype=torch.bool)
    waiting, length = torch.arange(len(points), device=points.device), 1.0
    for _ in range(HALVINGS):
        tried = points[waiting] + length * direction[waiting]
        value, _, _ = objective.value(tried, which[waiting])
        allowed = values[waiting] + DECREASE * length * slope[waiting] + ROUNDING * values[waiting].abs()
        good = value <= allowed
        moved[waiting[good]] = tried[good]
        found[waiting[good]] = True
        waiting, length = waiting[~good], length / 2
        if not len(waiting):
            break
    return moved, found
