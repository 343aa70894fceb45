"""What ``test`` returns: a score, or a table of several and how they differ. As ``results``, standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  the JSON Schema of --json is made from these annotations
from typing import Literal


@dataclass(frozen=True)
class Interval:
    """Between which figures the truth lies, in 95 of 100 sets of images like this one; percent."""

    over: str
    """What was drawn again: ``images``, ``sequences`` or ``cities``."""
    units: int
    """How many of these there are."""
    low: float | None
    """``None`` where the units are too few."""
    high: float | None


@dataclass(frozen=True)
class ClassMean:
    """A mean IoU over some of the classes, of the same predictions; percent."""

    title: str
    classes: tuple[str, ...]
    """The mean is over those of them that occur."""
    occurring: int
    miou: float | None
    interval: Interval | None = None
    """Over images."""


@dataclass(frozen=True)
class BoundaryScore:
    """How well outlines are followed: F-scores of boundary pixels over all images; percent."""

    tolerance: str
    """Within which a boundary pixel of the same class has to lie."""
    mean: float | None
    """Over the classes that have a boundary in truth or prediction."""
    f: dict[str, float | None]


@dataclass(frozen=True)
class ReliabilityBin:
    """Pixels of about one certainty."""

    confidence: float | None
    """Mean certainty, 0..1; ``None`` without a pixel."""
    accuracy: float | None
    """Share of them that are right, 0..1."""
    count: int


@dataclass(frozen=True)
class Reliability:
    """How certainties compare with how often they are right; all errors 0..1, over pixels with a label and a true
    class."""

    bins: tuple[ReliabilityBin, ...]
    """15 of equal width, of the labels' certainties."""
    ece: float
    """Expected calibration error: distance of certainty and accuracy in a bin, mean over pixels."""
    mce: float
    """The largest distance of a bin."""
    classwise: dict[str, float]
    """The same error of each class's certainty at every pixel, right where the truth is that class."""
    classwise_mean: float | None
    """``None`` where only labels have a certainty."""
    log_loss: float
    """Mean of -ln of the true class's certainty."""
    brier: float
    """Mean squared distance of all certainties from the truth, 0..2."""
    pixels: int


@dataclass(frozen=True, kw_only=True)
class Calibration(Reliability):
    """Reliability as it is, and after a temperature."""

    temperature: float
    """Given, or of least logarithmic loss on all images."""
    fitted_on: str
    """``given``; else ``sequences`` or ``images``: half of them had the temperature that was fitted to the other half,
    both ways, so ``after`` judges none on what it was fitted to."""
    after: Reliability


@dataclass(frozen=True)
class EvalResult:
    """A score. IoUs are percent; ``None`` is n/a: the class occurs neither in truth nor in prediction."""

    scored: str
    """What was scored: a checkpoint or a folder."""
    target: str
    split: str
    images: int
    miou: float | None
    """Mean over the classes that occur; pixels without a prediction (255) are left out."""
    coverage: float
    """Percent of all pixels that have a prediction."""
    iou: dict[str, float | None]
    subset_miou: dict[str, float | None]
    """Means over the domain's subsets, such as SYNTHIA's 13 classes."""
    pictures: Path | None = None
    strict_miou: float | None = None
    """As cityscapesScripts counts: a pixel without a prediction (255) is wrong. Equal to ``miou`` at full coverage."""
    strict_iou: dict[str, float | None] = field(default_factory=dict)
    """Likewise."""
    truth: float = 100.0
    """Percent of all pixels whose truth is a class; only these are scored."""
    pixels: int = 0
    """Counted: their truth is a class, and they have a prediction."""
    pixel_accuracy: float | None = None
    """Percent of these that are right."""
    frequency_weighted_iou: float | None = None
    """Mean of the IoUs, each weighted by how many of these pixels are of the class."""
    means: tuple[ClassMean, ...] = ()
    """Over all classes, and over those lists of 19, 16 and 13 that the domain has all of."""
    boundary: tuple[BoundaryScore, ...] = ()
    """By tolerance, if boundaries were counted."""
    counts: Path | None = None
    """``counts.npz``, what each image adds to all this."""
    intervals: tuple[Interval, ...] = ()
    """Of ``miou``."""
    iou_intervals: dict[str, Interval | None] = field(default_factory=dict)
    """Of ``iou``, over images."""
    calibration: Calibration | None = None
    """Of what has certainties, if it was asked for."""


@dataclass(frozen=True)
class Comparison:
    """Two rows on the same images, a against b; points of percent."""

    a: str
    b: str
    measure: Literal["mIoU", "strict mIoU"]
    """``strict`` counts pixels without a prediction as wrong; given where a row has such pixels."""
    difference: float | None
    """a - b."""
    intervals: tuple[Interval, ...]
    """Of the difference."""
    real: bool | None
    """Whether the interval over images does not hold 0; ``None`` without one."""
    wins: int
    """Images in which a has the higher mIoU of that image alone."""
    losses: int
    ties: int
    sign_p: float
    """How likely such a lead in wins or losses is by chance, 0..1."""
    iou: dict[str, float | None]
    """Difference per class."""


@dataclass(frozen=True)
class ScoredRow:
    """One of several that were scored on the same images."""

    name: str
    kind: Literal["teacher", "labels", "run", "predictions"]
    score: EvalResult


@dataclass(frozen=True)
class PublishedScore:
    """A figure that somebody published, and how far rows are from it."""

    name: str
    """Of ``download-weights``, or a paper's."""
    what: str
    page: str
    classes: int
    """Over so many classes; a row's mean over the same ones is held against it."""
    miou: float
    differences: dict[str, float | None]
    """By row: the row's mean - this, points of percent; ``None`` where it has no mean over these classes."""
    within: dict[str, bool | None]
    """By row: whether this lies in the row's interval over images."""


@dataclass(frozen=True)
class ScoreTable:
    """Several scores on the same images, and how they differ."""

    target: str
    split: str
    images: int
    rows: tuple[ScoredRow, ...]
    """Best first."""
    comparisons: tuple[Comparison, ...]
    report: Path
    published: tuple[PublishedScore, ...] = ()
    """With ``--compare published``."""
