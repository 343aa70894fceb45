"""Kernels: how well a label map follows the outlines of the truth.

A boundary pixel of a class has a neighbour (above, below, left or right) of another class. It is matched if the other
map has a boundary pixel of the same class within a tolerance (Euclidean distance, in pixels). Precision is the matched
share of the prediction's boundary pixels, recall that of the truth's, and the F-score their harmonic mean. Pixels
without a class in the truth, and those without a prediction, are in neither map, and make no boundary.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.domains import IGNORE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]
    Int64 = NDArray[np.int64]

TOLERANCES = ("2 px", "0.75 % of the diagonal")
"""What :func:`tolerances` gives, in words: the strict one, and the usual one of DAVIS and of the boundary IoU."""
IN_TRUTH, IN_PREDICTION, MATCHED = 0, 1, 2
"""Places along the last axis of counts: boundary pixels of the truth, of the prediction, and from ``MATCHED`` on, per
tolerance, those of the truth and those of the prediction that are matched."""
COUNTS = MATCHED + 2 * len(TOLERANCES)


def tolerances(height: int, width: int) -> tuple[float, ...]:
    """In pixels, for an image of that size."""
    return 2.0, 0.0075 * math.hypot(height, width)


def count_boundaries(truth: UInt8, prediction: UInt8, num_classes: int) -> Int64:
    """What an image adds to the boundary F-scores: (C, ``COUNTS``) int64.

    Args:
        truth: (H, W) uint8 train ids; values of C and above are left out.
        prediction: (H, W) uint8 train ids below C, or 255 for none.
        num_classes: C.
    """
    left_out = (truth >= num_classes) | (prediction >= num_classes)
    if left_out.any():
        truth, prediction = (np.where(left_out, np.uint8(IGNORE), labels) for labels in (truth, prediction))
    outlines = _outline(truth, num_classes), _outline(prediction, num_classes)
    height, width = truth.shape
    reach = tolerances(height, width)
    # Room to the right of each row and below each class's last one: what lies in another row is never near.
    room = math.ceil(max(reach)) + 1
    rows, columns = height + room, width + 2 * room
    places = [(of_class * rows + y) * columns + x for of_class, y, x in outlines]
    counts = np.zeros((num_classes, COUNTS), np.int64)
    for side, (of_class, _, _) in enumerate(outlines):
        counts[:, side] = np.bincount(of_class, minlength=num_classes)
        squares = _nearest(places[side], places[1 - side], columns, max(reach))
        for t, tolerance in enumerate(reach):
            matched = of_class[squares <= tolerance**2]
            counts[:, MATCHED + 2 * t + side] = np.bincount(matched, minlength=num_classes)
    return counts


def boundary_scores(counts: Int64) -> NDArray[np.float64]:
    """F-scores per tolerance and class, 0..1, of counts summed over images.

    Args:
        counts: (..., C, ``COUNTS``).

    Returns:
        (..., tolerances, C); NaN for a class without a boundary in either, 0 for one that has none in one of them.
    """
    scores = []
    for t in range(len(TOLERANCES)):
        of_truth, of_prediction = counts[..., MATCHED + 2 * t], counts[..., MATCHED + 2 * t + 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            recall, precision = of_truth / counts[..., IN_TRUTH], of_prediction / counts[..., IN_PREDICTION]
            f = 2 * precision * recall / (precision + recall)
        somewhere = (counts[..., IN_TRUTH] + counts[..., IN_PREDICTION]) > 0
        scores.append(np.where(somewhere & np.isnan(f), 0.0, f))
    return np.stack(scores, -2)


def _outline(labels: UInt8, num_classes: int) -> tuple[Int64, Int64, Int64]:
    """Class, row and column of the boundary pixels, sorted by these."""
    here = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        one, other = (labels[:-1], labels[1:]) if axis == 0 else (labels[:, :-1], labels[:, 1:])
        differ = one != other
        first, second = (here[:-1], here[1:]) if axis == 0 else (here[:, :-1], here[:, 1:])
        if labels.max(initial=0) >= num_classes:
            differ &= (one < num_classes) & (other < num_classes)
        first |= differ
        second |= differ
    places = np.flatnonzero(here)
    of_class = labels.ravel()[places].astype(np.int64)
    order = np.argsort(of_class, kind="stable")
    places = places[order]
    return of_class[order], places // labels.shape[1], places % labels.shape[1]


def _nearest(mine: Int64, theirs: Int64, columns: int, reach: float) -> NDArray[np.float64]:
    """The squared distance of each of my places to the nearest of theirs; those beyond ``reach`` may be infinite.

    Both are sorted numbers ``row * columns + column``. The nearest of a row is a neighbour in that order, so every row
    within reach costs one search; a place is done when no further row can be nearer.
    """
    best = np.full(mine.shape, np.inf)
    if not theirs.size:
        return best
    fenced = np.concatenate(([np.iinfo(np.int64).min // 2], theirs, [np.iinfo(np.int64).max // 2]))
    left = np.arange(mine.size)
    for dy in range(int(reach) + 1):
        left = left[best[left] > dy * dy]
        for row in {dy, -dy}:
            wanted = mine[left] + row * columns
            at = np.searchsorted(theirs, wanted)
            gap = np.minimum(wanted - fenced[at], fenced[at + 1] - wanted).astype(np.float64)
            best[left] = np.minimum(best[left], np.where(gap <= reach, gap * gap + dy * dy, np.inf))
    return best
