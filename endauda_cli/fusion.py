"""Kernels: how the label maps and certainties of several teachers become one label map.

Legend of shapes: T teacher, C class, H, W. Labels are uint8 train ids, 255 = none; certainties are percent,
uint8 0..100 (or float32 once renormalised). All ties go to the lowest class. Source of the rules: EnD-UDA
(arXiv 2104.14203) and its published code, whose results these kernels reproduce bit by bit.

A certainty is asked for plane by plane, ``plane(t, c) -> (H, W)``, because a rule may need few of them:
PLF asks only for those of classes that win a pixel, each from the teacher that owns the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from endauda_cli.consensus import Consensus, fuse_image
from endauda_cli.domains import IGNORE
from endauda_cli.types import FusionRule

if TYPE_CHECKING:
    from torch import Tensor

Planes = Callable[[int, int], "Tensor"]
"""``plane(t, c)``: the certainty (H, W) of class c by teacher t."""


class Fused(NamedTuple):
    """A fused image."""

    label: Tensor
    """(H, W) uint8 train ids, 255 where no label was kept."""
    candidate: Tensor
    """(H, W) uint8, the label before the threshold."""
    claims: Tensor
    """(H, W) uint8, how many classes (PLF: by their owners; else: by any teacher) claim the pixel."""


def plf(
    labels: Tensor, plane: Planes, owner: Tensor, *, window: tuple[int, int] = (5, 5), threshold: float = 90
) -> Fused:
    """Pixel-wise label fusion: every class is taken from the teacher that owns it.

    A pixel claimed by exactly one class gets it. Where several claim it, or none, the class with the
    largest share of claims in the window around it wins (class 0 if there are none). The label is kept
    where the owner's certainty, averaged over the window in the second case, reaches the threshold.
    The window counts its padding with zeros, as published, so labels near the border are kept less often.

    Args:
        labels: (T, H, W) uint8.
        plane: certainties, see above.
        owner: (C,) int64, the teacher that owns each class.
        window: (height, width), both odd.
        threshold: percent; 0 keeps every pixel.
    """
    num_teachers, num_classes = labels.shape[0], owner.shape[0]
    kh, kw = window
    # A teacher claims a pixel iff it owns the class it gives there: T look-ups instead of C masks.
    owner_of = owner.new_full((256,), -1)
    owner_of[:num_classes] = owner
    claimed = torch.stack([owner_of[labels[t].long()] == t for t in range(num_teachers)])  # (T, H, W)
    claims = claimed.sum(0, dtype=torch.uint8)
    label = torch.where(claimed, labels, 0).sum(0, dtype=torch.uint8)  # right where claims == 1
    unclear = claims != 1
    if unclear.any():
        voted = _window_vote(labels, claimed, owner, window)
        label = torch.where(unclear, voted, label)
    candidate = label
    if threshold > 0:
        kept = torch.zeros_like(unclear)
        for c in _present(candidate):
            here = candidate == c
            s = plane(int(owner[c]), c)
            enough = s >= threshold
            if (here & unclear).any():
                enough = torch.where(unclear, _box_reaches(s, threshold, kh, kw), enough)
            kept |= here & enough
        label = torch.where(kept, candidate, IGNORE)
    return Fused(label, candidate, claims)


def certainty(labels: Tensor, plane: Planes, num_classes: int, *, threshold: float = 90) -> Fused:
    """The class with the highest mean certainty over the teachers, kept where that mean reaches the threshold.

    Args:
        labels: (T, H, W) uint8; only their number and disagreement count.
        plane: certainties, see above.
        num_classes: C.
        threshold: percent; 0 keeps every pixel.
    """
    best, label = None, torch.zeros_like(labels[0])
    for c in range(num_classes):
        total = _wide(plane(0, c))
        for t in range(1, len(labels)):
            total = total + plane(t, c)
        if best is None:
            best = total
        else:
            wins = total > best  # strictly: ties stay with the lower class
            label[wins] = c
            best = torch.where(wins, total, best)
    assert best is not None
    candidate = label
    if threshold > 0:
        # The quotient as float32, like the published code: it decides what "reaches" means for fractions.
        label = torch.where(best.float() / len(labels) >= threshold, candidate, IGNORE)
    return Fused(label, candidate, _distinct(labels, num_classes))


def majority(labels: Tensor, num_classes: int) -> Fused:
    """The class that most teachers give. Knows no certainty and no threshold; without a vote it is class 0.

    Args:
        labels: (T, H, W) uint8.
        num_classes: C; labels of C and above are no vote.
    """
    most = torch.zeros_like(labels[0])
    label = torch.zeros_like(labels[0])
    for c in _present(labels):
        if c < num_classes:
            votes = (labels == c).sum(0, dtype=torch.uint8)
            wins = votes > most
            label[wins] = c
            most = torch.where(wins, votes, most)
    return Fused(label, label, _distinct(labels, num_classes))


def consensus(labels: Tensor, plane: Planes, model: Consensus, *, threshold: float = 90) -> Fused:
    """What all teachers together believe, see ``endauda_cli.consensus``; kept where the belief reaches the threshold.

    Args:
        labels: (T, H, W) uint8.
        plane: certainties, see above; bytes.
        model: the fitted rule.
        threshold: percent of belief; 0 keeps every pixel.
    """
    num_classes = len(model.prior)
    planes = torch.stack([torch.stack([plane(t, c) for c in range(num_classes)]) for t in range(len(labels))])
    found = fuse_image(labels.cpu().numpy(), planes.cpu().numpy(), model)
    candidate, belief, claims = (torch.from_numpy(a).to(labels.device) for a in found)
    label = torch.where(belief >= threshold, candidate, IGNORE) if threshold > 0 else candidate
    return Fused(label, candidate, claims)


class Inputs(NamedTuple):
    """All that any rule may need for one image."""

    labels: Tensor
    """(T, H, W) uint8."""
    plane: Planes
    owner: Tensor
    """(C,) int64."""
    window: tuple[int, int]
    threshold: float
    model: Consensus | None = None


RULES: dict[str, Callable[[Inputs], Fused]] = {
    FusionRule.PLF: lambda x: plf(x.labels, x.plane, x.owner, window=x.window, threshold=x.threshold),
    FusionRule.CERTAINTY: lambda x: certainty(x.labels, x.plane, len(x.owner), threshold=x.threshold),
    FusionRule.MAJORITY: lambda x: majority(x.labels, len(x.owner)),
    FusionRule.CONSENSUS: lambda x: consensus(x.labels, x.plane, _fitted(x.model), threshold=x.threshold),
}


def _fitted(model: Consensus | None) -> Consensus:
    assert model is not None, "rule consensus is fitted before it fuses"
    return model


def _window_vote(labels: Tensor, claimed: Tensor, owner: Tensor, window: tuple[int, int]) -> Tensor:
    """(H, W) uint8: the class with most claims in the window around each pixel; class 0 if there are none."""
    label = torch.zeros_like(labels[0])
    most = torch.zeros_like(labels[0], dtype=torch.int32)
    for c in _present(labels[claimed]):
        t = int(owner[c])
        votes = _box_sum(claimed[t] & (labels[t] == c), *window)
        wins = votes > most
        label[wins] = c
        most = torch.where(wins, votes, most)
    return label


def _box_reaches(values: Tensor, threshold: float, kh: int, kw: int) -> Tensor:
    """(H, W) bool: does the mean over the window, its padding counted as zeros, reach the threshold?"""
    if values.is_floating_point():
        mean = F.avg_pool2d(values[None, None].float(), (kh, kw), stride=1, padding=(kh // 2, kw // 2))
        return mean[0, 0] >= threshold
    return _box_sum(values, kh, kw) >= threshold * kh * kw


def _box_sum(values: Tensor, kh: int, kw: int) -> Tensor:
    """(H, W) int32: exact sums over kh x kw windows, zeros outside; independent of the window's size."""
    total = values.to(torch.int32)
    for size, axis in ((kh, 0), (kw, 1)):
        r = size // 2
        pad = (0, 0, r + 1, r) if axis == 0 else (r + 1, r)
        running = F.pad(total, pad).cumsum(axis, dtype=torch.int32)
        length = values.shape[axis]
        total = running.narrow(axis, size, length) - running.narrow(axis, 0, length)
    return total


def _wide(values: Tensor) -> Tensor:
    """Bytes as int16, so that sums of up to 327 teachers are exact; floats as they are."""
    return values.clone() if values.is_floating_point() else values.to(torch.int16)


def _present(labels: Tensor) -> list[int]:
    """The values that occur, ascending."""
    return [int(v) for v in torch.bincount(labels.flatten(), minlength=1).nonzero()[:, 0]]


def _distinct(labels: Tensor, num_classes: int) -> Tensor:
    """(H, W) uint8: how many different classes the teachers give."""
    ordered = labels.sort(0).values  # (T, H, W)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return (new & (ordered < num_classes)).sum(0, dtype=torch.uint8)
