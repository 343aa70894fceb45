"""Engine: how good label maps are, from a network or from files."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from endauda_cli.datasets import one_per_image
from endauda_cli.distributed import rank, sum_over_ranks, world_size
from endauda_cli.errors import DataError
from endauda_cli.inference import run_network
from endauda_cli.labels import (
    colourise,
    label_files,
    read_image,
    read_train_ids,
    read_truth,
    write_colour,
    write_label,
)
from endauda_cli.metrics import ConfusionMatrix
from endauda_cli.progress import Reporter, Tick
from endauda_cli.report import Gallery, PictureRow, Report, Row, Table, number, thumbnail, write_report
from endauda_cli.results import EvalResult
from endauda_cli.segmenter import Procedure, Segmenter, label_map
from endauda_cli.threads import ordered_map
from endauda_cli.workspace import write_text

PICTURED_IMAGES = 8
PROCEDURE = Procedure(softmax="first")
"""The reference's evaluation: single scale, no flip, softmax before upsampling (exports have it after)."""

if TYPE_CHECKING:
    from collections.abc import Sequence
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
    """

    domain: Domain
    scored: str
    split: str = "val"
    save: Path | None = None


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
    report(Tick("testing", 0, len(mine)))
    for done, (sample, (prediction,)) in enumerate(zip(mine, predictions, strict=True), 1):
        _count(confusion, _truth(sample, domain), prediction, sample)
        if save is not None:
            path, colours = label_files(save, sample.id)
            write_label(path, prediction)
            write_colour(colours, prediction, domain.palette)
        report(Tick("testing", done, len(mine), _running(confusion)))
    return _result(_over_ranks(confusion), domain, scoring.scored, scoring.split, len(samples), save)


def score_predictions(
    folder: Path,
    samples: Sequence[Sample],
    domain: Domain,
    report: Reporter,
    split: str = "val",
    workers: int = 2,
) -> EvalResult:
    """Score label PNGs that exist: ``<image id>.png`` below the folder. 255 in them is left out (coverage).

    Raises:
        DataError: if a prediction is absent, there twice, unreadable, of another size or class table.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of predictions")
    wanted = {sample.id for sample in samples}
    files = one_per_image(sorted(folder.rglob("*.png")), wanted, "prediction")
    missing = [sample.id for sample in samples if sample.id not in files]
    if missing:
        raise DataError(
            f"{folder}: no prediction for {len(missing)} of {len(samples)} images, first {missing[0]}.png"
        )
    confusion = ConfusionMatrix(len(domain.classes))

    def load(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return _truth(sample, domain), read_train_ids(files[sample.id], len(domain.classes))

    with ThreadPoolExecutor(workers) as pool:
        pairs = ordered_map(pool, load, samples, workers + 2)
        report(Tick("scoring", 0, len(samples)))
        for done, (sample, (truth, prediction)) in enumerate(zip(samples, pairs, strict=True), 1):
            _count(confusion, truth, prediction, sample)
            report(Tick("scoring", done, len(samples), _running(confusion)))
    return _result(confusion, domain, str(folder), split, len(samples), None)


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
    intro = [f"{result.scored} on {result.images} images of {result.target} {result.split}."]
    page = Report(f"mIoU {number(result.miou)}", intro, sections, picture_width=320)
    write_report(out / "report.html", page, {sample.id for sample in samples})


def _truth(sample: Sample, domain: Domain) -> NDArray[np.uint8]:
    if sample.label is None:
        raise DataError(f"{sample.image}: has no ground truth")
    return read_truth(sample.label, domain)


def _count(
    confusion: ConfusionMatrix, truth: NDArray[np.uint8], prediction: NDArray[np.uint8], sample: Sample
) -> None:
    if truth.shape != prediction.shape:
        raise DataError(
            f"{sample.label}: {truth.shape[1]}x{truth.shape[0]} pixels, but the prediction for {sample.id} has "
            f"{prediction.shape[1]}x{prediction.shape[0]}; score at the size of the ground truth"
        )
    confusion.update(truth, prediction)


def _over_ranks(confusion: ConfusionMatrix) -> ConfusionMatrix:
    if world_size() > 1:
        n = confusion.num_classes
        flat = np.append(confusion.matrix.ravel(), [confusion.pixels, confusion.labelled])
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        flat = sum_over_ranks(torch.from_numpy(flat).to(device)).cpu().numpy()
        confusion.matrix = flat[: n * n].reshape(n, n)
        confusion.pixels, confusion.labelled = int(flat[-2]), int(flat[-1])
    return confusion


def _result(
    confusion: ConfusionMatrix, domain: Domain, scored: str, split: str, images: int, pictures: Path | None
) -> EvalResult:
    iou = {name: _percent(value) for name, value in zip(domain.classes, confusion.iou(), strict=True)}
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
    )


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * float(value)


def _running(confusion: ConfusionMatrix) -> str:
    return f"mIoU {100 * confusion.mean_iou():.2f}"
