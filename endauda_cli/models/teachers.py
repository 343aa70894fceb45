"""The networks of published teachers, key for key: DACS, CRST (MRKLD, LRENT), its CBST, R-MRNet, and the table of all.

These share a trunk, the ResNet-101 that came to domain adaptation with AdaptSegNet (Tsai et al., 2018), and
differ in their heads. DACS: Tranheden et al., 2021. CRST: Zou et al., 2019. R-MRNet: Zheng and Yang, 2021.

Shapes in comments: B batch, C classes, H and W the image's size, h and w that of the features: H/8 and W/8,
rounded up, and one more where the stem's even size is pooled with ``ceil_mode``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from endauda_cli.models.daformer import daformer, segformer
from endauda_cli.models.hrda import hrda
from endauda_cli.models.layers import Bottleneck, init_convs
from endauda_cli.models.tiny_mrnet import TinyMRNet
from endauda_cli.models.wide_resnet import WideResNet38

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DILATIONS = (6, 12, 18, 24)
"""Of the 3x3 branches in every head."""

SYNTHIA_16_OF_19 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
"""Cityscapes' 19 train ids without terrain, truck and train, which SYNTHIA lacks."""


class Trunk(nn.Module):
    """ResNet-101 at output stride 8: images (B, 3, H, W) to what ``layer3`` and ``layer4`` say.

    Against the student's ResNet: each stage's stride lies on the first 1x1 convolution, the pooling rounds up,
    the last two stages are dilated by 2 and 4 without multi-grid, and norm layers keep the affine parameters
    they were loaded with (running statistics still move in train mode).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.layer1 = _stage(64, 64, blocks=3)
        self.layer2 = _stage(256, 128, blocks=4, stride=2)
        self.layer3 = _stage(512, 256, blocks=23, dilation=2)
        self.layer4 = _stage(1024, 512, blocks=3, dilation=4)
        init_convs(self, "fan_out")
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``layer3`` (B, 1024, h, w) and ``layer4`` (B, 2048, h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (B, 64, H/4, W/4)
        middle: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return middle, self.layer4(middle)


def _stage(in_channels: int, width: int, *, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """``blocks`` bottlenecks of one dilation; the first has the stride and always a projection."""
    first = Bottleneck(in_channels, width, nn.BatchNorm2d, stride=stride, dilation=dilation)
    first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    channels = width * Bottleneck.expansion
    others = [Bottleneck(channels, width, nn.BatchNorm2d, dilation=dilation) for _ in range(blocks - 1)]
    return nn.Sequential(first, *others)


# ---------------------------------------------------------------------------- DACS, CRST


class SummedHead(nn.Module):
    """Sum of dilated 3x3 classifiers: (B, 2048, h, w) to logits (B, C, h, w).

    ``counted`` of the four branches are summed. DACS sums two, because its loop returns early; CRST all four. So
    a checkpoint of one fits the other and means something else there.
    """

    def __init__(self, num_classes: int, counted: int) -> None:
        super().__init__()
        self.counted = counted
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(2048, num_classes, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = list(self.conv2d_list)[: self.counted]
        logits: Tensor = branches[0](x)
        for branch in branches[1:]:
            logits = logits + branch(x)
        return logits


class SummedTeacher(Trunk):
    """DACS and CRST: images (B, 3, H, W) to logits (B, C, h, w)."""

    def __init__(self, num_classes: int, counted: int) -> None:
        super().__init__()
        self.layer5 = SummedHead(num_classes, counted)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer5(self.features(images)[1])
        return logits


# ---------------------------------------------------------------------------- R-MRNet


class SqueezeExcitation(nn.Module):
    """Weighs channels by what the whole image says of them (Hu et al., 2018); keeps the shape."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.se = nn.Sequential(
            nn.Linear(channels, channels // reduction),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        weights: Tensor = self.se(self.global_pool(x).flatten(1))  # (B, channels)
        return x * weights[:, :, None, None]


class PyramidHead(nn.Module):
    """Five parallel branches, joined and classified: (B, in_channels, h, w) to logits (B, C, h, w)."""

    def __init__(
        self, in_channels: int, num_classes: int, norm: Callable[[int], nn.Module], *, excite: bool
    ) -> None:
        super().__init__()
        shapes = [(1, 0, 1), *((3, dilation, dilation) for dilation in DILATIONS)]
        self.conv2d_list = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, 256, kernel, padding=padding, dilation=dilation),
                norm(256),
                nn.ReLU(inplace=True),
            )
            for kernel, padding, dilation in shapes
        )
        joined = 256 * len(shapes)
        self.bottleneck = nn.Sequential(
            *([SqueezeExcitation(joined)] if excite else []),
            nn.Conv2d(joined, 512, 3, padding=1),
            norm(512),  # no ReLU after it
        )
        self.head = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(512, num_classes, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([branch(x) for branch in self.conv2d_list], dim=1)  # (B, 1280, h, w)
        logits: Tensor = self.head(self.bottleneck(x))
        return logits


class MRNet(Trunk):
    """R-MRNet: images (B, 3, H, W) to logits (B, C, h, w) of an auxiliary and of the main head.

    ``kept`` are the classes returned, of the ``num_classes`` that the network has: it is published with 19 for
    SYNTHIA too, where the teachers beside it have 16.
    """

    def __init__(
        self,
        num_classes: int,
        norm: Callable[[int], nn.Module],
        *,
        excite: bool,
        kept: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.layer5 = PyramidHead(1024, num_classes, norm, excite=excite)
        self.layer6 = PyramidHead(3072, num_classes, norm, excite=excite)
        self.kept = None if kept is None else list(kept)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        middle, deep = self.features(images)
        auxiliary, main = self.layer5(middle), self.layer6(torch.cat([deep, middle], dim=1))
        if self.kept is not None:
            auxiliary, main = auxiliary[:, self.kept], main[:, self.kept]
        return auxiliary, main


def group_norm(channels: int) -> nn.GroupNorm:
    """R-MRNet's norm as published: 32 groups."""
    return nn.GroupNorm(32, channels)


# ---------------------------------------------------------------------------- the table


def _mrnet(num_classes: int, norm: Callable[[int], nn.Module], excite: bool) -> MRNet:
    """With the 16 classes of SYNTHIA, the published 19 of which 16 are returned."""
    if num_classes == len(SYNTHIA_16_OF_19):
        return MRNet(19, norm, excite=excite, kept=SYNTHIA_16_OF_19)
    return MRNet(num_classes, norm, excite=excite)


TEACHER_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "dacs": partial(SummedTeacher, counted=2),
    "crst": partial(SummedTeacher, counted=4),
    "cbst": partial(
        SummedTeacher, counted=4
    ),  # CRST's project has CBST too, as its case without a regulariser
    "mrnet": partial(_mrnet, norm=group_norm, excite=True),  # as published
    "mrnet-gn": partial(_mrnet, norm=group_norm, excite=False),
    "mrnet-bn": partial(_mrnet, norm=nn.BatchNorm2d, excite=False),
    "mrnet-bn-se": partial(_mrnet, norm=nn.BatchNorm2d, excite=True),
    "mrnet-tiny": TinyMRNet,  # our own, for the demo's world
    "cbst-mxnet": WideResNet38,  # the original CBST
    "daformer": daformer,
    "hrda": hrda,
    "mic": hrda,  # only its training differs
    "segformer": segformer,
}
