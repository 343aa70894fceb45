"""Engine: how good label maps are, from a network or from files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.boundaries import count_boundaries
from endauda_cli.distributed import every_ranks, rank, world_size
from endauda_cli.image_counts import ImageCounts, dealt
from endauda_cli.inference import run_network
from endauda_cli.labels import (
    Strays,
    colourise,
    label_files,
    read_image,
    read_train_ids,
    truth_of_ids,
    write_colour,
    write_label,
)
from endauda_cli.metrics import pairs
from endauda_cli.progress import Reporter, Tick
from endauda_cli.report import Gallery, PictureRow, Report, Row, Table, number, thumbnail, write_report
from endauda_cli.scoring import (
    further_figures,
    refuse_sizes,
    relabelled,
    result_of,
    running,
    stored_truth,
    truth_of,
    warn_of,
    write_counts,
)
from endauda_cli.segmenter import Procedure, Segmenter, label_map
from endauda_cli.threads import ordered_map
from endauda_cli.workspace import write_text

PICTURED_IMAGES = 8
PROCEDURE = Procedure(softmax="first")
"""The reference's evaluation: single scale, no flip, softmax before upsampling (exports have it after)."""

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from endauda_cli.config import InferenceConfig
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Domain
    from endauda_cli.inference import Decode
    from endauda_cli.score_results import EvalResult

    Added = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64] | None]
    """What :meth:`ImageCounts.add` takes beside the image's id."""


@dataclass(frozen=True)
class Scoring:
    """What a score is of.

    Attributes:
        domain: class table of the truth.
        scored: name of the checkpoint, for the result.
        split: likewise.
        save: folder for predictions (train ids) and colour pictures, or ``None``.
        read: reads a label file as train ids, where it is no ground truth of the domain.
        boundaries: whether boundaries are counted, too.
    """

    domain: Domain
    scored: str
    split: str = "val"
    save: Path | None = None
    read: Callable[[Path, Domain], NDArray[np.uint8]] | None = None
    boundaries: bool = False


def evaluate(
    segmenter: Segmenter,
    samples: Sequence[Sample],
    scoring: Scoring,
    config: InferenceConfig,
    device: torch.device,
    report: Reporter,
    decode: Decode | None = None,
) -> EvalResult:
    """Score a network on labelled images at their full size.

    Args:
        segmenter: the network, its preprocessing and procedure (``PROCEDURE`` is the reference's).
        samples: images with ground truth.
        scoring: what the score is of.
        config: how the network is run.
        device: where it runs.
        report: told of progress.
        decode: gives an image as the network takes it; see ``run_network``.

    Raises:
        DataError: if an image or its truth cannot be read, or their sizes differ.
    """
    counts = count_network(segmenter, samples, scoring, config, device, report, decode)
    return result_of(counts, scoring.domain, scoring.scored, scoring.split, scoring.save)


def count_network(
    segmenter: Segmenter,
    samples: Sequence[Sample],
    scoring: Scoring,
    config: InferenceConfig,
    device: torch.device,
    report: Reporter,
    decode: Decode | None = None,
) -> ImageCounts:
    """What each image adds to the score of a network; see :func:`evaluate`."""
    mine = samples[rank() :: world_size()]
    counts = ImageCounts(len(scoring.domain.classes))
    paths = [sample.image for sample in mine]
    predictions = run_network(segmenter, paths, label_map, config, device, report, decode)
    if scoring.save is not None:
        scoring.save.mkdir(parents=True, exist_ok=True)
    strays = Strays(scoring.domain)

    def count(said: tuple[Sample, tuple[NDArray[Any], ...]]) -> Added:
        return _count(said[0], said[1][0], scoring, strays)

    report(Tick("testing", 0, len(mine)))
    with ThreadPoolExecutor(config.workers) as pool:
        counted = ordered_map(pool, count, zip(mine, predictions, strict=True), config.workers + 2)
        for done, (sample, added) in enumerate(zip(mine, counted, strict=True), 1):
            counts.add(sample.id, *added)
            report(Tick("testing", done, len(mine), running(counts.confusion)))
    warn_of(strays, report)
    return dealt(every_ranks(counts))


def _count(sample: Sample, prediction: NDArray[np.uint8], scoring: Scoring, strays: Strays) -> Added:
    """The pairs of train ids of truth and prediction that occur in an image, their pixels, and its boundaries if these
    count; saves the prediction.

    For as many threads as there are cores.
    """
    domain = scoring.domain
    if scoring.read is not None:
        ids: NDArray[Any] = truth_of(sample, domain, strays, scoring.read)
    else:
        ids = stored_truth(sample, domain)
    refuse_sizes(ids, prediction, sample)
    found, predicted, counts = pairs(ids, prediction)
    truth = found.astype(np.uint8)
    if scoring.read is None:
        assert sample.label is not None
        truth = truth_of_ids(sample.label, found, domain, strays, counts)
    if scoring.save is not None:
        path, colours = label_files(scoring.save, sample.id)
        write_label(path, prediction)
        write_colour(colours, prediction, domain.palette)
    boundary = None
    if scoring.boundaries:
        boundary = count_boundaries(relabelled(ids, found, truth), prediction, len(domain.classes))
    return truth, predicted.astype(np.uint8), counts, boundary


def write_evaluation(
    out: Path,
    result: EvalResult,
    samples: Sequence[Sample],
    domain: Domain,
    counts: ImageCounts | None = None,
) -> None:
    """``eval.json`` and ``report.html`` of a score, and ``counts.npz`` if there are counts; pictures are shown if
    predictions were saved."""
    if counts is not None and result.counts is not None:
        write_counts(result.counts, counts, domain)
    write_text(out / "eval.json", json.dumps(asdict(result), indent=1, default=str) + "\n")
    cells = [Row([name, number(iou)]) for name, iou in result.iou.items()]
    cells.append(Row(["mIoU", number(result.miou)], strong=True))
    cells += [Row([title, number(value)], strong=True) for title, value in result.subset_miou.items()]
    sections: list[Table | Gallery] = [
        Table("IoU in percent", ["class", "IoU"], cells),
        further_table(result),
    ]
    if result.pictures is not None:
        rows = []
        for sample in samples[:: max(1, -(-len(samples) // PICTURED_IMAGES))]:
            labels = [
                read_train_ids(result.pictures / f"{sample.id}.png", len(domain.classes)), truth_of(sample, domain)
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


def further_table(result: EvalResult) -> Table:
    """The figures beside the IoUs; how they are counted stands in docs/scoring.md."""
    lists = [
        f"{mean.title}: {', '.join(mean.classes)}"
        for mean in result.means
        if len(mean.classes) < len(result.iou)
    ]
    rows = [Row(row) for row in further_figures(result)]
    return Table("Further figures", ["", "percent"], rows, lists)
