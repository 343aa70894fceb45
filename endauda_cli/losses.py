"""Kernels: the distillation loss of EnD-UDA (arXiv 2104.14203): class balance, often balance, hard labels.

Legend of shapes: B batch, C class, H, W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from endauda_cli.domains import IGNORE

if TYPE_CHECKING:
    from collections.abc import Callable


class Ranks(NamedTuple):
    """What joins processes that share a batch, each with an equal part of its images."""

    size: int
    """How many there are."""
    sum: Callable[[Tensor], Tensor]
    """A tensor's sum over them."""
    gather: Callable[[Tensor], Tensor]
    """Their tensors (N,) in a row, (size * N,)."""


class Mining(NamedTuple):
    """What hard-label mining did in a step."""

    threshold: Tensor
    """The percentile of the weighted per-pixel losses; pixels below it are dropped. Scalar float32."""
    kept: Tensor
    """How many pixels of the batch took part in the loss. Scalar int64."""
    pixels: int
    """Of the batch."""


class DistillationLoss(nn.Module):
    """Weighted cross entropy on the hardest pixels of fused labels.

    The class weights follow the batch: a class with fewer than ``balance_area`` pixels per image weighs
    ``max_value``; with often balance, a class missing from the batch is remembered in a moving average
    (factor 0.9) that multiplies its weight. Hard-label mining keeps the pixels whose weighted loss is at
    or above the ``hard_percentile`` of *all* pixels of the batch, unlabelled ones (loss 0) included. Both
    weights are buffers: they belong to the state of a run.

    Several processes that share a batch see one loss: counts, percentile and normaliser are those of the whole batch.
    Nothing here waits for the device, and nothing depends on values, so the loss can be traced.

    Args:
        num_classes: C.
        class_balance: weigh rare classes of the batch.
        often_balance: weigh classes that batches often lack (only with ``class_balance``).
        hard_percentile: 0..100; 0 keeps all pixels.
        max_value: the weight of rare classes.
        balance_area: pixels per image below which a class is rare (the reference's 64 x 64 suits its crop
            of 512 x 256, of which it is 1/32).
    """

    often_weight: Tensor
    class_weight: Tensor

    def __init__(
        self,
        num_classes: int,
        class_balance: bool = False,
        often_balance: bool = False,
        hard_percentile: float = 80,
        max_value: float = 7.0,
        balance_area: int = 64 * 64,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_balance = class_balance
        self.often_balance = often_balance
        self.hard_percentile = hard_percentile
        self.max_value = max_value
        self.balance_area = balance_area
        self.ranks: Ranks | None = None
        """Those that share the batch; ``None`` on one device."""
        self.strength = 1.0
        """0..1, of mining and of the class weights: 0 is the plain cross entropy."""
        self.mining: Mining | None = None
        """What the last call dropped, for logs and tests."""
        self.register_buffer("often_weight", torch.ones(num_classes))
        self.register_buffer("class_weight", torch.ones(num_classes))

    def forward(self, logits: Tensor, labels: Tensor, certainty: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            logits: (B, C, h, w), resized to the labels' size if they differ (bilinear, align_corners).
            labels: (B, H, W) integer train ids, 255 = none.
            certainty: (B, H, W), 0..1: multiplies each pixel's loss, also before mining; ``None`` is 1.

        Returns:
            The mean over the kept pixels, weighted. NaN if every pixel is unlabelled, as in the reference: a caller
            that trains skips such a batch. Of several ranks each has its own pixels' part, times their number: its mean
            over the ranks is the loss of the batch, and so with gradients.
        """
        logits = logits.float()  # the loss stays in float32 under autocast
        labels = labels.long()
        if logits.shape[-2:] != labels.shape[-2:]:
            logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=True)
        if self.class_balance:
            self.update_weights(labels)
        class_weight = self.class_weight
        if self.strength < 1:
            class_weight = 1 + self.strength * (class_weight - 1)
        loss_BHW = F.cross_entropy(logits, labels, weight=class_weight, ignore_index=IGNORE, reduction="none")
        if certainty is not None:
            loss_BHW = loss_BHW * certainty
        labelled_BHW = labels != IGNORE
        kept_BHW = labelled_BHW
        threshold = loss_BHW.new_zeros(())
        if self.hard_percentile * self.strength > 0:
            every = loss_BHW.detach()
            if self.ranks is not None:
                every = self.ranks.gather(every.flatten())
            threshold = percentile(every, self.hard_percentile * self.strength)
            kept_BHW = labelled_BHW & (loss_BHW.detach() >= threshold)
        weight_BHW = class_weight[labels.clamp(max=self.num_classes - 1)]
        kept, normaliser = kept_BHW.sum(), (weight_BHW * kept_BHW).sum()
        loss = (loss_BHW * kept_BHW).sum()
        if self.ranks is not None:
            kept, normaliser = self.ranks.sum(kept), self.ranks.sum(normaliser) / self.ranks.size
        size = 1 if self.ranks is None else self.ranks.size
        self.mining = Mining(threshold, kept, labels.numel() * size)
        return loss / normaliser

    @torch.no_grad()
    def update_weights(self, labels: Tensor) -> None:
        """Let the class weights follow a batch: (B, H, W) int64 train ids, of this rank."""
        counts, images = count_classes(labels, self.num_classes), labels.shape[0]
        if self.ranks is not None:
            counts, images = self.ranks.sum(counts), images * self.ranks.size
        one = torch.ones_like(self.class_weight)
        rare = torch.where(counts < self.balance_area * images, self.max_value * one, one)
        self.often_weight.mul_(0.9)
        if self.often_balance:
            absent = torch.where(counts == 0, self.max_value * one, one)
            self.often_weight.add_(0.1 * absent)
        else:
            self.often_weight.add_(0.1)
        self.class_weight.copy_(rare * self.often_weight)


def count_classes(labels: Tensor, num_classes: int) -> Tensor:
    """How many pixels each class has: (C,) int64, on the labels' device and without waiting for it.

    Args:
        labels: int64 train ids, any shape; other values are not counted.
        num_classes: C.
    """
    if labels.device.type == "cpu":
        return torch.bincount(labels.flatten(), minlength=IGNORE + 1)[:num_classes]
    # torch.bincount asks the device how many there are.
    return torch.stack([(labels == id).sum() for id in range(num_classes)])


TRUE = 255
"""In place of a certainty in percent: this image's labels are true."""
_LEAST = 1e-6


def soft_divergence(logits: Tensor, certainty: Tensor) -> Tensor:
    """Divergence of the student from its teachers' mean certainty, as the follow-up of EnD-UDA has it: a scalar.

    Args:
        logits: (B, C, h, w), resized to the certainty's size if they differ (bilinear, align_corners).
        certainty: (B, C, H, W) float32, 0..1; need not sum to 1. A pixel of which it is 0 everywhere teaches nothing.

    Returns:
        The mean over all elements of q (ln q - ln(p + 1e-6)), where 0 ln 0 = 0.
    """
    logits = logits.float()
    if logits.shape[-2:] != certainty.shape[-2:]:
        logits = F.interpolate(logits, certainty.shape[-2:], mode="bilinear", align_corners=True)
    student = logits.softmax(1) + _LEAST
    return (torch.xlogy(certainty, certainty) - certainty * student.log()).mean()


def soft_targets(percent: Tensor, labels: Tensor) -> Tensor:
    """What :func:`soft_divergence` compares with, at the labels' size: (B, C, H, W) float32, 0..1.

    Args:
        percent: (B, C, h, w) uint8 mean certainties, which are enlarged; an image of ``TRUE`` takes its labels.
        labels: (B, H, W) integer train ids, 255 = none.
    """
    soft = F.interpolate(percent.float() / 100, labels.shape[-2:], mode="bilinear", align_corners=False)
    classes = torch.arange(percent.shape[1], device=labels.device)
    hard = (labels[:, None] == classes[:, None, None]).to(soft.dtype)
    return torch.where(percent[:, :1, :1, :1] == TRUE, hard, soft)


def percentile(values: Tensor, percent: float) -> Tensor:
    """The percentile of all values with linear interpolation: ``numpy.percentile`` on float32, on any device.

    ``torch.quantile`` refuses more than 16 M values, which a batch at full size has.

    Args:
        values: float32, any shape, at least one value.
        percent: 0..100.

    Returns:
        A scalar of the values' dtype and device.
    """
    flat = values.flatten()
    # NumPy computes the rank in the dtype of the data; float32 here too, so that mining agrees with it.
    rank = np.float32(flat.numel() - 1) * (np.float32(percent) / np.float32(100))
    below = int(np.floor(rank))
    share = float(rank - np.float32(below))
    above = min(below + 1, flat.numel() - 1)
    if flat.device.type == "cpu":  # where two selections are faster than sorting
        low, high = (flat.kthvalue(place + 1).values for place in (below, above))
    else:
        ordered = flat.sort().values
        low, high = ordered[below], ordered[above]
    step = high - low
    return high - step * (1 - share) if share >= 0.5 else low + step * share
