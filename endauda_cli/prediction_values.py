"""Engine: what the values of label maps that exist mean, decided over all of them.

Maps of ours hold train ids. Others may hold label ids of the data set: what could be both is counted as both, until it
is clear, or refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.domains import IGNORE
from endauda_cli.errors import DataError
from endauda_cli.foreign import as_label_ids, values_of
from endauda_cli.image_counts import ImageCounts
from endauda_cli.labels import train_ids_of
from endauda_cli.metrics import ConfusionMatrix
from endauda_cli.progress import Note, Reporter
from endauda_cli.types import PredictionIds

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.domains import Colour, Domain

    UInt8 = NDArray[np.uint8]
    Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Values:
    """The (N,) values of an image's map, as train ids in both ways."""

    train: UInt8
    """As train ids; 255 for what is none."""
    labels: UInt8 | None
    """By the data set's table; ``None`` if a value is not named there, or if it does not matter."""
    by_palette: bool
    """Whether colours said what they are."""
    fault: DataError | None
    """Why they are no train ids."""
    stray: int | None
    """The first value that is not named in the data set's table."""


def read_values(
    file: Path, found: NDArray[np.int32], palette: list[Colour], domain: Domain, ids: PredictionIds
) -> Values:
    """What the values that occur in a map may mean.

    Raises:
        DataError: if its palette contradicts them.
    """
    values, by_palette = values_of(file, found, palette, domain)
    labels = None if by_palette or ids == PredictionIds.TRAIN else as_label_ids(values, domain)
    classes, fault = len(domain.classes), None
    try:
        train = train_ids_of(file, values, classes)
    except DataError as error:
        fault = error
        train = np.where((values >= 0) & (values < classes), values, IGNORE).astype(np.uint8)
    stray = None if labels is not None or by_palette else _unnamed(values, domain)
    return Values(train, labels, by_palette, fault, stray)


def looks_like_label_ids(
    values: Values, truth: UInt8, pixels: Int64, ids: PredictionIds, classes: int
) -> bool:
    """Whether one image alone is read by the data set's table."""
    if ids != PredictionIds.AUTO or values.labels is None:
        return ids == PredictionIds.LABEL
    both = ConfusionMatrix(classes), ConfusionMatrix(classes)
    for confusion, prediction in zip(both, (values.train, values.labels), strict=True):
        confusion.update(truth, prediction, pixels)
    return _fits_better(both[1], both[0])


class Reading:
    """Maps counted as train ids and as label ids of the data set, until it is clear what they are."""

    def __init__(self, what: Path | str, domain: Domain, ids: PredictionIds) -> None:
        self._what, self._domain, self._ids = what, domain, ids
        self._train, self._label = (ImageCounts(len(domain.classes)) for _ in range(2))
        self._fault: DataError | None = None
        self._named = ids != PredictionIds.TRAIN
        self._differ = False
        self._coloured = 0
        self._by_table: list[bool] = []

    @property
    def confusion(self) -> ConfusionMatrix:
        """As train ids, unless they are said to be others."""
        return (self._label if self._ids == PredictionIds.LABEL else self._train).confusion

    def count(
        self,
        file: Path,
        image: str,
        truth: UInt8,
        values: Values,
        pixels: Int64,
        boundary: Int64 | None = None,
        by_table: bool = False,
    ) -> None:
        """One image: its pairs, and the boundaries of one of the two ways to read it.

        Raises:
            DataError: if its values are neither train ids nor label ids.
        """
        self._coloured += values.by_palette
        labels = values.labels if self._named else None
        if labels is None and self._ids == PredictionIds.LABEL and not values.by_palette:
            raise DataError(
                f"{file}: value {values.stray} is no label id of {self._domain.name}; are these "
                f"train ids? Then say --prediction-ids {PredictionIds.TRAIN}"
            )
        self._named &= labels is not None or values.by_palette
        if values.fault is not None and not self._named:
            raise self._fault or values.fault
        self._fault = self._fault or values.fault
        if self._fault is not None and not self._named:
            raise self._fault
        if labels is None:
            labels = values.train
        self._differ |= not np.array_equal(labels, values.train)
        self._train.add(image, truth, values.train, pixels, boundary)
        self._label.add(image, truth, labels, pixels, boundary)
        self._by_table.append(by_table)

    def decide(self, report: Reporter) -> tuple[ImageCounts, list[int]]:
        """The counts of what the maps are, and the positions of images whose boundaries are of the other reading.

        Raises:
            DataError: if that is not clear.
        """
        if self._coloured:
            report(
                Note(
                    f"{self._what}: {self._coloured} predictions have a palette with the classes' colours in "
                    "another order, and were read by colour"
                )
            )
        if self._ids == PredictionIds.LABEL:
            return self._chosen(self._label)
        train, label = self._train.confusion, self._label.confusion
        right = self._named and self._differ and _fits_better(label, train)
        if right and self._fault is not None:
            report(
                Note(
                    f"{self._what}: the predictions hold label ids of {self._domain.name}, not train ids, and were "
                    "read by its table",
                    "warning",
                )
            )
            return self._chosen(self._label)
        if self._fault is not None:
            raise self._fault
        if right:
            raise DataError(
                f"{self._what}: read as train ids the predictions are right on {100 * _accuracy(train):.1f} % "
                f"of the pixels, as label ids of {self._domain.name} on {100 * _accuracy(label):.1f} %; say "
                f"which they are: --prediction-ids {PredictionIds.TRAIN} or --prediction-ids {PredictionIds.LABEL}"
            )
        return self._chosen(self._train)

    def _chosen(self, counts: ImageCounts) -> tuple[ImageCounts, list[int]]:
        if not self._differ:
            return counts, []
        return counts, [i for i, by_table in enumerate(self._by_table) if by_table != (counts is self._label)]


def _fits_better(label: ConfusionMatrix, train: ConfusionMatrix) -> bool:
    return _accuracy(label) >= max(0.3, 2 * _accuracy(train))


def _accuracy(confusion: ConfusionMatrix) -> float:
    """Of all pixels whose truth is a class."""
    return float(confusion.matrix.trace() / max(1, confusion.matrix.sum() + confusion.missed.sum()))


def _unnamed(values: NDArray[np.int32], domain: Domain) -> int | None:
    values_there: list[int] = np.unique(values).tolist()
    return next((v for v in values_there if v not in domain.label_ids and v != IGNORE), None)
