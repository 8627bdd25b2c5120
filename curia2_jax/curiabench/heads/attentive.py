"""Attentive pooling over the tokens or slices of a volume: Raidium's block, first self then cross attention.

One learned query reads the sequence, and a linear layer reads the query. Published with Curia (raidium-med/curia,
`AttentionModule` and `Classifier`); what is wrong there can be asked for by name, see `AttentivePool`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from curia2_jax.curiabench.heads.problem import Prediction, one_thread

BASE = 10_000.0  # of the sinusoids
SEEDS = 5
EPOCHS, BATCH, RATE, DECAY = 50, 64, 1e-3, 1e-2  # of AdamW
MIN_STEPS = 400  # small tasks have more epochs
REFERENCE_MOMENTUM, REFERENCE_CLIP, REFERENCE_BATCH = 0.9, 1.0, 256  # the public trainer's


class Sequences(NamedTuple):
    """n volumes as sequences of at most T tokens. `slices`: the number of each token's slice among those chosen."""

    tokens: torch.Tensor  # (n, T, D) float32, padded with zeros
    slices: torch.Tensor  # (n, T) int64
    lengths: torch.Tensor  # (n,) int64

    def rows(self, which: torch.Tensor) -> "Sequences":
        """Some of the volumes."""
        return Sequences(self.tokens[which], self.slices[which], self.lengths[which])


def sequences(volumes: list[np.ndarray], slices: list[np.ndarray]) -> Sequences:
    """Pads volumes of (T_i, D) tokens, of slices (T_i,), to the longest."""
    lengths = torch.tensor([len(one) for one in volumes])
    tokens = torch.zeros(len(volumes), int(lengths.max()), volumes[0].shape[1])
    numbers = torch.zeros(tokens.shape[:2], dtype=torch.int64)
    for row, (one, number) in enumerate(zip(volumes, slices, strict=True)):
        tokens[row, : len(one)], numbers[row, : len(one)] = torch.from_numpy(one), torch.from_numpy(number)
    return Sequences(tokens, numbers, lengths)


def positions(slices: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoids (..., width) of slice numbers (...): sine on even channels and cosine on odd ones."""
    rate = BASE ** (-torch.arange(0, width, 2) / width)
    angle = slices[..., None] * rate.to(slices.device)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)[..., :width]


class AttentivePool(nn.Module):
    """Sequences -> logits (n, K), or one number (n, 1).

    Args:
      recompute_padding: take tokens that are all zero for padding before each block, as the public trainer does. The
        first block's biases make padding nonzero, so that its second one attends to it.
    """

    def __init__(self, width: int, outputs: int, recompute_padding: bool = False):
        super().__init__()
        self.self_attention, self.cross_attention = (
            nn.MultiheadAttention(width, 1, batch_first=True) for _ in range(2)
        )
        self.self_norm, self.cross_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(1, 1, width))
        self.linear = nn.Linear(width, outputs)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self.recompute_padding = recompute_padding

    def forward(self, batch: Sequences) -> torch.Tensor:
        padding = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) >= batch.lengths[:, None]
        placed = batch.tokens + positions(batch.slices, batch.tokens.shape[2])
        tokens = torch.where(padding[..., None], 0, placed)
        told, _ = self.self_attention(tokens, tokens, tokens, key_padding_mask=padding, need_weights=False)
        tokens = self.self_norm(tokens + told)
        if self.recompute_padding:
            padding = (tokens == 0).all(2)
        query = self.query.expand(len(tokens), -1, -1)
        told, _ = self.cross_attention(query, tokens, tokens, key_padding_mask=padding, need_weights=False)
        return self.linear(self.cross_norm(query + told).mean(1))


@one_thread()
def attentive_probe(train: Sequences, targets: np.ndarray, test: Sequences, outputs: int) -> Prediction:
    """Probabilities (m, K), the mean over `SEEDS` heads trained by AdamW under a cosine; or numbers (m,) if K is 1.

    Nothing is chosen, so nothing is chosen on test. `targets` (n,) are class numbers, or floats if `outputs` is 1.
    """
    found, per_epoch = [], -(-len(train.lengths) // BATCH)
    epochs = max(EPOCHS, -(-MIN_STEPS // per_epoch))
    center, scale = (float(targets.mean()), float(targets.std()) or 1.0) if outputs == 1 else (0, 1)
    wanted = _targets((targets - center) / scale, outputs)
    for seed in range(SEEDS):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            pool = AttentivePool(train.tokens.shape[2], outputs).to(train.tokens.device)
            optimizer = torch.optim.AdamW(pool.parameters(), lr=RATE, weight_decay=DECAY)
            _train(pool, train, wanted, optimizer, epochs * per_epoch, epochs, BATCH, clip=None)
        found.append(_answers(pool, test) * scale + center)
    spread = float(np.std(found, axis=0).mean())
    return Prediction(np.mean(found, 0), {"seeds": SEEDS, "epochs": epochs, "spread_over_seeds": spread})


@one_thread()
def reference_probe(
    train: Sequences, targets: np.ndarray, test: Sequences, outputs: int, rate: float, epochs: int, seed: int = 0
) -> Prediction:
    """The public trainer's: SGD of `rate` x batch / 256, clipped to norm 1, and the cosine over n // batch steps an
    epoch, of which there are ceil(n / batch): it rises again at the end. The last weights are used."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pool = AttentivePool(train.tokens.shape[2], outputs, recompute_padding=True).to(train.tokens.device)
        rate *= BATCH / REFERENCE_BATCH
        optimizer = torch.optim.SGD(pool.parameters(), lr=rate, momentum=REFERENCE_MOMENTUM)
        period = max(len(train.lengths) // BATCH, 1) * epochs
        _train(pool, train, _targets(targets, outputs), optimizer, period, epochs, BATCH, REFERENCE_CLIP)
    return Prediction(_answers(pool, test), {"rate": rate, "epochs": epochs, "seed": seed})


def _targets(targets: np.ndarray, outputs: int) -> torch.Tensor:
    return torch.from_numpy(targets.astype(np.float32 if outputs == 1 else np.int64))


def _train(pool, train, targets, optimizer, period, epochs, batch, clip) -> None:
    """Runs all epochs, every sample once in each; `period`: steps until the cosine is at zero."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, period)
    targets = targets.to(train.tokens.device)
    for _ in range(epochs):
        for which in torch.randperm(len(targets)).to(targets.device).split(batch):
            found = pool(train.rows(which))
            wanted = targets[which]
            loss = (
                functional.mse_loss(found[:, 0], wanted)
                if wanted.is_floating_point()
                else functional.cross_entropy(found, wanted)
            )
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(pool.parameters(), clip)
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def _answers(pool: AttentivePool, test: Sequences) -> np.ndarray:
    everyone = torch.arange(len(test.lengths), device=test.tokens.device)
    logits = torch.cat([pool(test.rows(which)) for which in everyone.split(BATCH)]).double()
    return (logits[:, 0] if logits.shape[1] == 1 else logits.softmax(1)).cpu().numpy()
