"""HRDA's network, which MIC's is too: DAFormer at two scales of one window, fused by what it says of them itself.

HRDA: Hoyer et al., 2022 (arXiv 2204.13132). MIC: Hoyer et al., 2023 (arXiv 2212.01322), where only training differs.

Shapes in comments: B batch, C classes, H and W the window's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from endauda_cli.models.daformer import WIDTH, DAFormerHead, as_size, chosen
from endauda_cli.models.mit import MiT, MiTSize
from endauda_cli.transforms import window_starts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CROP = 512
"""Side of a detail crop as published; its neighbours begin half of it apart."""
MULTIPLE = 8
"""Of a window's sides: the context is half as large, its cells four pixels of that."""
_CROPS_AT_ONCE = {"cpu": 1, "cuda": 9}
"""A card wants many at once, a CPU gains nothing and needs the memory for each."""


class TwoScaleHead(nn.Module):
    """One decoder for both scales, and another that says where the finer one is to be believed."""

    def __init__(self, channels: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__()
        self.head = DAFormerHead(channels, num_classes, width)
        self.scale_attention = DAFormerHead(channels, num_classes, width, context=False)


class HRDA(nn.Module):
    """A window (B, 3, H, W), sides multiples of 8, to fused logits (B, C, H/4, W/4).

    The window at half its size gives the context, overlapping crops of it at its own size the details. Neither sees
    beyond the window; the sliding of windows over an image is the procedure's (``segmenter.Windows``).
    """

    def __init__(
        self, encoder: MiT, num_classes: int, width: int, crop: int, kept: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.backbone = encoder
        self.decode_head = TwoScaleHead(encoder.size.channels, num_classes, width)
        self.crop = crop
        self.kept = None if kept is None else list(kept)

    def forward(self, window: Tensor) -> Tensor:
        if window.shape[2] % MULTIPLE or window.shape[3] % MULTIPLE:
            raise ValueError(
                f"a window of {window.shape[3]}x{window.shape[2]}: its sides must be multiples of {MULTIPLE}"
            )
        low, attention = self.context(window)
        high = self.detail(window)
        # The coarse part is weighed before it is enlarged, the attention to the fine one enlarged by itself.
        return chosen(_twice(attention) * high + _twice((1 - attention) * low), self.kept)

    def context(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Of the window at half its size: logits and the attention to details, both (B, C, H/8, W/8)."""
        half = F.interpolate(window, scale_factor=0.5, mode="bilinear", align_corners=False)
        maps = self.backbone(half)
        return self.decode_head.head(maps), self.decode_head.scale_attention(maps).sigmoid()

    def detail(self, window: Tensor) -> Tensor:
        """Of the window at its own size: logits (B, C, H/4, W/4), where crops overlap their mean."""
        height, width = window.shape[2] // 4, window.shape[3] // 4
        total, count = None, window.new_zeros(height, width)
        for (top, left), logits in self.crops(window):
            place = (
                ...,
                slice(top // 4, top // 4 + logits.shape[2]),
                slice(left // 4, left // 4 + logits.shape[3]),
            )
            if total is None:
                dtype = torch.promote_types(logits.dtype, torch.float32)  # also where halves are computed in
                total = logits.new_zeros((*logits.shape[:2], height, width), dtype=dtype)
            total[place] += logits
            count[place] += 1
        assert total is not None
        return total / count

    def crops(self, window: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Row by row, each crop's first row and column and its logits (B, C, crop/4, crop/4)."""
        height, width = (min(self.crop, side) for side in window.shape[2:])
        stride = self.crop // 2
        corners = [
            (top, left)
            for top in window_starts(window.shape[2], self.crop, stride)
            for left in window_starts(window.shape[3], self.crop, stride)
        ]
        step = _CROPS_AT_ONCE.get(window.device.type, 1)
        for first in range(0, len(corners), step):
            some = corners[first : first + step]
            batch = torch.cat([window[:, :, top : top + height, left : left + width] for top, left in some])
            batch = batch.contiguous(memory_format=torch.channels_last)
            logits = self.decode_head.head(self.backbone(batch))
            yield from zip(some, logits.chunk(len(some)), strict=True)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def hrda(
    num_classes: int,
    *,
    size: str | MiTSize = "b5",
    width: int = WIDTH,
    crop: int = CROP,
    kept: Sequence[int] | None = None,
) -> HRDA:
    """HRDA or MIC with random weights, ``size`` as of ``daformer``; ``crop`` is the side of a detail crop."""
    if crop <= 0 or crop % MULTIPLE:
        raise ValueError(f"a detail crop of {crop}: expected a multiple of {MULTIPLE}")
    return HRDA(MiT(as_size(size)), num_classes, width, crop, kept)
