"""Engine: what is scored, and label maps that exist. Needs no torch, which costs more than all of this."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.datasets import one_per_image
from endauda_cli.domains import IGNORE
from endauda_cli.errors import DataError
from endauda_cli.foreign import as_label_ids, palette_of, values_of
from endauda_cli.labels import (
    Strays,
    read_label_ids,
    read_truth,
    refuse_empty_truth,
    stored_ids_of,
    train_ids_of,
    truth_of_ids,
)
from endauda_cli.metrics import ConfusionMatrix, pairs
from endauda_cli.patterns import files_below
from endauda_cli.progress import Note, Reporter, Tick
from endauda_cli.rasters import open_raster
from endauda_cli.results import EvalResult
from endauda_cli.threads import ordered_map
from endauda_cli.types import PredictionIds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Domain


def refuse_unlabelled(samples: Sequence[Sample], domain: Domain, split: str) -> None:
    """Refuse labelled images whose truth holds no class, before anything is run on them.

    Raises:
        DataError: if it holds none, or cannot be read.
    """
    files = [sample.label for sample in samples if sample.label is not None]
    refuse_empty_truth(files, domain, f"{domain.name} {split}")


def score_predictions(
    folder: Path,
    samples: Sequence[Sample],
    domain: Domain,
    report: Reporter,
    split: str = "val",
    workers: int = 2,
    ids: PredictionIds = PredictionIds.AUTO,
) -> EvalResult:
    """Score label PNGs that exist: ``<image id>.png`` below the folder. 255 in them is left out (coverage).

    Args:
        folder: where they are.
        samples: images with ground truth.
        domain: class table of both.
        report: told of progress.
        split: of the samples, for the result.
        workers: threads.
        ids: what the values mean.

    Raises:
        DataError: if a prediction is absent, there twice, unreadable, of another size or class table; or if it is not
            clear what its values mean.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of predictions")
    wanted = {sample.id for sample in samples}
    pngs = sorted(path for path in files_below(folder) if path.suffix == ".png")
    files = one_per_image(pngs, wanted, "prediction")
    missing = [sample.id for sample in samples if sample.id not in files]
    if missing:
        raise DataError(
            f"{folder}: no prediction for {len(missing)} of {len(samples)} images, first {missing[0]}.png"
        )
    strays = Strays(domain)
    reading = _Reading(folder, domain, ids)

    def load(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.int32], bool, NDArray[np.int64]]:
        return _pairs_of(sample, files[sample.id], domain, strays)

    with ThreadPoolExecutor(workers) as pool:
        loaded = ordered_map(pool, load, samples, workers + 2)
        report(Tick("scoring", 0, len(samples)))
        for done, (sample, of_image) in enumerate(zip(samples, loaded, strict=True), 1):
            reading.count(files[sample.id], *of_image)
            report(Tick("scoring", done, len(samples), running(reading.confusion)))
    warn_of(strays, report)
    return result_of(reading.decide(report), domain, str(folder), split, len(samples), None)


def _pairs_of(
    sample: Sample, prediction: Path, domain: Domain, strays: Strays
) -> tuple[NDArray[np.uint8], NDArray[np.int32], bool, NDArray[np.int64]]:
    """The pairs of train ids of the truth and values of the prediction that occur, whether the latter are train ids
    that a palette gave, and the pixels of each pair."""
    ids = stored_truth(sample, domain)
    assert sample.label is not None
    with open_raster(prediction) as raster:
        values, palette = stored_ids_of(raster), palette_of(raster)
    refuse_sizes(ids, values, sample)
    of_truth, of_prediction, counts = pairs(ids, values)
    truth = truth_of_ids(sample.label, of_truth, domain, strays, counts)
    return truth, *values_of(prediction, of_prediction, palette, domain), counts


def stored_truth(sample: Sample, domain: Domain) -> NDArray[Any]:
    """What the pixels of an image's ground truth hold, (H, W) integers: see ``labels.truth_of_ids``.

    Raises:
        DataError: if it has none, or it cannot be read.
    """
    if sample.label is None:
        raise DataError(f"{sample.image}: has no ground truth")
    if domain.labels_in_first_channel:
        return read_label_ids(sample.label, first_channel=True)
    with open_raster(sample.label) as raster:
        return stored_ids_of(raster)


