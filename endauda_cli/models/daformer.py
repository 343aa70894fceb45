"""DAFormer's network and SegFormer's: a MiT encoder with one of two heads that join its four maps, key for key.

DAFormer: Hoyer et al., 2022 (arXiv 2111.14887). SegFormer: Xie et al., 2021 (arXiv 2105.15203). Every resizing is
bilinear with ``align_corners`` false.

Shapes in comments: B batch, C classes, H and W the image's size, h and w the finest map's: H/4 and W/4, rounded up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from endauda_cli.models.mit import MIT_SIZES, MiT, MiTSize, as_map, as_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 256
"""Channels of DAFormer's head."""
MLP_WIDTH, SMALL_MLP_WIDTH = 768, 256
"""Channels of the all-MLP head; on B0 and B1 the small one."""
DILATIONS = (1, 6, 12, 18)


class EncoderDecoder(nn.Module):
    """Images (B, 3, H, W) to logits (B, C, h, w).

    ``kept`` are the classes returned, of those that the head has: networks for SYNTHIA are published with all 19.
    """

    def __init__(self, backbone: MiT, decode_head: nn.Module, kept: Sequence[int] | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head
        self.kept = None if kept is None else list(kept)

    def forward(self, images: Tensor) -> Tensor:
        return chosen(self.decode_head(self.backbone(images)), self.kept)


def chosen(logits: Tensor, kept: list[int] | None) -> Tensor:
    """Of (B, C, h, w) the classes that are returned."""
    return logits if kept is None else logits[:, kept]


class ConvNormReLU(nn.Module):
    """Convolution of odd kernel that keeps the size, batch norm, ReLU."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, *, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d if groups == 1 else DepthwiseConv
        self.conv = conv(
            in_channels, channels, kernel, padding=padding, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(channels)
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activate(self.bn(self.conv(x)))
        return x


class DepthwiseConv(nn.Conv2d):
    """Dilated, each channel by itself; on a CPU channel by channel in memory, or it takes seven times as long."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        # With one input channel both layouts describe a weight: strides must say the plain one.
        weight = self.weight.flatten(1).view(self.weight.shape)
        return F.conv2d(x.contiguous(), weight, None, 1, self.padding, self.dilation, self.groups)


class SeparableConv(nn.Module):
    """A dilated 3x3 per channel, then a 1x1 over channels; norm and ReLU after both."""

    def __init__(self, in_channels: int, channels: int, dilation: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvNormReLU(in_channels, in_channels, 3, dilation=dilation, groups=in_channels)
        self.pointwise_conv = ConvNormReLU(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise_conv(self.depthwise_conv(x))
        return x


class SeparableASPP(nn.Module):
    """Branches of growing dilation, none of which sees the whole image: (B, in, h, w) to (B, out, h, w)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            ConvNormReLU(in_channels, channels, 1)
            if dilation == 1
            else SeparableConv(in_channels, channels, dilation)
            for dilation in DILATIONS
        )
        self.bottleneck = ConvNormReLU(channels * len(DILATIONS), channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bottleneck(torch.cat([branch(x) for branch in self.aspp_modules], dim=1))
        return x


class TokenLinear(nn.Module):
    """A linear layer over each cell of a map: (B, C, h, w) to (B, channels, h, w)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return as_map(self.proj(as_tokens(x)), x.shape[2], x.shape[3])


class DAFormerHead(nn.Module):
    """The encoder's four maps to logits (B, C, h, w).

    ``context`` is the ASPP as published; without it, as in HRDA's scale attention, a 1x1 convolution joins the maps.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, width: int = WIDTH, *, context: bool = True
    ) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(width, num_classes, 1)
        self.dropout = nn.Dropout2d(0.1)
        self.embed_layers = nn.ModuleList(TokenLinear(c, width) for c in channels)
        joined = width * len(channels)
        self.fuse_layer = SeparableASPP(joined, width) if context else ConvNormReLU(joined, width, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.conv_seg(self.dropout(self.fuse_layer(join(self.embed_layers, maps))))
        return logits


class AllMLPHead(nn.Module):
    """SegFormer's: the encoder's four maps to logits (B, C, h, w). ``conv_seg`` is in the files and never used."""

    def __init__(
        self, channels: Sequence[int], num_classes: int, width: int = MLP_WIDTH, unused: int = 128
    ) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(unused, num_classes, 1)
        self.dropout = nn.Dropout2d(0.1)
        self.linear_c = nn.ModuleList(TokenLinear(c, width) for c in channels)
        self.linear_fuse = ConvNormReLU(width * len(channels), width, 1)
        self.linear_pred = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.linear_pred(self.dropout(self.linear_fuse(join(self.linear_c, maps))))
        return logits


def join(layers: nn.ModuleList, maps: Sequence[Tensor]) -> Tensor:
    """Each map through its layer, enlarged to the first one's size, in order: (B, sum of channels, h, w)."""
    size = maps[0].shape[-2:]
    embedded = [layer(x) for layer, x in zip(layers, maps, strict=True)]
    enlarged = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in embedded[1:]]
    return torch.cat([embedded[0], *enlarged], dim=1)


def daformer(
    num_classes: int,
    *,
    size: str | MiTSize = "b5",
    width: int = WIDTH,
    kept: Sequence[int] | None = None,
) -> EncoderDecoder:
    """DAFormer with random weights; ``size`` of the encoder, a key of ``MIT_SIZES`` or the numbers themselves."""
    encoder = MiT(as_size(size))
    return EncoderDecoder(encoder, DAFormerHead(encoder.size.channels, num_classes, width), kept)


def segformer(
    num_classes: int,
    *,
    size: str | MiTSize = "b5",
    width: int | None = None,
    unused: int = 128,
    kept: Sequence[int] | None = None,
) -> EncoderDecoder:
    """SegFormer with random weights, ``size`` as of :func:`daformer`; a head of ``width``, as published if ``None``."""
    encoder = MiT(as_size(size))
    if width is None:
        width = SMALL_MLP_WIDTH if max(encoder.size.depths) == 2 else MLP_WIDTH
    return EncoderDecoder(encoder, AllMLPHead(encoder.size.channels, num_classes, width, unused), kept)


def as_size(size: str | MiTSize) -> MiTSize:
    """The numbers of a size that may be a name. Raises KeyError."""
    return size if isinstance(size, MiTSize) else MIT_SIZES[size]
