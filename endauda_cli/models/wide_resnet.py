"""ResNet-38, the wide network of the original CBST: model A1 of Wu et al., Wider or Deeper, 2016.

Pre-activation residual blocks on few and wide stages, output stride 8. Modules are called what the published MXNet
files call their layers, so that a file's names need no table.

Shapes in comments: B batch, C classes, H and W the image's size, h and w an eighth of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

STEM_CHANNELS = 64
HEAD_CHANNELS = 512
HEAD_DILATION = 12


class Conv(NamedTuple):
    """A convolution of a block's residual branch; the padding keeps the size at stride 1."""

    channels: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1


class Unit(NamedTuple):
    """A residual block; ``projected`` ones widen or shrink and so have a convolution on their shortcut."""

    name: str
    convs: tuple[Conv, ...]
    projected: bool


def _plain(
    stage: int, blocks: int, widths: tuple[int, int], *, stride: int = 1, dilation: int = 1
) -> list[Unit]:
    """A stage of 3x3 pairs: its first block has the stride, and dilates from its second convolution on."""
    near, far = widths
    first = Unit(f"{stage}a", (Conv(near, stride=stride), Conv(far, dilation=dilation)), True)
    rest = (Conv(near, dilation=dilation), Conv(far, dilation=dilation))
    return [first, *(Unit(f"{stage}b{i}", rest, False) for i in range(1, blocks))]


def _waist(stage: int, widths: tuple[int, int, int], dilation: int) -> Unit:
    """A single block 1x1, 3x3, 1x1."""
    narrow, middle, wide = widths
    return Unit(f"{stage}a", (Conv(narrow, 1), Conv(middle, dilation=dilation), Conv(wide, 1)), True)


UNITS: tuple[Unit, ...] = (
    *_plain(2, 3, (128, 128), stride=2),
    *_plain(3, 3, (256, 256), stride=2),
    *_plain(4, 6, (512, 512), stride=2),
    *_plain(5, 3, (512, 1024), dilation=2),
    _waist(6, (512, 1024, 2048), dilation=4),
    _waist(7, (1024, 2048, 4096), dilation=4),
)


class WideResNet38(nn.Module):
    """Images (B, 3, H, W), sides multiples of 8, to logits (B, C, h, w). Dropout is left out: it only trains."""

    def __init__(self, num_classes: int, units: Sequence[Unit] = UNITS) -> None:
        super().__init__()
        self._units = tuple(units)
        self.conv1a = nn.Conv2d(3, STEM_CHANNELS, 3, padding=1, bias=False)
        channels = STEM_CHANNELS
        for unit in self._units:
            into = channels
            for suffix, conv in zip(_suffixes(unit), unit.convs, strict=True):
                self.add_module(f"bn{unit.name}_{suffix}", nn.BatchNorm2d(into))
                self.add_module(f"res{unit.name}_{suffix}", _convolution(into, conv))
                into = conv.channels
            if unit.projected:
                self.add_module(
                    f"res{unit.name}_branch1", _convolution(channels, Conv(into, 1, unit.convs[0].stride))
                )
            channels = into
        self.bn7 = nn.BatchNorm2d(channels)
        self.conv6a = nn.Conv2d(channels, HEAD_CHANNELS, 3, padding=HEAD_DILATION, dilation=HEAD_DILATION)
        self.linear = nn.Conv2d(HEAD_CHANNELS, num_classes, 3, padding=HEAD_DILATION, dilation=HEAD_DILATION)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.conv1a(images)  # (B, 64, H, W)
        for unit in self._units:
            x = self._block(unit, x)
        x = self.relu(self.bn7(x))  # (B, 4096, h, w)
        logits: Tensor = self.linear(self.relu(self.conv6a(x)))
        return logits

    def _block(self, unit: Unit, x: Tensor) -> Tensor:
        shortcut = branch = x
        for position, suffix in enumerate(_suffixes(unit)):
            branch = self.relu(self.get_submodule(f"bn{unit.name}_{suffix}")(branch))
            if position == 0 and unit.projected:
                shortcut = self.get_submodule(f"res{unit.name}_branch1")(branch)
            branch = self.get_submodule(f"res{unit.name}_{suffix}")(branch)
        return shortcut + branch


def _suffixes(unit: Unit) -> list[str]:
    return ["branch2a", *(f"branch2b{i}" for i in range(1, len(unit.convs)))]


def _convolution(in_channels: int, conv: Conv) -> nn.Conv2d:
    padding = conv.dilation * (conv.kernel // 2)
    return nn.Conv2d(in_channels, conv.channels, conv.kernel, conv.stride, padding, conv.dilation, bias=False)
