"""Engine: how good label maps are, from a network or from files."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from endauda_cli.datasets import one_per_image
from endauda_cli.distributed import rank, sum_over_ranks, world_size
from endauda_cli.domains import IGNORE
from endauda_cli.errors import DataError
from endauda_cli.foreign import as_label_ids, read_values
from endauda_cli.inference import run_network
from endauda_cli.labels import (
    Strays,
    colourise,
    label_files,
    read_image,
    read_train_ids,
    read_truth,
    refuse_empty_truth,
    train_ids_of,
    write_colour,
    write_label,
)
from endauda_cli.metrics import ConfusionMatrix
from endauda_cli.patterns import files_below
from endauda_cli.progress import Note, Reporter, Tick
from endauda_cli.report import Gallery, PictureRow, Report, Row, Table, number, thumbnail, write_report
from endauda_cli.results import EvalResult
from endauda_cli.segmenter import Procedure, Segmenter, label_map
from endauda_cli.threads import ordered_map
from endauda_cli.types import PredictionIds
from endauda_cli.workspace import write_text

PICTURED_IMAGES = 8
PROCEDURE = Procedure(softmax="first")
"""The reference's evaluation: single scale, no flip, softmax before upsampling (exports have it after)."""

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.config import InferenceConfig
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Domain


@dataclass(frozen=True)
class Scoring:
    """What a score is of.

    Attributes:
        domain: class table of the truth.
        scored: name of the checkpoint, for the result.
        split: likewise.
        save: folder for predictions (train ids) and colour pictures, or ``None``.
        read: reads a label file as train ids, where it is no ground truth of the domain.
    """

    domain: Domain
    scored: str
    split: str = "val"
    save: Path | None = None
    read: Callable[[Path, Domain], NDArray[np.uint8]] | None = None


