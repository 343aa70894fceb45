"""ResNet-101 (He et al., 2016), dilated to output stride 16 as in DeepLabv3 (Chen et al., 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from endauda_cli.models.layers import FeatureExtractor, Features, NormLayer, bottleneck_stage, init_convs

if TYPE_CHECKING:
    from torch import Tensor


class ResNet(FeatureExtractor):
    """Deep features (B, 2048, H/16, W/16), low-level features (B, 256, H/4, W/4).

    The last stage trades its stride for a multi-grid: dilations 2, 4, 8.
    """

    def __init__(self, norm: NormLayer) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = bottleneck_stage(64, 64, [1] * 3, norm)
        self.layer2 = bottleneck_stage(256, 128, [1] * 4, norm, stride=2)
        self.layer3 = bottleneck_stage(512, 256, [1] * 23, norm, stride=2)
        self.layer4 = bottleneck_stage(1024, 512, [2, 4, 8], norm)
        init_convs(self, "fan_out")

    def forward(self, images: Tensor) -> Features:
        x = self.relu(self.bn1(self.conv1(images)))  # (B, 64, H/2, W/2)
        x = self.maxpool(x)  # (B, 64, H/4, W/4)
        low_level = x = self.layer1(x)  # (B, 256, H/4, W/4)
        x = self.layer2(x)  # (B, 512, H/8, W/8)
        x = self.layer3(x)  # (B, 1024, H/16, W/16)
        deep = self.layer4(x)  # (B, 2048, H/16, W/16)
        return Features(deep, low_level)
