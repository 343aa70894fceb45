"""Kernels: what each teacher counts in the rule ``consensus``: near-copies once, the better more than the worse.

Legend of shapes: T teacher, C class, S sampled pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int = NDArray[np.int32]
    Float = NDArray[np.float64]
    Float32 = NDArray[np.float32]
    UInt8 = NDArray[np.uint8]

ALIKE = 0.5
"""How far two teachers' words agree beyond what the truth explains before they are taken for near-copies: unlike
networks of policies.md's real data reach 0.5, the same network with another temperature 0.98 or more."""
ALIKE_PIXELS = 25_000
TRUST = 3.0
"""Power of the odds of a teacher's expected IoU that it counts by. The belief that this IoU is taken from is made by
all, so it differs less between teachers than the true one does: a power brings them apart again."""
SURE = 0.98
"""Expected IoU beyond which teachers count the same: all agree, and there is nothing to choose."""
TINY = 1e-6


def trust(iou: Float, share: Float, smallest: float) -> Float:
    """(T,) what each teacher counts for being right, the best 1.

    Args:
        iou: (T, C) expected IoU of each teacher's classes; NaN where nothing is known.
        share: (C,) of all pixels; classes below ``smallest`` say nothing about a teacher.
        smallest: share of pixels.
    """
    common = (share >= smallest) & ~np.isnan(iou).any(0)
    if not common.any():
        return np.ones(len(iou))
    quality = np.clip(iou[:, common].mean(1), 1 - SURE, SURE)
    odds: Float = (quality / (1 - quality)) ** TRUST
    return np.asarray(np.maximum(odds / odds.max(), TINY))


def alikeness(labels: UInt8, certainties: UInt8, scaled: Float32) -> Float:
    """(T, T) how far two teachers are one: 0 for teachers of their own mind, 1 for copies, whatever the temperature.

    Goes by what two say first and second at a pixel, and by how often they would say the same if they knew nothing
    of each other but the truth, for which the mean of all others is taken.

    Args:
        labels: (T, S) uint8.
        certainties: (T, S, C) uint8, percent.
        scaled: (T, S, C) probabilities of one mean certainty.
    """
    num_teachers, pixels, num_classes = certainties.shape
    some = slice(None, None, max(1, pixels // ALIKE_PIXELS))
    first_two = [_first_two(labels[t, some], certainties[t, some]) for t in range(num_teachers)]
    alike = np.eye(num_teachers)
    for t in range(num_teachers):
        for other in range(t):
            both = np.flatnonzero((first_two[t] >= 0) & (first_two[other] >= 0))
            if not len(both):
                continue
            rest = [o for o in range(num_teachers) if o not in (t, other)] or [t, other]
            truth = scaled[rest][:, some][:, both].mean(0)
            one, two = first_two[t][both], first_two[other][both]
            said = [counted(words, truth, num_classes * num_classes) for words in (one, two)]
            share = said[0].sum(0)  # (C,) pixels of each class
            chance = float((said[0] * said[1] / np.maximum(share, TINY)).sum() / len(both))
            beyond = (float(np.mean(one == two)) - chance) / max(1 - chance, TINY)
            alike[t, other] = alike[other, t] = np.clip((beyond - ALIKE) / (1 - ALIKE), 0, 1)
    return alike


def _first_two(labels: UInt8, certainties: UInt8) -> Int:
    """(S,) label * C + runner-up; -1 where there is no label, or nothing but the label is above 0 %."""
    num_classes = certainties.shape[1]
    values = certainties.astype(np.int16)
    known = labels < num_classes
    label = np.where(known, labels, 0).astype(np.int32)
    values[np.arange(len(label)), label] = -1
    second = values.argmax(1)
    known &= values[np.arange(len(label)), second] > 0
    return np.where(known, label * num_classes + second, -1).astype(np.int32)


def company_of(alike: Float, weights: Float) -> Float:
    """(T, T) what the others count for each teacher: nothing as far as they are he himself."""
    company = weights * (1 - alike)
    alone = company.sum(1) < TINY
    company[alone] = weights  # then a teacher is its own company
    return company


def counted(words: Int | NDArray[np.intp], truth: Float32, num_words: int) -> Float:
    """(words, C) how often each word was said of each class, where the truth is (S, C) probabilities."""
    return np.stack([np.bincount(words, column, num_words) for column in truth.T], 1)
