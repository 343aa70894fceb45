"""Layers that several networks share.

Shapes in comments: B batch, C channels, H and W the image's size, h and w the size at this point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

# Makes the norm layer for a number of channels: ``nn.BatchNorm2d`` or ``UncountedBatchNorm2d``.
NormLayer: TypeAlias = Callable[[int], nn.BatchNorm2d]


class Features(NamedTuple):
    """What a backbone returns."""

    deep: Tensor  # (B, C, H / output stride, W / output stride)
    low_level: Tensor  # (B, C, H / 4, W / 4)


class FeatureExtractor(nn.Module):
    """A backbone: images (B, 3, H, W), normalised floats, to ``Features``."""

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Features: ...


class UncountedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that never increments ``num_batches_tracked``.

    The published DeepLabv3+ uses a synchronised norm of its own, which on one device is ordinary
    batch norm but for the counter: it is in every checkpoint, and it is always 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


class UncountedSyncBatchNorm(nn.SyncBatchNorm):
    """The same over several devices."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.sub_(1)
        return y


def synchronised(module: nn.Module) -> nn.Module:
    """The network with its batch norms over all devices; parameters and buffers are the same tensors.

    torch's own conversion makes one kind of them, which counts its batches.
    """
    uncounted = [name for name, child in module.named_modules() if isinstance(child, UncountedBatchNorm2d)]
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    for name in uncounted:
        converted.get_submodule(name).__class__ = UncountedSyncBatchNorm
    return converted


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    norm: NormLayer,
    *,
    kernel: int = 3,
    stride: int = 1,
    dilation: int = 1,
) -> nn.Sequential:
    """Convolution without bias, norm, ReLU; the padding keeps the size at stride 1."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False),
        norm(out_channels),
        nn.ReLU(inplace=True),
    )


class Bottleneck(nn.Module):
    """Residual block 1x1, 3x3, 1x1 with four times ``width`` output channels; the 3x3 has the stride."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, norm: NormLayer, *, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))  # (B, width, h, w)
        x = self.relu(self.bn2(self.conv2(x)))  # (B, width, h / stride, w / stride)
        x = self.bn3(self.conv3(x))  # (B, 4 width, h / stride, w / stride)
        y: Tensor = self.relu(x + shortcut)
        return y


def bottleneck_stage(
    in_channels: int, width: int, dilations: Sequence[int], norm: NormLayer, *, stride: int = 1
) -> nn.Sequential:
    """One ``Bottleneck`` per dilation; the first one has the stride."""
    first, *others = dilations
    blocks = [Bottleneck(in_channels, width, norm, stride=stride, dilation=first)]
    in_channels = width * Bottleneck.expansion
    blocks += [Bottleneck(in_channels, width, norm, dilation=dilation) for dilation in others]
    return nn.Sequential(*blocks)


def init_convs(module: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw every convolution from a normal with standard deviation sqrt(2 / fan) (He et al., 2015).

    Biases keep torch's default, and so do norm layers (weight 1, bias 0).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to ``size`` = (H, W), corner pixels aligned."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def freeze_norms(network: nn.Module) -> None:
    """Let batch norms keep the statistics that they have, until the network is told to train again."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
