"""DACS (Tranheden et al., 2021, arXiv 2007.08702): classes of source images pasted into target ones.

What each constant is and where it is from: docs/methods.md.
"""

from __future__ import annotations

from typing import Any

import torch

from endauda_cli.training.methods.arrays import Array, like, tensor


def classmix_mask(labels: Array, classes: Array) -> Any:
    """Where an image shows one of the classes, which is what is taken from it.

    Args:
        labels: (H, W) or (B, H, W) integer; 255 is a class like others, if it is among ``classes``.
        classes: (n,) integer, the chosen half of the image's classes.

    Returns:
        The labels' shape, int64, 1 and 0. A tensor for a tensor.
    """
    truth = tensor(labels)
    chosen = torch.as_tensor(classes, device=truth.device).reshape(-1)
    return like(torch.isin(truth.long(), chosen.long()).long(), labels)


def mix(mask: Array, first: Array, second: Array) -> Any:
    """``first`` where the mask is 1, ``second`` where it is 0: of images, labels or weights.

    Args:
        mask: (H, W) or (B, H, W).
        first, second: of one shape that ends with (H, W); batches of images (B, C, H, W) take a mask per image.
    """
    taken, one, other = tensor(mask).bool(), tensor(first), tensor(second)
    taken, other = taken.to(one.device), other.to(one.device)
    if taken.ndim == 3 and one.ndim == 4:
        taken = taken[:, None]
    return like(torch.where(taken, one, other), first)


def pixel_weight(probabilities: Array, threshold: float) -> Any:
    """The share of pixels that the teacher is sure of, which its word is weighed by.

    Args:
        probabilities: (C, H, W), or (B, C, H, W), of which it is the share over all images.
        threshold: 0..1; what reaches it is sure.

    Returns:
        A scalar, 0..1, float32. A tensor for a tensor.
    """
    highest = tensor(probabilities).amax(-3)
    return like((highest >= threshold).float().mean(), probabilities)


def ema_decay(step: int, decay: float) -> float:
    """How much the averaged teacher keeps of itself after a step, counted from 0: the plain mean of all students
    until that moves slower than ``decay``."""
    return min(1 - 1 / (step + 1), decay)
