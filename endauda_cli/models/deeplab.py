"""DeepLabv3+ and DeepLabv2 on any backbone, as published with EnD-UDA: same keys, same quirks.

DeepLabv3+: Chen et al., Encoder-Decoder with Atrous Separable Convolution, 2018 (here with plain
convolutions). DeepLabv2: Chen et al., DeepLab, 2016. Logits are returned, never probabilities.

Shapes in comments: B batch, C channels or classes, H and W the image's size, h and w that of the
deep features (H and W over the backbone's output stride).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from endauda_cli.models.layers import (
    FeatureExtractor,
    UncountedBatchNorm2d,
    conv_norm_relu,
    init_convs,
    resize,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class Student(nn.Module):
    """A segmentation network: images (B, 3, H, W), normalised floats, to logits (B, C, ...)."""

    trains_norm: ClassVar[bool] = True
    """Whether the optimiser moves the weights and biases of batch norms."""
    encoder_parts: tuple[str, ...] = ("backbone",)
    """Modules of ``network`` that learn at the base rate; empty is all of it."""
    varies: bool = False
    """Whether what its logits depend on may be another at each step."""

    def __init__(self, backbone: FeatureExtractor) -> None:
        super().__init__()
        self.backbone = backbone

    @property
    def network(self) -> nn.Module:
        """What the weights of a checkpoint are of."""
        return self

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor: ...


# ---------------------------------------------------------------------------- DeepLabv3+


class AtrousBranch(nn.Module):
    """One parallel path of ASPP: dilated convolution, norm, ReLU; keeps the size."""

    def __init__(self, in_channels: int, channels: int, *, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.atrous_conv = nn.Conv2d(
            in_channels, channels, kernel, padding=padding, dilation=dilation, bias=False
        )
        self.bn = UncountedBatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.atrous_conv(x)))
        return y


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (B, in_channels, h, w) to (B, channels, h, w).

    The norm of the image-pooling branch sees one value per image and channel. In train mode it
    therefore needs a batch of two or more: torch raises ``ValueError`` for a batch of one.
    """

    def __init__(self, in_channels: int, channels: int, dilations: tuple[int, int, int]) -> None:
        super().__init__()
        near, middle, far = dilations
        self.aspp1 = AtrousBranch(in_channels, channels, kernel=1, dilation=1)
        self.aspp2 = AtrousBranch(in_channels, channels, kernel=3, dilation=near)
        self.aspp3 = AtrousBranch(in_channels, channels, kernel=3, dilation=middle)
        self.aspp4 = AtrousBranch(in_channels, channels, kernel=3, dilation=far)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *conv_norm_relu(in_channels, channels, UncountedBatchNorm2d, kernel=1),
        )
        self.conv1 = nn.Conv2d(5 * channels, channels, 1, bias=False)
        self.bn1 = UncountedBatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        init_convs(self, "fan_in")

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.aspp1(x), self.aspp2(x), self.aspp3(x), self.aspp4(x)]  # (B, channels, h, w)
        pooled = self.global_avg_pool(x).expand_as(branches[0])  # (B, channels, 1, 1) to (B, channels, h, w)
        x = torch.cat([*branches, pooled], dim=1)  # (B, 5 channels, h, w)
        y: Tensor = self.dropout(self.relu(self.bn1(self.conv1(x))))
        return y


class Decoder(nn.Module):
    """Joins ASPP's output (B, in_channels, h, w) with low-level features: logits (B, C, H/4, W/4)."""

    def __init__(
        self,
        in_channels: int,
        low_level_channels: int,
        num_classes: int,
        *,
        channels: int,
        reduced_channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(low_level_channels, reduced_channels, 1, bias=False)
        self.bn1 = UncountedBatchNorm2d(reduced_channels)
        self.relu = nn.ReLU(inplace=True)
        self.last_conv = nn.Sequential(
            *conv_norm_relu(in_channels + reduced_channels, channels, UncountedBatchNorm2d),
            nn.Dropout(0.5),
            *conv_norm_relu(channels, channels, UncountedBatchNorm2d),
            nn.Dropout(0.1),
            nn.Conv2d(channels, num_classes, 1),
        )
        init_convs(self, "fan_in")

    def forward(self, x: Tensor, low_level: Tensor) -> Tensor:
        low_level = self.relu(self.bn1(self.conv1(low_level)))  # (B, reduced_channels, H/4, W/4)
        x = resize(x, low_level.shape[-2:])  # (B, in_channels, H/4, W/4)
        y: Tensor = self.last_conv(torch.cat([x, low_level], dim=1))
        return y


class DeepLabV3Plus(Student):
    """Images (B, 3, H, W) to logits (B, C, H, W). In train mode B must be 2 or more (see ``ASPP``)."""

    def __init__(self, backbone: FeatureExtractor, aspp: ASPP, decoder: Decoder) -> None:
        super().__init__(backbone)
        self.aspp = aspp
        self.decoder = decoder

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        x = self.aspp(features.deep)  # (B, channels, h, w)
        x = self.decoder(x, features.low_level)  # (B, C, H/4, W/4)
        return resize(x, images.shape[-2:])


# ---------------------------------------------------------------------------- DeepLabv2


class AtrousHead(nn.Module):
    """Sum of dilated 3x3 classifiers: (B, in_channels, h, w) to logits (B, C, h, w).

    Only the first two count. The published loop over the four returns in its first round; the
    other two are in every checkpoint, but never influence the output and never get a gradient.
    """

    def __init__(self, in_channels: int, num_classes: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(in_channels, num_classes, 3, padding=dilation, dilation=dilation)
            for dilation in dilations
        )
        for conv in self.conv2d_list:
            assert isinstance(conv, nn.Conv2d)
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2d_list[0](x) + self.conv2d_list[1](x)
        return y


class DeepLabV2(Student):
    """Images (B, 3, H, W) to logits (B, C, h, w); the caller upsamples. Low-level features are ignored."""

    # The published optimiser skips every norm layer: it tests a method for truth, not its result.
    trains_norm = False

    def __init__(self, backbone: FeatureExtractor, head: AtrousHead) -> None:
        super().__init__(backbone)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(images).deep)
        return logits


# ---------------------------------------------------------------------------- what the optimiser sees


class ParameterGroups(NamedTuple):
    """Parameters by learning rate, each tensor once."""

    base: list[nn.Parameter]  # backbone
    tenfold: list[nn.Parameter]  # ASPP and decoder, or head


def parameter_groups(student: Student) -> ParameterGroups:
    """The published split: the backbone (of others, the encoder) at the base learning rate, the rest at ten times that.

    Every parameter that needs a gradient is in one of them, whatever layer it is of; but for those of DeepLabv2's norm
    layers, whose weights and biases keep their values.
    """
    parts = [student.network.get_submodule(part) for part in student.encoder_parts or ("",)]
    backbone = {id(parameter) for part in parts for parameter in part.parameters()}
    kept: set[int] = set()
    if not student.trains_norm:
        norms = (module for module in student.modules() if isinstance(module, nn.BatchNorm2d))
        kept = {id(parameter) for norm in norms for parameter in norm.parameters()}
    trained = [p for p in student.parameters() if p.requires_grad and id(p) not in kept]
    return ParameterGroups(
        base=[parameter for parameter in trained if id(parameter) in backbone],
        tenfold=[parameter for parameter in trained if id(parameter) not in backbone],
    )
