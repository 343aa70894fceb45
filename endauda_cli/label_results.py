"""What ``export-labels`` and ``import-labels`` return. Standard library only, as ``results``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  the JSON Schema of --json is made from these annotations


@dataclass(frozen=True)
class DisputedImage:
    """An image on which teachers disagree."""

    image: str
    disputed: float
    """Share of its pixels to which not all teachers give one class, 0..1."""


@dataclass(frozen=True)
class LabelExport:
    """Label maps in the format of another program."""

    folder: Path
    format: str
    labels: str
    """What was written: a label set, a folder or an archive."""
    split: str
    images: int
    skipped: int
    """Of these, how many an earlier run had written already."""
    disputed: tuple[DisputedImage, ...]
    """The images in the order in which the folder lists them, where the label set's journal knows of them."""
    steps: tuple[str, ...]
    """What to do with the folder."""
    commands: tuple[str, ...] = ()
    """The command lines that take corrected labels back and learn from them."""


@dataclass(frozen=True)
class LabelImport:
    """Labels that people corrected."""

    folder: Path
    format: str
    images: int
    empty: int
    """Images that came back without any label, which were left out."""
    commands: tuple[str, ...] = ()
    """The command line that learns from them."""
