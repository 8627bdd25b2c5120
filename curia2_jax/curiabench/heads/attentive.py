"""Attentive pooling over the tokens or slices of a volume: Raidium's block, first self then cross attention.

One learned query reads the sequence, and a linear layer reads the query. Published with Curia (raidium-med/curia,
`AttentionModule` and `Classifier`). There the second block takes tokens that are all zero for padding, which no token
is after the first; here padding is what lies behind the length of a volume, in both, unless `reads_padding`.
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


class Sequences(NamedTuple):
    """n volumes as sequences of at most T tokens. `slices`: the number of each token's slice among those chosen."""

    tokens: torch.Tensor  # (n, T, D) float32, padded with zeros
    slices: torch.Tensor  # (n, T) int64
    lengths: torch.Tensor  # (n,) int64

    def to(self, device: torch.device | str) -> "Sequences":
        """All of it on a device."""
        return Sequences(*(one.to(device) for one in self))

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
    """Sequences -> logits (n, K), or one number (n, 1)."""

    def __init__(self, width: int, outputs: int, reads_padding: bool = False):
        super().__init__()
        self.reads_padding = reads_padding
        self.self_attention, self.cross_attention = (
            nn.MultiheadAttention(width, 1, batch_first=True) for _ in range(2)
        )
        self.self_norm, self.cross_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(1, 1, width))
        self.linear = nn.Linear(width, outputs)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch: Sequences) -> torch.Tensor:
        padding = torch.arange(batch.tokens.shape[1], device=batch.tokens.device) >= batch.lengths[:, None]
        placed = batch.tokens + positions(batch.slices, batch.tokens.shape[2])
        tokens = torch.where(padding[..., None], 0, placed)
        told, _ = self.self_attention(tokens, tokens, tokens, key_padding_mask=padding, need_weights=False)
        tokens = self.self_norm(tokens + told)
        if self.reads_padding:
            padding = (tokens == 0).all(2)
        query = self.query.expand(len(tokens), -1, -1)
        told, _ = self.cross_attention(query, tokens, tokens, key_padding_mask=padding, need_weights=False)
        return self.linear(self.cross_norm(query + told).mean(1))


@one_thread()
def attentive_probe(
    train: Sequences, targets: np.ndarray, test: Sequences, outputs: int, reads_padding: bool = False
) -> Prediction:
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
            pool = AttentivePool(train.tokens.shape[2], outputs, reads_padding).to(train.tokens.device)
            optimizer = torch.optim.AdamW(pool.parameters(), lr=RATE, weight_decay=DECAY)
            _train(pool, train, wanted, optimizer, epochs)
        found.append(_answers(pool, test) * scale + center)
    spread = float(np.std(found, axis=0).mean())
    return Prediction(np.mean(found, 0), {"seeds": SEEDS, "epochs": epochs, "spread_over_seeds": spread})


def _targets(targets: np.ndarray, outputs: int) -> torch.Tensor:
    return torch.from_numpy(targets.astype(np.float32 if outputs == 1 else np.int64))


def _train(pool: AttentivePool, train: Sequences, targets: torch.Tensor, optimizer, epochs: int) -> None:
    """Runs all epochs, every sample once in each, under one cosine."""
    steps = -(-len(targets) // BATCH) * epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    targets = targets.to(train.tokens.device)
    for _ in range(epochs):
        for which in torch.randperm(len(targets)).to(targets.device).split(BATCH):
            found = pool(train.rows(which))
            wanted = targets[which]
            loss = (
                functional.mse_loss(found[:, 0], wanted)
                if wanted.is_floating_point()
                else functional.cross_entropy(found, wanted)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def _answers(pool: AttentivePool, test: Sequences) -> np.ndarray:
    everyone = torch.arange(len(test.lengths), device=test.tokens.device)
    logits = torch.cat([pool(test.rows(which)) for which in everyone.split(BATCH)]).double()
    return (logits[:, 0] if logits.shape[1] == 1 else logits.softmax(1)).cpu().numpy()
