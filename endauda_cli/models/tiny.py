"""A small residual network of our own, for the demo and for tests: learns on a CPU in minutes.

It has no published weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from endauda_cli.models.layers import FeatureExtractor, Features, NormLayer, conv_norm_relu, init_convs

if TYPE_CHECKING:
    from torch import Tensor


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions; (B, C, h, w) to the same shape."""

    def __init__(self, channels: int, norm: NormLayer, *, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(x + y)
        return out


class TinyNet(FeatureExtractor):
    """Deep features (B, 96, H/8, W/8), low-level features (B, 40, H/4, W/4)."""

    def __init__(self, norm: NormLayer) -> None:
        super().__init__()
        self.stem = conv_norm_relu(3, 24, norm, stride=2)
        self.layer1 = nn.Sequential(conv_norm_relu(24, 40, norm, stride=2), BasicBlock(40, norm))
        self.layer2 = nn.Sequential(conv_norm_relu(40, 96, norm, stride=2), BasicBlock(96, norm, dilation=2))
        init_convs(self, "fan_in")

    def forward(self, images: Tensor) -> Features:
        x = self.stem(images)  # (B, 24, H/2, W/2)
        low_level = self.layer1(x)  # (B, 40, H/4, W/4)
        deep = self.layer2(low_level)  # (B, 96, H/8, W/8)
        return Features(deep, low_level)
