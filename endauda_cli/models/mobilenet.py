"""MobileNetV2 of width 1 (Sandler et al., 2018), dilated to output stride 16."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from endauda_cli.models.layers import FeatureExtractor, Features, NormLayer, init_convs


class _Stage(NamedTuple):
    expansion: int
    channels: int
    blocks: int
    stride: int
    dilation: int


# Table 2 of the paper. To stay at output stride 16 the 160-channel stage gives up its stride;
# published weights were trained with dilation in the last block only.
_STAGES = (
    _Stage(expansion=1, channels=16, blocks=1, stride=1, dilation=1),
    _Stage(expansion=6, channels=24, blocks=2, stride=2, dilation=1),
    _Stage(expansion=6, channels=32, blocks=3, stride=2, dilation=1),
    _Stage(expansion=6, channels=64, blocks=4, stride=2, dilation=1),
    _Stage(expansion=6, channels=96, blocks=3, stride=1, dilation=1),
    _Stage(expansion=6, channels=160, blocks=3, stride=1, dilation=1),
    _Stage(expansion=6, channels=320, blocks=1, stride=1, dilation=2),
)
_STEM_CHANNELS = 32
_LOW_LEVEL_ENTRIES = 4  # the stem and the blocks up to 24 channels


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depth-wise, 1x1 projection; a skip connection where the shapes allow it.

    The block pads its *input*, and no convolution inside pads. So the expansion, its norm and
    ReLU6 run on the zero border too, and the depth-wise convolution sees the norm's constants
    there, not zeros. Published weights depend on it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: NormLayer,
        *,
        expansion: int,
        stride: int,
        dilation: int,
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        self.padding = dilation
        self.has_skip = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(in_channels, width, 1, bias=False), norm(width), nn.ReLU6(inplace=True)]
        layers += [
            nn.Conv2d(width, width, 3, stride, dilation=dilation, groups=width, bias=False),
            norm(width),
            nn.ReLU6(inplace=True),
            nn.Conv2d(width, out_channels, 1, bias=False),
            norm(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, [self.padding] * 4))
        return x + y if self.has_skip else y


class MobileNetV2(FeatureExtractor):
    """Deep features (B, 320, H/16, W/16), low-level features (B, 24, H/4, W/4).

    Every part is registered twice: once in ``features``, once in ``low_level_features`` or
    ``high_level_features``, under its original number. Published checkpoints hold both sets of
    keys; they share storage, so the later one wins when loading.
    """

    def __init__(self, norm: NormLayer) -> None:
        super().__init__()
        stem = nn.Sequential(
            nn.Conv2d(3, _STEM_CHANNELS, 3, stride=2, padding=1, bias=False),
            norm(_STEM_CHANNELS),
            nn.ReLU6(inplace=True),
        )
        entries: list[nn.Module] = [stem]
        in_channels = _STEM_CHANNELS
        for stage in _STAGES:
            for index in range(stage.blocks):
                block = InvertedResidual(
                    in_channels,
                    stage.channels,
                    norm,
                    expansion=stage.expansion,
                    stride=stage.stride if index == 0 else 1,
                    dilation=stage.dilation,
                )
                entries.append(block)
                in_channels = stage.channels
        self.features = nn.Sequential(*entries)
        self.low_level_features = self.features[:_LOW_LEVEL_ENTRIES]
        self.high_level_features = self.features[_LOW_LEVEL_ENTRIES:]
        init_convs(self, "fan_in")

    def forward(self, images: Tensor) -> Features:
        low_level = self.low_level_features(images)  # (B, 24, H/4, W/4)
        deep = self.high_level_features(low_level)  # (B, 320, H/16, W/16)
        return Features(deep, low_level)
