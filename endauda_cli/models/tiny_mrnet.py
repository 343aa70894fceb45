"""A small network of two heads of our own, so that R-MRNet's training can be tried on a CPU in minutes.

It has no published weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from endauda_cli.models.deeplab import ASPP, Decoder
from endauda_cli.models.layers import UncountedBatchNorm2d, conv_norm_relu, init_convs, resize
from endauda_cli.models.tiny import TinyNet

if TYPE_CHECKING:
    from torch import Tensor

    from endauda_cli.models.layers import Features


class MainHead(nn.Module):
    """DeepLabv3+'s, as the demo's student has it: features to logits (B, C, H/4, W/4)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.aspp = ASPP(96, 48, (2, 4, 8))
        self.decoder = Decoder(48, 40, num_classes, channels=48, reduced_channels=16)

    def forward(self, features: Features) -> Tensor:
        logits: Tensor = self.decoder(self.aspp(features.deep), features.low_level)
        return logits


class AuxiliaryHead(nn.Module):
    """A convolution and a classifier on the deep features: features to logits (B, C, H/8, W/8)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = conv_norm_relu(96, 48, UncountedBatchNorm2d)
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(48, num_classes, 1))
        init_convs(self, "fan_in")

    def forward(self, features: Features) -> Tensor:
        logits: Tensor = self.head(self.conv(features.deep))
        return logits


class TinyMRNet(nn.Module):
    """Images (B, 3, H, W) to logits (B, C, H/4, W/4) of an auxiliary and of the main head."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = TinyNet(UncountedBatchNorm2d)
        self.layer5, self.layer6 = AuxiliaryHead(num_classes), MainHead(num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        main: Tensor = self.layer6(features)
        return resize(self.layer5(features), main.shape[-2:]), main
