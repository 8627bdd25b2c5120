"""Vision transformer and projection head, with DINOv2's parameter names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, in_channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        hidden = (4 * width * 2 // 3 + 7) // 8 * 8
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


class LayerScale(nn.Module):
    def __init__(self, width: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, ffn: str, layerscale: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width, layerscale)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = SwiGLU(width) if ffn == "swiglu" else Mlp(width)
        self.ls2 = LayerScale(width, layerscale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Backbone(nn.Module):
    """`interpolation` is "size", "offset" (sampling scale with DINOv2's 0.1) or "antialias"."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        patch_size: int,
        in_channels: int,
        image_size: int,
        ffn: str,
        registers: int = 0,
        layerscale: float = 1e-5,
        interpolation: str = "size",
    ):
        super().__init__()
        self.patch_size, self.grid, self.interpolation = patch_size, image_size // patch_size, interpolation
        self.patch_embed = PatchEmbed(patch_size, in_channels, width)
        self.cls_token = nn.Parameter(1e-6 * torch.randn(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid**2, width))
        self.register_tokens = nn.Parameter(1e-6 * torch.randn(1, registers, width)) if registers else None
        self.blocks = nn.ModuleList(Block(width, heads, ffn, layerscale) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        init_linear(self)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Final-norm tokens (b, 1 + R + N, D): class, registers, patches. Patches under `masks` (b, N) are replaced."""
        x = self.patch_embed(images)
        if masks is not None:
            x = torch.where(masks[..., None], self.mask_token, x)
        b, height, width = x.shape[0], images.shape[2] // self.patch_size, images.shape[3] // self.patch_size
        x = torch.cat([self.cls_token.expand(b, -1, -1), x], dim=1) + self.positions(height, width)
        if self.register_tokens is not None:
            x = torch.cat([x[:, :1], self.register_tokens.expand(b, -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def positions(self, height: int, width: int) -> Tensor:
        """The table of positions for a grid of patches; interpolated in float32, as DINOv2 does."""
        if height == width == self.grid:
            return self.pos_embed
        patches = self.pos_embed[:, 1:].float().unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        if self.interpolation == "offset":
            scale = ((height + 0.1) / self.grid, (width + 0.1) / self.grid)
            patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        else:
            antialias = self.interpolation == "antialias"
            patches = F.interpolate(patches, size=(height, width), mode="bicubic", antialias=antialias)
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2).to(self.pos_embed)], dim=1)


class LastLayer(nn.Module):
    """Weight-normalized: row k is g_k v_k / |v_k|."""

    def __init__(self, bottleneck: int, prototypes: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter((2 * torch.rand(prototypes, bottleneck) - 1) * bottleneck**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True))


class Head(nn.Module):
    """Tokens (n, D) -> prototype scores (n, K)."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int):
        super().__init__()
        layers = [
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        ]
        self.mlp = nn.Sequential(*layers)
        init_linear(self.mlp)
        self.last_layer = LastLayer(bottleneck, prototypes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, eps=1e-12))


def init_linear(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
