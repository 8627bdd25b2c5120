"""Instance optimization: Adam moves the nodes of one pair until features agree and neighbors move alike.

The numbers are those of ConvexAdam's public code (80 steps at rate 1, smoothness 1.25, three means of neighbors), which
sums squared differences over twelve channels of unit range; here they are summed over channels with a mean square of 1
together. FlexiCT takes 500 steps at rate 6 on every voxel.
"""

import torch

from curia2_jax.curiabench.registration.field import smoothed, warped

STEPS, RATE, SMOOTHNESS, SMOOTHINGS = 80, 1.0, 1.25, 3
# Adam's 1e-8 of a mean over the 96 x 80 x 96 nodes of 192 x 160 x 192 voxels, here of a sum: rounding moves nothing,
# whatever the number of nodes.
EPS = 1e-8 * 96 * 80 * 96


def refined(fixed: torch.Tensor, moving: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Features (C, X, Y, Z) on nodes and a field to begin with -> the field."""
    free = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([free], lr=RATE, eps=EPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(fixed, moving, smoothed(free, SMOOTHINGS)).backward()
        optimizer.step()
    return smoothed(free.detach(), SMOOTHINGS)


def loss(fixed: torch.Tensor, moving: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Squared differences of features, and of the displacements of neighbors (diffusion), summed over nodes."""
    apart = (warped(moving, field) - fixed).square().sum()
    rough = sum(field.diff(dim=axis).square().sum() for axis in (1, 2, 3))
    return apart + SMOOTHNESS / 3 * rough
