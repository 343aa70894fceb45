"""Kernels: a score as what each image adds to it; every figure is made of these counts.

An image's confusion matrix has a few dozen cells that are not 0, so these are kept, not the matrix: a kilobyte or two
an image. :meth:`ImageCounts.arrays` is what ``counts.npz`` holds.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from endauda_cli.boundaries import COUNTS, TOLERANCES
from endauda_cli.domains import IGNORE
from endauda_cli.metrics import ConfusionMatrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    UInt8 = NDArray[np.uint8]
    Int64 = NDArray[np.int64]

FORMAT = 1
"""Of the arrays; grows when one means something else."""


class Counted(NamedTuple):
    """What is kept of an image: the pairs of truth and prediction that occur, each once, and their pixels."""

    image: str
    truth: UInt8
    """(N,) train ids; 255 is no class."""
    prediction: UInt8
    """(N,) train ids; 255 is none."""
    pixels: Int64
    """(N,)"""
    boundary: Int64 | None
    """(C, ``boundaries.COUNTS``), if they were counted."""


class ImageCounts:
    """The counts of images, in the order in which they were added.

    Attributes:
        num_classes: C.
        confusion: of all of them together.
        counted: of each.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.confusion = ConfusionMatrix(num_classes)
        self.counted: list[Counted] = []

    def add(
        self, image: str, truth: UInt8, prediction: UInt8, pixels: Int64, boundary: Int64 | None = None
    ) -> None:
        """One image.

        Args:
            image: its id.
            truth: (N,) uint8 train ids of the pairs that occur; values of C and above are no class.
            prediction: (N,) uint8 train ids below C, or 255 for none.
            pixels: (N,) how many pixels each pair has; a pair may occur several times.
            boundary: (C, ``boundaries.COUNTS``), if they were counted: then of every image.

        Raises:
            ValueError: as :meth:`ConfusionMatrix.update`.
        """
        self.confusion.update(truth, prediction, pixels)
        known = np.where(truth < self.num_classes, truth, IGNORE).astype(np.uint16)
        cells, places = np.unique(known << 8 | prediction, return_inverse=True)
        sums = np.bincount(places, pixels, len(cells)).astype(np.int64)  # exact: whole numbers
        pair = (cells >> 8).astype(np.uint8), (cells & 255).astype(np.uint8)
        self.counted.append(Counted(image, *pair, sums, boundary))

    def replace_boundary(self, number: int, boundary: Int64) -> None:
        """Other boundary counts of an image, by its position."""
        self.counted[number] = self.counted[number]._replace(boundary=boundary)

    @property
    def images(self) -> list[str]:
        """Ids of the images."""
        return [one.image for one in self.counted]

    @property
    def boundary(self) -> Int64 | None:
        """(N, C, ``boundaries.COUNTS``) int64, per image; ``None`` where they were not counted."""
        found = [one.boundary for one in self.counted if one.boundary is not None]
        return np.stack(found) if found else None

    def parts(self) -> Int64:
        """(N, 4, C) int64 per image and class: pixels that are right, of the truth (with a prediction), of the
        prediction (with a truth), and of the truth without a prediction. IoU needs no more of a matrix."""
        parts = np.zeros((len(self.counted), 4, self.num_classes), np.int64)
        for part, one in zip(parts, self.counted, strict=True):
            covered, known = one.prediction != IGNORE, one.truth != IGNORE
            chosen = (
                (known & (one.truth == one.prediction), one.truth),
                (known & covered, one.truth),
                (known & covered, one.prediction),
                (known & ~covered, one.truth),
            )
            for line, (where, of_class) in zip(part, chosen, strict=True):
                line += np.bincount(of_class[where], one.pixels[where], self.num_classes).astype(np.int64)
        return parts

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """As plain arrays: ``images`` (N,), ``offsets`` (N + 1,) int64; ``truth`` and ``prediction`` (P,) uint8 and
        ``pixels`` (P,) int64, of which image i has those from ``offsets[i]`` to ``offsets[i + 1]``; where counted,
        ``boundary`` (N, C, ``boundaries.COUNTS``) int64 and what its ``tolerances`` are."""

        def joined(parts: Sequence[NDArray[np.generic]], kind: type[np.generic]) -> NDArray[np.generic]:
            return np.concatenate([np.zeros(0, kind), *parts])

        arrays: dict[str, NDArray[np.generic]] = {
            "format": np.array(FORMAT),
            "images": np.array(self.images, np.str_),
            "offsets": np.cumsum([0, *(len(one.pixels) for one in self.counted)], dtype=np.int64),
            "truth": joined([one.truth for one in self.counted], np.uint8),
            "prediction": joined([one.prediction for one in self.counted], np.uint8),
            "pixels": joined([one.pixels for one in self.counted], np.int64),
        }
        boundary = self.boundary
        if boundary is not None:
            assert boundary.shape[1:] == (self.num_classes, COUNTS)
            arrays |= {"boundary": boundary, "tolerances": np.array(TOLERANCES, np.str_)}
        return arrays


def dealt(parts: Sequence[ImageCounts]) -> ImageCounts:
    """The counts of processes that took the images in turn, as one, in the order of all images."""
    whole = ImageCounts(parts[0].num_classes)
    for turn in zip_longest(*(part.counted for part in parts)):
        for one in turn:
            if one is not None:
                whole.add(*one)
    return whole
