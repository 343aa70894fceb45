"""DRN-D-54, a dilated residual network (Yu, Koltun and Funkhouser: Dilated Residual Networks, 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.models.layers import (
    FeatureExtractor,
    Features,
    NormLayer,
    bottleneck_stage,
    conv_norm_relu,
    init_convs,
)

if TYPE_CHECKING:
    from torch import Tensor


class DRN(FeatureExtractor):
    """Deep features (B, 512, H/8, W/8), low-level features (B, 256, H/4, W/4).

    Strides instead of a max pool, and two plain stages at the end that smooth the gridding of
    the dilated ones. The output stride is 8 by construction.
    """

    def __init__(self, norm: NormLayer) -> None:
        super().__init__()
        self.layer0 = conv_norm_relu(3, 16, norm, kernel=7)
        self.layer1 = conv_norm_relu(16, 16, norm)
        self.layer2 = conv_norm_relu(16, 32, norm, stride=2)
        self.layer3 = bottleneck_stage(32, 64, [1] * 3, norm, stride=2)
        self.layer4 = bottleneck_stage(256, 128, [1] * 4, norm, stride=2)
        self.layer5 = bottleneck_stage(512, 256, [2] * 6, norm)
        self.layer6 = bottleneck_stage(1024, 512, [4] * 3, norm)
        self.layer7 = conv_norm_relu(2048, 512, norm, dilation=2)
        self.layer8 = conv_norm_relu(512, 512, norm)
        init_convs(self, "fan_out")

    def forward(self, images: Tensor) -> Features:
        x = self.layer0(images)  # (B, 16, H, W)
        x = self.layer1(x)
        x = self.layer2(x)  # (B, 32, H/2, W/2)
        low_level = x = self.layer3(x)  # (B, 256, H/4, W/4)
        x = self.layer4(x)  # (B, 512, H/8, W/8)
        x = self.layer5(x)  # (B, 1024, H/8, W/8)
        x = self.layer6(x)  # (B, 2048, H/8, W/8)
        x = self.layer7(x)  # (B, 512, H/8, W/8)
        deep = self.layer8(x)
        return Features(deep, low_level)
