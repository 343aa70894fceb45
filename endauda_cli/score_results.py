"""What ``test`` of several returns: a table of scores, and how they differ. Like ``results``, standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  the JSON Schema of --json is made from these annotations
from typing import Literal

from endauda_cli.results import EvalResult, Interval  # noqa: TC001  likewise


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
    """Of ``download-weights``."""
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
