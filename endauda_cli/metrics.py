"""Kernels: confusion matrix and intersection over union.

Accumulated over the whole set, not per image, as the benchmark's own evaluation does. Rows are the truth,
columns the prediction. A class in neither is n/a (NaN) and left out of the mean, never 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

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

    def update(self, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Count one image.

        Args:
            truth: (H, W) uint8 train ids; values of C and above are left out.
            prediction: (H, W) uint8 train ids below C, or 255 for none.

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
        cells = n * truth[counted].astype(np.int64) + prediction[counted]
        self.matrix += np.bincount(cells, minlength=n * n).reshape(n, n)
        self.missed += np.bincount(truth[known & ~covered], minlength=n)
        self.pixels += prediction.size
        self.labelled += int(covered.sum())

    @property
    def coverage(self) -> float:
        """Share of all pixels that have a prediction, 0..1; NaN before the first image."""
        return self.labelled / self.pixels if self.pixels else math.nan

    @property
    def known(self) -> float:
        """Share of all pixels whose truth is a class, 0..1; NaN before the first image."""
        return float(self.matrix.sum() + self.missed.sum()) / self.pixels if self.pixels else math.nan

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
