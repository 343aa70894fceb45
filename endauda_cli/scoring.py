"""Engine: what is scored, and label maps that exist. Needs no torch, which costs more than all of this."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from endauda_cli.boundaries import TOLERANCES, boundary_scores, count_boundaries
from endauda_cli.datasets import one_per_image
from endauda_cli.domains import means_of
from endauda_cli.errors import DataError
from endauda_cli.files import cannot_write, replacing
from endauda_cli.foreign import palette_of
from endauda_cli.labels import (
    Strays,
    read_label_ids,
    read_truth,
    refuse_empty_truth,
    stored_ids_of,
    truth_of_ids,
)
from endauda_cli.metrics import pairs
from endauda_cli.patterns import files_below
from endauda_cli.prediction_values import Reading, Values, looks_like_label_ids, read_values
from endauda_cli.progress import Note, Reporter, Tick
from endauda_cli.rasters import open_raster
from endauda_cli.score_results import BoundaryScore, ClassMean, EvalResult
from endauda_cli.threads import ordered_map
from endauda_cli.types import PredictionIds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Colour, Domain
    from endauda_cli.image_counts import ImageCounts
    from endauda_cli.metrics import ConfusionMatrix

COUNTS_FILE = "counts.npz"
"""Beside ``eval.json``: what each image adds to the score."""


def refuse_unlabelled(samples: Sequence[Sample], domain: Domain, split: str) -> None:
    """Refuse labelled images whose truth holds no class, before anything is run on them.

    Raises:
        DataError: if it holds none, or cannot be read.
    """
    files = [sample.label for sample in samples if sample.label is not None]
    refuse_empty_truth(files, domain, f"{domain.name} {split}")


@dataclass(frozen=True)
class Maps:
    """Label maps that exist, to be scored.

    Attributes:
        scored: what they are, for the result.
        read: gives the values (H, W) of an image's map, and the colours of its palette if it has one.
        file: where that is, for messages.
        ids: what the values mean.
    """

    scored: str
    read: Callable[[Sample], tuple[NDArray[Any], list[Colour]]]
    file: Callable[[Sample], Path]
    ids: PredictionIds = PredictionIds.TRAIN


def folder_of_maps(folder: Path, samples: Sequence[Sample], ids: PredictionIds = PredictionIds.AUTO) -> Maps:
    """Label PNGs that exist: ``<image id>.png`` below the folder.

    Raises:
        DataError: if there is no such folder, or a prediction is absent or there twice.
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

    def read(sample: Sample) -> tuple[NDArray[Any], list[Colour]]:
        with open_raster(files[sample.id]) as raster:
            return stored_ids_of(raster), palette_of(raster)

    return Maps(str(folder), read, lambda sample: files[sample.id], ids)


def maps_of_archive(archive: Path, samples: Sequence[Sample], classes: Sequence[str]) -> Maps:
    """The labels that a teacher's archive holds; certainties are not read.

    Raises:
        DataError: if it lacks images.
        ArchiveError: if it is damaged, or lacks a class.
    """
    from endauda_cli.archive import CertaintyReader, join_classes  # HDF5 takes as long to load as the rest

    teacher = join_classes(CertaintyReader(archive), classes)
    missing = [sample.id for sample in samples if sample.id not in teacher]
    if missing:
        raise DataError(
            f"{archive}: has no labels of {len(missing)} of {len(samples)} images, first {missing[0]}; "
            "'endauda export-teacher' with that --split adds them"
        )
    return Maps(
        str(archive), lambda sample: (teacher.labels(sample.id), []), lambda sample: archive / sample.id
    )


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
    maps = folder_of_maps(folder, samples, ids)
    (counts,) = count_maps([maps], samples, domain, report, workers)
    return result_of(counts, domain, maps.scored, split)


