"""Displacement fields: (3, X, Y, Z) float32, in nodes along each axis. What lies at x of the fixed volume lies at
x + field(x) of the moving one.

All is made of operations whose gradients are the same every time on every device.
"""

import torch
from torch.nn import functional

LEAST = 1e-9  # of a determinant, in its logarithm: a folded node has none


def smoothed(values: torch.Tensor, times: int = 1) -> torch.Tensor:
    """Means of 3 x 3 x 3 neighbors of (..., X, Y, Z), edges repeated, `times` over."""
    for axis in (-3, -2, -1) * times:
        length = values.shape[axis]
        wide = torch.cat([values.narrow(axis, 0, 1), values, values.narrow(axis, length - 1, 1)], axis)
        values = (wide.narrow(axis, 0, length) + values + wide.narrow(axis, 2, length)) / 3
    return values


def sampled(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Trilinear values (C, n, m, k) of (C, X, Y, Z) at positions (3, n, m, k) in its nodes; edges are repeated."""
    sides = torch.tensor(values.shape[1:], dtype=values.dtype, device=values.device)
    places = (2 * positions.movedim(0, -1) + 1) / sides - 1
    return functional.grid_sample(
        values[None], places.flip(-1)[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0]


def places(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """(3, X, Y, Z): where every node lies."""
    sides = [torch.arange(side, dtype=like.dtype, device=like.device) for side in shape]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"))


def warped(values: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """`values` (C, X, Y, Z) of the moving volume where the fixed one has its nodes."""
    return sampled(values, places(tuple(field.shape[1:]), field) + field)


def on_nodes(field: torch.Tensor, nodes: tuple[int, int, int]) -> torch.Tensor:
    """A field in cells as one in nodes, trilinear."""
    finer = functional.interpolate(field[None], nodes, mode="trilinear", align_corners=False)[0]
    ratio = [new / old for new, old in zip(nodes, field.shape[1:], strict=True)]
    return finer * torch.tensor(ratio, dtype=field.dtype, device=field.device).view(3, 1, 1, 1)


def consistent(one: torch.Tensor, other: torch.Tensor, rounds: int) -> torch.Tensor:
    """The field from A to B, brought half way to the inverse of that from B to A, and this to that, again and again."""
    for _ in range(rounds):
        one, other = (one - warped(other, one)) / 2, (other - warped(one, other)) / 2
    return one


def determinants(field: torch.Tensor, step: list[float]) -> torch.Tensor:
    """Of the Jacobian of x + field(x) in mm, by central differences, at the edges one-sided: (X, Y, Z) float64."""
    scale = torch.tensor(step, dtype=torch.float64, device=field.device).view(3, 1, 1, 1)
    slopes = torch.stack(torch.gradient(field.double() * scale, spacing=step, dim=(1, 2, 3)))  # (by axis, of axis, ...)
    own = torch.eye(3, dtype=torch.float64, device=field.device)
    return torch.linalg.det(slopes.permute(2, 3, 4, 1, 0) + own)


def roughness(field: torch.Tensor, step: list[float]) -> tuple[float, float]:
    """Standard deviation of the logarithm of the determinants, and the share of nodes where space is folded."""
    found = determinants(field, step)
    return float(found.clamp(min=LEAST).log().std(correction=0)), float((found <= 0).double().mean())
