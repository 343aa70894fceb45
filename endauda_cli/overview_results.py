"""What ``report`` returns: a workspace as its files tell of it. As ``results``, standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  the JSON Schema of --json is made from these annotations


@dataclass(frozen=True)
class StoredScore:
    """A score that ``test`` left; percent."""

    kind: str
    """``teacher``, ``labels``, ``run`` or ``predictions``."""
    name: str
    target: str
    split: str
    images: int
    miou: float | None
    low: float | None
    """Ends of its 95 % interval over images."""
    high: float | None
    page: Path | None
    """Its report."""
    iou: dict[str, float | None]


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher's archive."""

    name: str
    source: str
    folder: Path
    images: int
    bytes: int
    classes: int
    made_from: str
    """Network or import, as far as the archive says."""
    weights_sha256: str | None
    scores: tuple[StoredScore, ...]


@dataclass(frozen=True)
class StoredLabels:
    """A label set of ``fuse``. Shares are 0..1."""

    name: str
    source: str
    split: str
    folder: Path
    rule: str
    policy: str | None
    threshold: float | None
    teachers: tuple[str, ...]
    images: int
    coverage: float | None
    disputed: float | None
    """Share of pixels that teachers give different classes."""
    used_labels: bool
    """Whether the policy looked at labels of the target."""
    miou: float | None
    """Percent, on the labels that ``fuse`` found for these images; no input of the fusion."""
    page: Path | None
    scores: tuple[StoredScore, ...]


@dataclass(frozen=True)
class StoredRun:
    """A training run, or a merge of several."""

    name: str
    source: str
    folder: Path
    network: str
    method: str
    step: int | None
    """How many were done when it last logged."""
    steps: int | None
    last_loss: float | None
    best_miou: float | None
    """Of those that were looked at on labelled target images while it trained; percent."""
    best_step: int | None
    labels: str | None
    """Name of the label set it learnt from."""
    teachers: tuple[str, ...]
    """Whose archives that was fused from."""
    init: str | None
    """What it started from."""
    merged: tuple[str, ...]
    """What it is the average of."""
    checkpoints: tuple[str, ...]
    loss: tuple[tuple[float, float], ...]
    """(step, value), thinned."""
    val_miou: tuple[tuple[float, float], ...]
    page: Path | None
    scores: tuple[StoredScore, ...]


@dataclass(frozen=True)
class Lack:
    """What is not there yet."""

    what: str
    command: str
    """That makes it; words in capitals are the user's."""


@dataclass(frozen=True)
class Unreadable:
    """A file that is there but cannot be taken at its word."""

    file: Path
    reason: str


@dataclass(frozen=True)
class WorkspaceReport:
    """All that ``report`` found, and the page it wrote."""

    workspace: Path
    target: str
    report: Path
    teachers: tuple[StoredTeacher, ...]
    label_sets: tuple[StoredLabels, ...]
    """Newest last."""
    runs: tuple[StoredRun, ...]
    """Newest last."""
    scores: tuple[StoredScore, ...]
    """Rows of the tables of ``test --all`` and the like, best first, table by table."""
    missing: tuple[Lack, ...]
    unreadable: tuple[Unreadable, ...]
