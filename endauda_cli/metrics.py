"""Kernels: confusion matrix and intersection over union.

Accumulated over the whole set, not per image, as the benchmark's own evaluation does. Rows are the truth,
columns the prediction. A class in neither is n/a (NaN) and left out of the mean, never 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.domains import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class ConfusionMatrix:
    """Counts of (truth, prediction) over pixels whose truth is a class and whose prediction is not 255.

    Attributes:
        matrix: (C, C) int64.
        missed: (C,) int64, pixels of a class whose prediction is 255.
        pixels: all pixels seen.
        labelled: pixels seen whose prediction is not 255.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.matrix: NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)
        self.missed: NDArray[np.int64] = np.zeros(num_classes, np.int64)
        self.pixels = 0
        self.labelled = 0

    def update(
        self,
        truth: NDArray[np.uint8],
        prediction: NDArray[np.uint8],
        counts: NDArray[np.int64] | None = None,
    ) -> None:
        """Count one image.

        Args:
            truth: (H, W) uint8 train ids; values of C and above are left out.
            prediction: (H, W) uint8 train ids below C, or 255 for none.
            counts: how many pixels each of them stands for, if not for one: see :func:`pairs`.

        Raises:
            ValueError: if the shapes differ or a prediction is neither below C nor 255. (The reference
                counts such pixels in a wrong cell.)
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth is {truth.shape}, prediction {prediction.shape}")
        n = self.num_classes
        covered = prediction != IGNORE
        if prediction[covered].max(initial=0) >= n:
            raise ValueError(f"prediction {prediction[covered].max()}, but there are {n} classes")
        known = truth < n
        counted = covered & known
        missed = known & ~covered
        cells = n * truth[counted].astype(np.int64) + prediction[counted]
        self.matrix += _counted(cells, counts, counted, n * n).reshape(n, n)
        self.missed += _counted(truth[missed], counts, missed, n)
        self.pixels += prediction.size if counts is None else int(counts.sum())
        self.labelled += int(covered.sum() if counts is None else counts[covered].sum())

    @property
    def coverage(self) -> float:
        """Share of all pixels that have a prediction, 0..1; NaN before the first image."""
        return self.labelled / self.pixels if self.pixels else math.nan

    @property
    def known(self) -> float:
        """Share of all pixels whose truth is a class, 0..1; NaN before the first image."""
        return float(self.matrix.sum() + self.missed.sum()) / self.pixels if self.pixels else math.nan

    @property
    def accuracy(self) -> float:
        """Share of the counted pixels that are right, 0..1; NaN if there are none."""
        counted = self.matrix.sum()
        return float(self.matrix.trace() / counted) if counted else math.nan

    @property
    def frequency_weighted_iou(self) -> float:
        """Mean of the IoUs, each weighted by the share of the counted pixels whose truth it is, 0..1; NaN without."""
        frequency, counted = self.matrix.sum(1), self.matrix.sum()
        iou = np.where(frequency > 0, self.iou(), 0.0)
        return float((frequency * iou).sum() / counted) if counted else math.nan

    def iou(self, strict: bool = False) -> NDArray[np.float64]:
        """(C,) IoU per class, 0..1: tp / (tp + fp + fn); NaN for a class that occurs in neither.

        ``strict`` counts a prediction of 255 as wrong (fn), as cityscapesScripts does; else it is left out.
        """
        tp = np.diag(self.matrix)
        union = self.matrix.sum(0) + self.matrix.sum(1) - tp + (self.missed if strict else 0)
        with np.errstate(invalid="ignore"):
            return np.asarray(tp / union, np.float64)

    def mean_iou(self, classes: Sequence[int] | None = None, strict: bool = False) -> float:
        """Mean of the IoUs of ``classes`` (all, if not given) that are not NaN, 0..1; NaN if none is."""
        iou = self.iou(strict) if classes is None else self.iou(strict)[list(classes)]
        known = iou[~np.isnan(iou)]
        return float(known.mean()) if known.size else math.nan


def pairs(
    truth: NDArray[Any], prediction: NDArray[Any]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """The (N,) pairs of values that occur in two maps of one size, and the number of pixels of each.

    Whatever is asked of values is then asked of some hundred pairs instead of millions of pixels.

    Args:
        truth, prediction: (H, W) integers of at most 32 bits.
    """
    if truth.dtype == prediction.dtype == np.uint8:
        cells = truth.astype(np.uint16)
        cells <<= 8
        cells |= prediction
        counts = _occurrences(cells.ravel())
        found = np.flatnonzero(counts)
        return (found >> 8).astype(np.int32), (found & 255).astype(np.int32), counts[found]
    wide = truth.astype(np.int64).ravel() << 32 | prediction.astype(np.int32).ravel().view(np.uint32)
    keys, counts = np.unique(wide, return_counts=True)
    return (keys >> 32).astype(np.int32), keys.astype(np.uint32).view(np.int32), counts


def _occurrences(cells: NDArray[np.uint16]) -> NDArray[np.int64]:
    """How often each value occurs, (65536,): run by run where there are few, as in maps of labels."""
    starts = np.concatenate(([0], np.flatnonzero(cells[1:] != cells[:-1]) + 1))
    if 4 * starts.size > cells.size:
        return np.bincount(cells, minlength=1 << 16)
    lengths = np.diff(starts, append=cells.size)
    return np.bincount(cells[starts], lengths, 1 << 16).astype(np.int64)  # sums of whole numbers are exact


def _counted(
    cells: NDArray[Any], counts: NDArray[np.int64] | None, chosen: NDArray[np.bool], length: int
) -> NDArray[np.int64]:
    """How many pixels are in each cell; sums of whole numbers are exact in float64."""
    weights = None if counts is None else counts[chosen]
    return np.bincount(cells, weights, length).astype(np.int64)
