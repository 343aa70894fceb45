"""Kernels: what is counted of fused images, on the CPU.

Legend of shapes: T teacher, C class, H, W. Labels are uint8 train ids, 255 = none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.jit import jit
from endauda_cli.threads import in_bands

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from endauda_cli.fusion.rules.rule import Fused

    UInt8 = NDArray[np.uint8]
    Array = NDArray[Any]


def agreement(labels: UInt8, num_classes: int) -> tuple[Array, Array, int]:
    """How far the teachers give the same labels.

    Args:
        labels: (T, H, W) uint8.
        num_classes: C; labels of C and above are none.

    Returns:
        (T, T) int64 pixels to which both give the same class; (T, T) int64 pixels to which both give a class;
        and to how many pixels not all classes given are the same.
    """
    teachers, height, _ = labels.shape
    parts: list[Array] = []

    def count(first: int, last: int) -> None:
        pairs = np.zeros((2, teachers, teachers), np.int64)
        disputed = _agree(labels, num_classes, pairs, first, last)
        parts.append(np.append(pairs, disputed))

    in_bands(height, count)
    total = np.sum(parts, axis=0)
    same, both = total[:-1].reshape(2, teachers, teachers)
    return same, both, int(total[-1])


def tally(fused: Fused, num_classes: int) -> tuple[Array, int]:
    """Counts of a fused image.

    Returns:
        (3, C) int64 pixels of each class: before the threshold, after it, and before it where several classes
        claim them; and the number of unclaimed pixels.
    """
    counts = np.zeros((3, 256), np.int64)
    unclaimed = _tally(fused.candidate, fused.label, fused.claims, counts)
    return counts[:, :num_classes], int(unclaimed)


def overlaps(truth: UInt8, prediction: UInt8, num_classes: int) -> tuple[Array, Array, int]:
    """What a score needs of one image: per class the intersection and the union of truth and prediction, (C,) int64,
    over pixels where neither is 255; and the number of pixels that have a prediction."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    labelled = _confuse(truth, prediction, matrix)
    hits = np.diag(matrix)
    return hits, matrix.sum(0) + matrix.sum(1) - hits, int(labelled)


@jit
def _agree(labels: UInt8, num_classes: int, pairs: Array, first: int, last: int) -> int:
    teachers, _, width = labels.shape
    differ = np.empty(width, np.uint8)
    disputed = 0
    for y in range(first, last):
        differ[:] = 0
        for t in range(teachers):
            for u in range(t + 1):
                same, both = 0, 0
                for x in range(width):
                    a, b = labels[t, y, x], labels[u, y, x]
                    given = (a < num_classes) & (b < num_classes)
                    both += int(given)
                    same += int(given & (a == b))
                    differ[x] |= np.uint8(given & (a != b))
                pairs[0, t, u] += same
                pairs[1, t, u] += both
                if u < t:
                    pairs[0, u, t] += same
                    pairs[1, u, t] += both
        for x in range(width):
            disputed += differ[x]
    return disputed


@jit
def _tally(candidate: UInt8, label: UInt8, claims: UInt8, counts: Array) -> int:
    height, width = candidate.shape
    unclaimed = 0
    for y in range(height):
        for x in range(width):
            c = candidate[y, x]
            counts[0, c] += 1
            counts[1, label[y, x]] += 1
            counts[2, c] += claims[y, x] > 1
            unclaimed += claims[y, x] == 0
    return unclaimed


@jit
def _confuse(truth: UInt8, prediction: UInt8, matrix: Array) -> int:
    height, width = truth.shape
    labelled = 0
    for y in range(height):
        for x in range(width):
            p = prediction[y, x]
            if p < len(matrix):
                labelled += 1
                if truth[y, x] < len(matrix):
                    matrix[truth[y, x], p] += 1
    return labelled
