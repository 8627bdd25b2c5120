"""Teacher targets and losses, each as its formula reads."""

import torch
import torch.nn.functional as F
from torch import Tensor

STUDENT_TEMP = 0.1


def softmax_centering(logits: Tensor, center: Tensor, temp: float) -> Tensor:
    return ((logits - center) / temp).softmax(-1)


def sinkhorn_knopp(logits: Tensor, temp: float, iterations: int = 3) -> Tensor:
    """(rows, K) -> assignment of every row to the prototypes, the prototypes used evenly (SwAV, arXiv 2006.09882)."""
    q = logits / temp
    q = (q - q.max()).exp()  # one constant for all: nothing else commutes with a finite number of iterations
    rows, prototypes = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(0, keepdim=True) * prototypes
        q /= q.sum(1, keepdim=True) * rows
    return q * rows


def dino(teacher: Tensor, student_global: Tensor, student_local: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of all (teacher view, student crop) pairs but equal global views: (local part, global part).

    teacher (2B, K) probabilities, student_global (2B, K) and student_local (L B, K) scores, all view-major.
    """
    num_local = student_local.shape[0] // images
    pairs = 2 + max(2 * num_local, 1)
    both = teacher.view(2, images, -1)
    local = (student_local / STUDENT_TEMP).log_softmax(-1).view(num_local, images, -1)
    loss_local = -(both.sum(0) * local.sum(0)).sum() / (images * pairs)
    crossed = (student_global / STUDENT_TEMP).log_softmax(-1).view(2, images, -1)
    loss_global = -(both.flip(0) * crossed).sum() / (images * pairs)
    return loss_local, loss_global


def ibot(teacher: Tensor, student: Tensor, masks: Tensor) -> Tensor:
    """teacher (M, K) probabilities and student (M, K) scores of the masked patches, in the order of masks (2B, N)."""
    weights = (1 / masks.sum(1, keepdim=True).clamp(min=1).to(student.dtype)).expand(masks.shape)[masks]
    per_patch = -(teacher * (student / STUDENT_TEMP).log_softmax(-1)).sum(-1)
    return (weights * per_patch).sum() / masks.shape[0]


def koleo(x: Tensor) -> Tensor:
    """Minus the mean log distance of unit vectors (n, D) to their nearest neighbors (arXiv 1806.03198)."""
    x = F.normalize(x, dim=-1, eps=1e-8)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
    return -((x - x[nearest] + 1e-8).norm(dim=-1) + 1e-8).log().mean()


def sigreg(z: Tensor, directions: Tensor, t_max: float = 3.0, knots: int = 17) -> Tensor:
    """Epps-Pulley statistic of (N, D) along unit directions (D, M), mean over directions (LeJEPA)."""
    t = torch.linspace(0, t_max, knots, dtype=z.dtype)
    phi = (-t.square() / 2).exp()
    weights = torch.full_like(t, 2 * t_max / (knots - 1))
    weights[[0, -1]] /= 2
    phase = (z @ directions)[..., None] * t
    distance = (phase.cos().mean(0) - phi).square() + phase.sin().mean(0).square()
    return z.shape[0] * (distance @ (weights * phi)).mean()