def count_maps(
    rows: Sequence[Maps],
    samples: Sequence[Sample],
    domain: Domain,
    report: Reporter,
    workers: int = 2,
    boundaries: bool = False,
) -> list[ImageCounts]:
    """Count label maps of one or several origins against the truth of the same images, which is read once.

    Args:
        rows: the maps, by origin.
        samples: images with ground truth.
        domain: class table of both.
        report: told of progress.
        workers: threads.
        boundaries: whether boundaries are counted, too.

    Returns:
        The counts, by origin.

    Raises:
        DataError: as :func:`score_predictions`.
    """
    strays = Strays(domain)
    readings = [Reading(maps.scored, domain, maps.ids) for maps in rows]

    def load(sample: Sample) -> list[_Loaded]:
        ids = stored_truth(sample, domain)
        # Values without a name are told of once, not once per row.
        told = [strays, *[None] * (len(rows) - 1)]
        return [
            _load(sample, ids, maps, domain, of_row, boundaries)
            for maps, of_row in zip(rows, told, strict=True)
        ]

    with ThreadPoolExecutor(workers) as pool:
        report(Tick("scoring", 0, len(samples)))
        loaded = ordered_map(pool, load, samples, workers + 2)
        for done, (sample, of_image) in enumerate(zip(samples, loaded, strict=True), 1):
            for maps, reading, one in zip(rows, readings, of_image, strict=True):
                reading.count(maps.file(sample), sample.id, *one)
            report(
                Tick("scoring", done, len(samples), running(readings[0].confusion) if len(rows) == 1 else "")
            )
    warn_of(strays, report)
    found = []
    for maps, reading in zip(rows, readings, strict=True):
        counts, others = reading.decide(report)
        for number in others if boundaries else ():
            sample = samples[number]
            again = _load(sample, stored_truth(sample, domain), maps, domain, None, True, other=True)
            assert again.boundary is not None
            counts.replace_boundary(number, again.boundary)
        found.append(counts)
    return found


def labels_of(maps: Maps, sample: Sample, domain: Domain) -> NDArray[np.uint8]:
    """An image's map as (H, W) uint8 train ids, for a picture: read as this image alone looks to be meant.

    Raises:
        DataError: if it cannot be read.
    """
    values, palette = maps.read(sample)
    of_truth, of_prediction, pixels = pairs(stored_truth(sample, domain), values)
    assert sample.label is not None
    truth = truth_of_ids(sample.label, of_truth, domain, None, pixels)
    found = read_values(maps.file(sample), of_prediction, palette, domain, maps.ids)
    by_table = looks_like_label_ids(found, truth, pixels, maps.ids, len(domain.classes))
    meaning = found.labels if by_table and found.labels is not None else found.train
    return relabelled(values, of_prediction, meaning)


class _Loaded(NamedTuple):
    """An image's map and truth, as :meth:`Reading.count` takes them."""

    truth: NDArray[np.uint8]
    values: Values
    pixels: NDArray[np.int64]
    boundary: NDArray[np.int64] | None
    by_table: bool


def _load(
    sample: Sample,
    ids: NDArray[Any],
    maps: Maps,
    domain: Domain,
    strays: Strays | None,
    boundaries: bool,
    other: bool = False,
) -> _Loaded:
    """Count the pairs of an image whose truth is ``ids``; its boundaries as its values look to be meant, or in the
    ``other`` way."""
    assert sample.label is not None
    values, palette = maps.read(sample)
    refuse_sizes(ids, values, sample)
    of_truth, of_prediction, pixels = pairs(ids, values)
    truth = truth_of_ids(sample.label, of_truth, domain, strays, pixels)
    found = read_values(maps.file(sample), of_prediction, palette, domain, maps.ids)
    if not boundaries:
        return _Loaded(truth, found, pixels, None, False)
    classes = len(domain.classes)
    by_table = looks_like_label_ids(found, truth, pixels, maps.ids, classes) != other
    prediction = found.labels if by_table and found.labels is not None else found.train
    dense = relabelled(ids, of_truth, truth), relabelled(values, of_prediction, prediction)
    return _Loaded(truth, found, pixels, count_boundaries(*dense, classes), by_table)


