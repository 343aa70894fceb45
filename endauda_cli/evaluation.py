"""Engine: how good label maps are, from a network or from files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.boundaries import count_boundaries
from endauda_cli.distributed import every_ranks, rank, world_size
from endauda_cli.image_counts import ImageCounts, dealt
from endauda_cli.inference import run_network
from endauda_cli.labels import (
    Strays,
    label_files,
    read_train_ids,
    truth_of_ids,
    write_colour,
    write_label,
)
from endauda_cli.metrics import pairs
from endauda_cli.progress import Reporter, Tick
from endauda_cli.report import Report, Row, Table, number, provenance, write_report
from endauda_cli.score_page import (
    Scored,
    bars_beside,
    between,
    further_sections,
    inputs_of,
    pictures,
    scores_table,
)
from endauda_cli.scoring import (
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
from endauda_cli.workspace import REPORT_FILE, write_text

PROCEDURE = Procedure(softmax="first")
"""The reference's evaluation: single scale, no flip, softmax before upsampling (exports have it after)."""

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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
    counts: ImageCounts,
    beside: Path | None = None,
    inputs: Mapping[str, str | None] | None = None,
) -> None:
    """``eval.json``, ``report.html`` and, if the result names it, ``counts.npz`` of a score; pictures are shown if
    predictions were saved.

    Args:
        out: the folder.
        result: the score.
        samples: its images.
        domain: class table.
        counts: what each image adds.
        beside: ``scores.json``, whose rows on the same images the page sets the classes against.
        inputs: what else went in, for the page.
    """
    if result.counts is not None:
        write_counts(result.counts, counts, domain)
    write_text(out / "eval.json", json.dumps(asdict(result), indent=1, default=str) + "\n")
    page, folder = out / REPORT_FILE, result.pictures
    name = Path(result.scored).parent.name or result.scored

    def labels(sample: Sample) -> NDArray[np.uint8]:
        assert folder is not None
        return read_train_ids(folder / f"{sample.id}.png", len(domain.classes))

    row = Scored(name, "run", counts, result, None if folder is None else labels)
    sections = [
        scores_table([row], page),
        bars_beside(row.title, result, beside or out / "none", domain),
        *pictures([row], samples, domain),
        *further_sections([row], domain),
        iou_table(result),
        provenance({**inputs_of(result), **(inputs or {})}),
    ]
    write_report(
        page,
        Report(f"mIoU {number(result.miou)}: {name}", _intro(result), sections, headline=_headline(result)),
        {sample.id for sample in samples},
    )


def _intro(result: EvalResult) -> list[str]:
    told = [
        f"{result.scored} on {result.images} images of {result.target} {result.split}. {result.truth:.2f} % of their "
        "pixels have a class in the truth; only these are scored."
    ]
    if result.coverage < 100:
        told.append(
            f"{result.coverage:.2f} % of the pixels have a prediction. mIoU leaves the others out; counted as wrong, "
            f"as cityscapesScripts does, it is {number(result.strict_miou)}."
        )
    return told


def _headline(result: EvalResult) -> list[tuple[str, str]]:
    told = [("mIoU", f"{number(result.miou)} %")]
    if result.intervals and result.intervals[0].low is not None:
        told.append(("95 % interval", between(result.intervals[0])))
    return [*told, ("pixel accuracy", f"{number(result.pixel_accuracy)} %"), ("images", f"{result.images:,}")]


def iou_table(result: EvalResult) -> Table:
    """IoU of each class, with its interval."""
    rows = []
    for name, iou in result.iou.items():
        one = result.iou_intervals.get(name)
        rows.append(Row([name, number(iou), "n/a" if one is None else between(one)]))
    rows.append(Row(["mIoU", number(result.miou), ""], strong=True))
    rows += [Row([title, number(value), ""], strong=True) for title, value in result.subset_miou.items()]
    return Table("IoU in percent", ["class", "IoU", "95 % interval"], rows)
