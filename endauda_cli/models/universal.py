"""Universal segmenters of transformers (Mask2Former, MaskFormer, OneFormer, EoMT) as scores of classes per pixel.

They say masks, and for each mask a class or none. A pixel's score of a class is the class's probability times the
mask's, summed over all masks, as each family's own ``post_process_semantic_segmentation`` has it; what the scores are
taken for is told in ``segmenter.Softmax``.

Legend of shapes: B batch, Q masks ("queries"), K classes, h and w the masks' grid, H and W the input.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAST = 1e-12
"""A score below this counts as it, where a logarithm is taken."""
_FLOATS = 1 << 25
"""Of masks enlarged at once: all of EoMT's at 1024x1024 would take a gigabyte."""


@dataclass(frozen=True)
class Family:
    """What a family's own processor does after the network, beside the sum.

    Attributes:
        encoder: modules of the network that a head was put on.
        grid: (height, width) that masks are enlarged to before their sigmoid; ``None`` leaves them.
        windows: the network takes squares of one size, in which a larger image is run; masks are enlarged to these.
        task: the network wants to be told what it is to do, in words.
    """

    encoder: tuple[str, ...] = ("model.pixel_level_module.encoder",)
    grid: tuple[int, int] | None = None
    windows: bool = False
    task: bool = False


_ONE_ENCODER = ("embeddings", "layers")
"""EoMT is a plain vision transformer, whose last blocks see the queries too."""

UNIVERSAL: dict[str, Family] = {
    "mask2former": Family(grid=(384, 384)),  # whatever the input's size is
    "maskformer": Family(),
    "oneformer": Family(task=True),
    "eomt": Family(_ONE_ENCODER, windows=True),
    "eomt_dinov3": Family(_ONE_ENCODER, windows=True),
}
"""By transformers' name of the model type."""


class Scores(nn.Module):
    """A universal segmenter as images (B, 3, H, W) to scores (B, K, h, w), or (B, K, H, W) of one with windows.

    While it is trained, to their logarithms (B, K, H, W): a softmax of these is what a pixel's scores are divided by
    their sum, so that every loss of logits is one of the scores.

    Args:
        model: of transformers.
        family: what it is.
        task: tokens (L,) of the task, where it wants some.
    """

    task: Tensor | None

    def __init__(self, model: Any, family: Family, task: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.family = model, family
        self.side = int(model.config.image_size) if family.windows else 0
        self.register_buffer("task", task, persistent=False)
        if family.task:
            model.model.is_training = (
                False  # a folder that was saved in training asks for texts beside the image
            )

    def forward(self, images: Tensor) -> Tensor:
        scores = self._whole(images)
        if not self.training:
            return scores
        if scores.shape[2:] != images.shape[2:]:
            scores = F.interpolate(scores, images.shape[2:], mode="bilinear", align_corners=False)
        return scores.clamp(min=_LEAST).log()

    def _whole(self, images: Tensor) -> Tensor:
        if not self.family.windows or max(images.shape[2:]) <= self.side:
            return self._scores(images)
        total, count = None, images.new_zeros(images.shape[2:])
        for window in windows((images.shape[2], images.shape[3]), self.side):
            scores = self._scores(images[window].contiguous())
            total = scores.new_zeros(*scores.shape[:2], *images.shape[2:]) if total is None else total
            total[window] += scores
            count[window[1:]] += 1
        assert total is not None
        return total / count

    def _scores(self, images: Tensor) -> Tensor:
        told = {} if self.task is None else {"task_inputs": self.task.expand(images.shape[0], -1)}
        output = self.model(pixel_values=images, **told)
        size = (images.shape[2], images.shape[3]) if self.family.windows else self.family.grid
        return semantic_scores(output.class_queries_logits, output.masks_queries_logits, size)


def semantic_scores(classes: Tensor, masks: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Scores (B, K, h, w) of classes: each mask's probability times those of its classes, summed; 0 to Q.

    Args:
        classes: (B, Q, K + 1) logits, the last of "no object".
        masks: (B, Q, h, w) logits.
        size: that masks are enlarged to, bilinearly, before the sigmoid.
    """
    shape = (masks.shape[2], masks.shape[3]) if size is None else size
    with torch.autocast(masks.device.type, enabled=False):
        shares = classes.float().softmax(-1)[..., :-1].transpose(1, 2)  # (B, K, Q)
        scores = shares.new_zeros(*shares.shape[:2], shape[0] * shape[1])
        step = masks.shape[1]
        if not torch.compiler.is_compiling():  # a graph is not made for a number of images
            step = max(1, _FLOATS // (len(masks) * shape[0] * shape[1]))
        for first in range(0, masks.shape[1], step):
            some = masks[:, first : first + step].float()
            if some.shape[2:] != shape:
                some = F.interpolate(some, shape, mode="bilinear", align_corners=False)
            scores.baddbmm_(shares[:, :, first : first + step], some.sigmoid().flatten(2))
    return scores.view(*scores.shape[:2], *shape)


_ASKED = "attn_mask_probs"
"""EoMT's buffer of how often each of its last blocks sees by its masks: 0 in the end of its own training, else 1."""


@contextmanager
def asked_in_numbers(network: nn.Module) -> Iterator[None]:
    """While open, EoMT asks numbers whether a block sees by its masks: no exporter follows what a tensor decides."""
    kept = [
        (module, module._buffers.pop(_ASKED)) for module in network.modules() if _ASKED in module._buffers
    ]
    try:
        for module, value in kept:
            assert value is not None
            setattr(module, _ASKED, value.tolist())
        yield
    finally:
        for module, value in kept:
            delattr(module, _ASKED)
            module._buffers[_ASKED] = value


def windows(size: tuple[int, int], side: int) -> Iterator[tuple[Any, ...]]:
    """Where squares of ``side`` lie in (B, 3, H, W), as many as needed, evenly spread, those at the ends at the edges.

    Along the longer side as EoMT's processor cuts an image whose shorter side it made ``side``; the other side is cut
    in the same way, for inputs of other sizes. Scores are averaged where squares overlap.
    """
    for top in _starts(size[0], side):
        for left in _starts(size[1], side):
            yield (..., slice(top, top + side), slice(left, left + side))


def _starts(length: int, side: int) -> list[int]:
    count = -(-length // side)
    return [i * (length - side) // (count - 1) if count > 1 else 0 for i in range(count)]