def relabelled(
    values: NDArray[Any], found: NDArray[np.int32], meaning: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """An (H, W) map in which each of the ``found`` values is replaced by what it means, uint8."""
    if values.dtype == np.uint8:
        table = np.zeros(256, np.uint8)
        table[found] = meaning
    else:
        known, first = np.unique(found, return_index=True)
        values, table = np.searchsorted(known, values), meaning[first]
    labels: NDArray[np.uint8] = table[values]
    return labels


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
    counts: ImageCounts, domain: Domain, scored: str, split: str, pictures: Path | None = None
) -> EvalResult:
    """What the counts come to, in percent."""
    confusion = counts.confusion
    iou, strict = (_by_class(confusion.iou(strict=how), domain) for how in (False, True))

    def mean(names: Sequence[str]) -> float | None:
        return _percent(confusion.mean_iou([domain.classes.index(name) for name in names]))

    return EvalResult(
        scored=scored,
        target=domain.name,
        split=split,
        images=len(counts.counted),
        miou=_percent(confusion.mean_iou()),
        coverage=100 * confusion.coverage,
        iou=iou,
        subset_miou={title: mean(names) for title, names in domain.subsets.items()},
        pictures=pictures,
        strict_miou=_percent(confusion.mean_iou(strict=True)),
        strict_iou=strict,
        truth=100 * confusion.known,
        pixels=int(confusion.matrix.sum()),
        pixel_accuracy=_percent(confusion.accuracy),
        frequency_weighted_iou=_percent(confusion.frequency_weighted_iou),
        means=tuple(
            ClassMean(title, names, sum(iou[name] is not None for name in names), mean(names))
            for title, names in means_of(domain).items()
        ),
        boundary=_boundary_results(counts, domain),
    )


def further_figures(result: EvalResult) -> list[tuple[str, str]]:
    """What a score says beside IoU and mIoU, in words; figures with two digits."""

    def figure(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.2f}"

    shown = [
        (f"{mean.title} ({mean.occurring} of them occur)", figure(mean.miou))
        for mean in result.means
        if len(mean.classes) < len(result.iou)
    ]
    shown += [
        ("pixel accuracy", figure(result.pixel_accuracy)),
        ("frequency-weighted IoU", figure(result.frequency_weighted_iou)),
    ]
    return shown + [(f"boundary F, {score.tolerance}", figure(score.mean)) for score in result.boundary]


def write_counts(path: Path, counts: ImageCounts, domain: Domain) -> None:
    """``counts.npz``: see :meth:`ImageCounts.arrays`; with the names of the ``classes``.

    Raises:
        DataError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, classes=np.array(domain.classes, np.str_), **counts.arrays())  # type: ignore[arg-type]
    except OSError as error:
        raise DataError(f"{path}: {cannot_write(error)}") from error


def _boundary_results(counts: ImageCounts, domain: Domain) -> tuple[BoundaryScore, ...]:
    found = counts.boundary
    if found is None:
        return ()
    results = []
    for tolerance, scores in zip(TOLERANCES, boundary_scores(found.sum(0)), strict=True):
        known = scores[~np.isnan(scores)]
        mean = _percent(float(known.mean())) if known.size else None
        results.append(BoundaryScore(tolerance, mean, _by_class(scores, domain)))
    return tuple(results)


def _by_class(values: NDArray[np.float64], domain: Domain) -> dict[str, float | None]:
    return {name: _percent(value) for name, value in zip(domain.classes, values, strict=True)}


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * float(value)


def running(confusion: ConfusionMatrix) -> str:
    """The mean so far, beside a bar."""
    return f"mIoU {100 * confusion.mean_iou():.2f}"