def evaluate(
    segmenter: Segmenter,
    samples: Sequence[Sample],
    scoring: Scoring,
    config: InferenceConfig,
    device: torch.device,
    report: Reporter,
) -> EvalResult:
    """Score a network on labelled images at their full size.

    Args:
        segmenter: the network, its preprocessing and procedure (``PROCEDURE`` is the reference's).
        samples: images with ground truth.
        scoring: what the score is of.
        config: how the network is run.
        device: where it runs.
        report: told of progress.

    Raises:
        DataError: if an image or its truth cannot be read, or their sizes differ.
    """
    domain, save = scoring.domain, scoring.save
    mine = samples[rank() :: world_size()]
    confusion = ConfusionMatrix(len(domain.classes))
    predictions = run_network(segmenter, [sample.image for sample in mine], label_map, config, device, report)
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
    strays = Strays(domain)
    report(Tick("testing", 0, len(mine)))
    for done, (sample, (prediction,)) in enumerate(zip(mine, predictions, strict=True), 1):
        truth = _truth(sample, domain, strays, scoring.read)
        _refuse_sizes(truth, prediction, sample)
        confusion.update(truth, prediction)
        if save is not None:
            path, colours = label_files(save, sample.id)
            write_label(path, prediction)
            write_colour(colours, prediction, domain.palette)
        report(Tick("testing", done, len(mine), _running(confusion)))
    _warn(strays, report)
    return _result(_over_ranks(confusion), domain, scoring.scored, scoring.split, len(samples), save)


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

    def load(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.int32], bool]:
        return _truth(sample, domain, strays), *read_values(files[sample.id], domain)

    with ThreadPoolExecutor(workers) as pool:
        loaded = ordered_map(pool, load, samples, workers + 2)
        report(Tick("scoring", 0, len(samples)))
        for done, (sample, (truth, values, by_palette)) in enumerate(zip(samples, loaded, strict=True), 1):
            _refuse_sizes(truth, values, sample)
            reading.count(files[sample.id], truth, values, by_palette)
            report(Tick("scoring", done, len(samples), _running(reading.confusion)))
    _warn(strays, report)
    return _result(reading.decide(report), domain, str(folder), split, len(samples), None)


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
        self, file: Path, truth: NDArray[np.uint8], values: NDArray[np.int32], by_palette: bool
    ) -> None:
        """One image.

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
        self._train.update(truth, train)
        self._label.update(truth, labels)

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


def write_evaluation(out: Path, result: EvalResult, samples: Sequence[Sample], domain: Domain) -> None:
    """``eval.json`` and ``report.html`` of a score; pictures are shown if predictions were saved."""
    write_text(out / "eval.json", json.dumps(asdict(result), indent=1, default=str) + "\n")
    cells = [Row([name, number(iou)]) for name, iou in result.iou.items()]
    cells.append(Row(["mIoU", number(result.miou)], strong=True))
    cells += [Row([title, number(value)], strong=True) for title, value in result.subset_miou.items()]
    sections: list[Table | Gallery] = [Table("IoU in percent", ["class", "IoU"], cells)]
    if result.pictures is not None:
        rows = []
        for sample in samples[:: max(1, -(-len(samples) // PICTURED_IMAGES))]:
            labels = [
                read_train_ids(result.pictures / f"{sample.id}.png", len(domain.classes)), _truth(sample, domain)
            ]  # fmt: skip
            maps = [thumbnail(colourise(label, domain.palette), flat=True) for label in labels]
            rows.append(PictureRow(sample.id, [thumbnail(read_image(sample.image)), *maps]))
        legend = list(zip(domain.classes, domain.palette, strict=True))
        sections.append(Gallery("Images", ["image", "prediction", "truth"], rows, legend))
    intro = [
        f"{result.scored} on {result.images} images of {result.target} {result.split}. {result.truth:.2f} % of their "
        "pixels have a class in the truth; only these are scored."
    ]
    if result.coverage < 100:
        intro.append(
            f"{result.coverage:.2f} % of the pixels have a prediction. mIoU leaves the others out; counted as wrong, "
            f"as cityscapesScripts does, it is {number(result.strict_miou)}."
        )
    page = Report(f"mIoU {number(result.miou)}", intro, sections, picture_width=320)
    write_report(out / "report.html", page, {sample.id for sample in samples})


def refuse_unlabelled(samples: Sequence[Sample], domain: Domain, split: str) -> None:
    """Refuse labelled images whose truth holds no class, before anything is run on them.

    Raises:
        DataError: if it holds none, or cannot be read.
    """
    files = [sample.label for sample in samples if sample.label is not None]
    refuse_empty_truth(files, domain, f"{domain.name} {split}")


def _truth(
    sample: Sample,
    domain: Domain,
    strays: Strays | None = None,
    read: Callable[[Path, Domain], NDArray[np.uint8]] | None = None,
) -> NDArray[np.uint8]:
    if sample.label is None:
        raise DataError(f"{sample.image}: has no ground truth")
    if read is not None:
        return read(sample.label, domain)
    return read_truth(sample.label, domain, strays)


def _warn(strays: Strays, report: Reporter) -> None:
    if text := strays.warning():
        report(Note(text, "warning"))


def _refuse_sizes(truth: NDArray[Any], prediction: NDArray[Any], sample: Sample) -> None:
    if truth.shape != prediction.shape:
        raise DataError(
            f"{sample.label}: {truth.shape[1]}x{truth.shape[0]} pixels, but the prediction for {sample.id} has "
            f"{prediction.shape[1]}x{prediction.shape[0]}; score at the size of the ground truth"
        )


def _over_ranks(confusion: ConfusionMatrix) -> ConfusionMatrix:
    if world_size() > 1:
        n = confusion.num_classes
        counts = [confusion.pixels, confusion.labelled]
        flat = np.concatenate([confusion.matrix.ravel(), confusion.missed, counts])
        flat = sum_over_ranks(torch.from_numpy(flat)).numpy()
        confusion.matrix, confusion.missed = flat[: n * n].reshape(n, n), flat[n * n : -2]
        confusion.pixels, confusion.labelled = int(flat[-2]), int(flat[-1])
    return confusion


def _result(
    confusion: ConfusionMatrix, domain: Domain, scored: str, split: str, images: int, pictures: Path | None
) -> EvalResult:
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


def _running(confusion: ConfusionMatrix) -> str:
    return f"mIoU {100 * confusion.mean_iou():.2f}"
