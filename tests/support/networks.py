"""Small networks of the kinds that published ones are of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Net(nn.Module):
    """Two heads at an eighth of the size, rounded up, as the published trunks have it."""

    def __init__(self, classes: int = 5, heads: int = 1, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 16, 7, stride=4, padding=3)
        self.heads = nn.ModuleList(nn.Conv2d(16, classes, 5, stride=2, padding=2) for _ in range(heads))
        for head in self.heads:
            assert isinstance(head, nn.Conv2d)
            nn.init.normal_(head.weight, std=1)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = tuple(head(self.stem(images).relu()) for head in self.heads)
        return outputs[0] if len(outputs) == 1 else outputs


def large(x: Tensor, size: Sequence[int], align: bool = True) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align)


def tokenizer(folder: Path) -> Any:
    """One of CLIP in a folder, of letters alone: what a network makes of its tokens is not looked at."""
    from transformers import CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "th", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n")
    return CLIPTokenizer.from_pretrained(folder)