class _Reading:
    """Predictions counted as train ids and as label ids of the data set, until it is clear what they are."""

    def __init__(self, folder: Path, domain: Domain, ids: PredictionIds) -> None:
        self._folder, self._domain, self._ids = folder, domain, ids
        self._train, self._label = (ConfusionMatrix(len(domain.classes)) for _ in range(2))
        self._fault: DataError | None = None
        self._named = ids != PredictionIds.TRAIN
        self._differ = False
        self._coloured = 0

    @property
    def confusion(self) -> ConfusionMatrix:
        """As train ids, unless they are said to be others."""
        return self._label if self._ids == PredictionIds.LABEL else self._train

    def count(
        self,
        file: Path,
        truth: NDArray[np.uint8],
        values: NDArray[np.int32],
        by_palette: bool,
        counts: NDArray[np.int64],
    ) -> None:
        """One image, as :func:`_pairs_of` gives it.

        Raises:
            DataError: if its values are neither train ids nor label ids.
        """
        self._coloured += by_palette
        labels = None if by_palette or not self._named else as_label_ids(values, self._domain)
        if labels is None and self._ids == PredictionIds.LABEL and not by_palette:
            raise DataError(
                f"{file}: value {_unnamed(values, self._domain)} is no label id of {self._domain.name}; are these "
                f"train ids? Then say --prediction-ids {PredictionIds.TRAIN}"
            )
        self._named &= labels is not None or by_palette
        try:
            train = train_ids_of(file, values, len(self._domain.classes))
        except DataError as error:
            if not self._named:
                raise self._fault or error from None
            self._fault = self._fault or error
            train = np.where((values >= 0) & (values < len(self._domain.classes)), values, IGNORE)
            train = train.astype(np.uint8)
        if self._fault is not None and not self._named:
            raise self._fault
        if labels is None:
            labels = train
        self._differ |= not np.array_equal(labels, train)
        self._train.update(truth, train, counts)
        self._label.update(truth, labels, counts)

    def decide(self, report: Reporter) -> ConfusionMatrix:
        """The counts of what the predictions are.

        Raises:
            DataError: if that is not clear.
        """
        if self._coloured:
            report(
                Note(
                    f"{self._folder}: {self._coloured} predictions have a palette with the classes' colours in "
                    "another order, and were read by colour"
                )
            )
        if self._ids == PredictionIds.LABEL:
            return self._label
        right = (
            self._named and self._differ and _accuracy(self._label) >= max(0.3, 2 * _accuracy(self._train))
        )
        if right and self._fault is not None:
            report(
                Note(
                    f"{self._folder}: the predictions hold label ids of {self._domain.name}, not train ids, and were "
                    "read by its table",
                    "warning",
                )
            )
            return self._label
        if self._fault is not None:
            raise self._fault
        if right:
            raise DataError(
                f"{self._folder}: read as train ids the predictions are right on {100 * _accuracy(self._train):.1f} % "
                f"of the pixels, as label ids of {self._domain.name} on {100 * _accuracy(self._label):.1f} %; say "
                f"which they are: --prediction-ids {PredictionIds.TRAIN} or --prediction-ids {PredictionIds.LABEL}"
            )
        return self._train


def _accuracy(confusion: ConfusionMatrix) -> float:
    """Of all pixels whose truth is a class."""
    return float(confusion.matrix.trace() / max(1, confusion.matrix.sum() + confusion.missed.sum()))


def _unnamed(values: NDArray[np.int32], domain: Domain) -> int:
    values_there: list[int] = np.unique(values).tolist()
    return next(v for v in values_there if v not in domain.label_ids and v != IGNORE)


def truth_of(
    sample: Sample,
    domain: Domain,
    strays: Strays | None = None,
    read: Callable[[Path, Domain], NDArray[np.uint8]] | None = None,
) -> NDArray[np.uint8]:
    """The ground truth of an image, (H, W) uint8 train ids.

    Raises:
        DataError: if it has none, or it cannot be read.
    """
    if sample.label is None:
        raise DataError(f"{sample.image}: has no ground truth")
    if read is not None:
        return read(sample.label, domain)
    return read_truth(sample.label, domain, strays)


def warn_of(strays: Strays, report: Reporter) -> None:
    """Tell of values in the truth that have no name, if there are more than a few."""
    if text := strays.warning():
        report(Note(text, "warning"))


def refuse_sizes(truth: NDArray[Any], prediction: NDArray[Any], sample: Sample) -> None:
    """Raise ``DataError`` if prediction and truth differ in size."""
    if truth.shape != prediction.shape:
        raise DataError(
            f"{sample.label}: {truth.shape[1]}x{truth.shape[0]} pixels, but the prediction for {sample.id} has "
            f"{prediction.shape[1]}x{prediction.shape[0]}; score at the size of the ground truth"
        )


def result_of(
    confusion: ConfusionMatrix, domain: Domain, scored: str, split: str, images: int, pictures: Path | None
) -> EvalResult:
    """What the counts come to, in percent."""
    iou, strict = (
        {name: _percent(value) for name, value in zip(domain.classes, confusion.iou(strict=how), strict=True)}
        for how in (False, True)
    )
    subsets = {
        title: _percent(confusion.mean_iou([domain.classes.index(name) for name in names]))
        for title, names in domain.subsets.items()
    }
    return EvalResult(
        scored=scored,
        target=domain.name,
        split=split,
        images=images,
        miou=_percent(confusion.mean_iou()),
        coverage=100 * confusion.coverage,
        iou=iou,
        subset_miou=subsets,
        pictures=pictures,
        strict_miou=_percent(confusion.mean_iou(strict=True)),
        strict_iou=strict,
        truth=100 * confusion.known,
    )


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * float(value)


def running(confusion: ConfusionMatrix) -> str:
    """The mean so far, beside a bar."""
    return f"mIoU {100 * confusion.mean_iou():.2f}"
