"""The Mix Transformer encoders of SegFormer, MiT-B0 to B5, key for key (Xie et al., 2021, arXiv 2105.15203).

A pyramid of four stages without position embeddings: convolutions of stride 4, 2, 2, 2 make tokens of the map,
attention looks at keys and values of a coarser one, and a depth-wise convolution in the MLP tells where a token lies.

Shapes in comments: B batch, C channels, H and W the image's size, h and w that of a stage: H/4, then H/8, H/16 and
H/32, rounded up; N = h * w tokens, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from endauda_cli.errors import ConfigError

STAGES = (1, 2, 3, 4)
REDUCTIONS = (8, 4, 2, 1)
"""By which each stage's keys and values are coarser than its queries."""
MLP_RATIO = 4
DROP_PATH = 0.1
"""Of the last block in training; the first has none, and it grows evenly between."""
LEAST_SIDE = 29
"""Of an image: below, the first stage's map is smaller than a step of its reduction."""

# What the published networks were trained with: two kinds of layer norm.
_TOKEN_EPS, _BLOCK_EPS = 1e-5, 1e-6


@dataclass(frozen=True)
class MiTSize:
    """Channels and number of blocks of the four stages. Attention has a head per ``channels[0]`` channels."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


_CHANNELS = (64, 128, 320, 512)
MIT_SIZES = {
    "b0": MiTSize((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": MiTSize(_CHANNELS, (2, 2, 2, 2)),
    "b2": MiTSize(_CHANNELS, (3, 4, 6, 3)),
    "b3": MiTSize(_CHANNELS, (3, 4, 18, 3)),
    "b4": MiTSize(_CHANNELS, (3, 8, 27, 3)),
    "b5": MiTSize(_CHANNELS, (3, 6, 40, 3)),
}


class MiT(nn.Module):
    """Images (B, 3, H, W) to four maps (B, C, h, w), fine to coarse; ConfigError for sides below ``LEAST_SIDE``."""

    def __init__(self, size: MiTSize) -> None:
        super().__init__()
        self.size = size
        drops = torch.linspace(0, DROP_PATH, sum(size.depths), device="cpu").tolist()
        for stage, channels in zip(STAGES, size.channels, strict=True):
            before = 3 if stage == 1 else size.channels[stage - 2]
            self.add_module(f"patch_embed{stage}", PatchEmbedding(before, channels, first=stage == 1))
        for stage, channels, depth in zip(STAGES, size.channels, size.depths, strict=True):
            heads, reduction = channels // size.channels[0], REDUCTIONS[stage - 1]
            blocks = [Block(channels, heads, reduction, drops.pop(0)) for _ in range(depth)]
            self.add_module(f"block{stage}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage}", nn.LayerNorm(channels, eps=_BLOCK_EPS))
        init_transformer(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        if min(images.shape[2:]) < LEAST_SIDE:
            given = f"{images.shape[3]}x{images.shape[2]}"
            raise ConfigError(
                f"the network's encoder was given {given} pixels, but takes {LEAST_SIDE} or more each way (of HRDA's "
                "windows it also sees a copy of half the size); make --size larger"
            )
        x, maps = images, []
        for stage in STAGES:
            tokens, (h, w) = self.get_submodule(f"patch_embed{stage}")(x)
            for block in self.get_submodule(f"block{stage}").children():
                tokens = block(tokens, h, w)
            x = as_map(self.get_submodule(f"norm{stage}")(tokens), h, w)
            maps.append(x)
        return maps


class PatchEmbedding(nn.Module):
    """A map (B, C, h, w) to tokens (B, N, C') of a map a quarter (the image's) or half as large, and its size."""

    def __init__(self, in_channels: int, channels: int, *, first: bool) -> None:
        super().__init__()
        kernel, stride = (7, 4) if first else (3, 2)
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels, eps=_TOKEN_EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(x)
        return self.norm(as_tokens(x)), (x.shape[2], x.shape[3])


class Block(nn.Module):
    """Attention and MLP, each added to what goes in: tokens (B, N, C) to tokens."""

    def __init__(self, channels: int, heads: int, reduction: int, drop: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=_BLOCK_EPS)
        self.attn = Attention(channels, heads, reduction)
        self.drop_path = DropPath(drop)
        self.norm2 = nn.LayerNorm(channels, eps=_BLOCK_EPS)
        self.mlp = MixMLP(channels)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), h, w))
        x = x + self.drop_path(self.mlp(self.norm2(x), h, w))
        return x


class Attention(nn.Module):
    """Every token asks those of a map ``reduction`` times coarser: (B, N, C) to (B, N, C)."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.sr: nn.Conv2d | None = None
        self.norm: nn.LayerNorm | None = None
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, stride=reduction)  # a rest is left out
            self.norm = nn.LayerNorm(channels, eps=_TOKEN_EPS)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        asked = x
        if self.sr is not None and self.norm is not None:
            asked = self.norm(as_tokens(self.sr(as_map(x, h, w))))  # (B, M, C)
        keys, values = self.kv(asked).chunk(2, dim=-1)
        found = F.scaled_dot_product_attention(self._split(self.q(x)), self._split(keys), self._split(values))
        joined: Tensor = self.proj(found.transpose(1, 2).flatten(2))
        return joined

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class MixMLP(nn.Module):
    """Two linear layers with a depth-wise 3x3 convolution of the map between them: (B, N, C) to (B, N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = MLP_RATIO * channels
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = self.act(self.dwconv(self.fc1(x), h, w))
        x = self.fc2(x)
        return x


class DepthwiseConv(nn.Module):
    """3x3, each channel by itself: tokens (B, N, C) to tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        return as_tokens(self.dwconv(as_map(x, h, w)))


class DropPath(nn.Module):
    """In training, all that a block adds to an image is left out with probability ``p``; the rest is scaled up."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * (kept / (1 - self.p))


def as_tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


def as_map(x: Tensor, h: int, w: int) -> Tensor:
    """(B, N, C) to (B, C, h, w), which is ``channels_last`` in memory."""
    return x.transpose(1, 2).view(x.shape[0], x.shape[2], h, w)


def init_transformer(module: nn.Module) -> None:
    """Linear layers normal with deviation 0.02, convolutions by fan out per group; biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
        elif isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=(2 / fan_out) ** 0.5)
        if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)
