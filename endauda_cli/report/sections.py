"""What a page is made of: plain values that engines fill in, and ``components`` draws.

Texts are escaped when they are drawn; only ``Markup`` (a link, a drawing) stands as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from markupsafe import Markup
    from numpy.typing import NDArray

    from endauda_cli.domains import Colour

    UInt8 = NDArray[np.uint8]
    Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """A line of a table. ``best`` are the positions of cells to mark; ``strong`` sets the line in bold; ``heat``
    are shades 0..1 of the cells; ``name`` makes it a place that links lead to."""

    cells: Sequence[str]
    best: frozenset[int] = frozenset()
    strong: bool = False
    heat: Sequence[float | None] = ()
    name: str = ""


@dataclass(frozen=True)
class Table:
    """A section with a table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    text: Sequence[str] = ()
    left: bool = False
    """Words rather than figures: set to the left, without a head."""
    words: frozenset[int] = frozenset()
    """Columns of words in a table of figures."""


@dataclass(frozen=True)
class PictureRow:
    """A line of a gallery: (H, W, 3) uint8 RGB pictures, one per column."""

    name: str
    pictures: Sequence[UInt8]
    note: str = ""
    """Said beside the name."""


@dataclass(frozen=True)
class Gallery:
    """A section with pictures, a card per row: a slider leads from column to column, or they stand side by side."""

    title: str
    columns: Sequence[str]
    rows: Sequence[PictureRow]
    legend: Sequence[tuple[str, Colour]] = ()
    text: Sequence[str] = ()
    side_by_side: bool = False
    """How it begins; readers change it."""


@dataclass(frozen=True)
class Figure:
    """A drawing beside the page as ``<name>.png``: (H, W, 3) uint8 RGB. The page has a section of the same."""

    name: str
    picture: UInt8


@dataclass(frozen=True)
class Drawing:
    """A title, and SVG that may stand in a page as it is."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Drawings:
    """A section with drawings side by side, as many as there is room for."""

    title: str
    drawings: Sequence[Drawing]
    text: Sequence[str] = ()


@dataclass(frozen=True)
class BarRow:
    """Values of one row, a bar per name: percent, ``None`` for n/a; with (low, high) ends where these are known."""

    name: str
    values: Sequence[float | None]
    ends: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Bars:
    """A section with bars per name: one row's, and a second one's to set it against, which the reader chooses."""

    title: str
    names: Sequence[str]
    colours: Sequence[Colour]
    rows: Sequence[BarRow]
    text: Sequence[str] = ()
    what: str = "IoU"
    compared: bool = True
    """Whether the difference of two rows says something."""


@dataclass(frozen=True)
class Confusion:
    """A section with confusion matrices: (C, C) int64 pixels, truth in rows, one per row's name."""

    title: str
    classes: Sequence[str]
    matrices: Sequence[tuple[str, Int64]]
    text: Sequence[str] = ()


@dataclass(frozen=True)
class Reliability:
    """A section with diagrams of how often a certainty is right.

    Each is ``{"name": str, "bins": [{"confidence": 0..1, "accuracy": 0..1, "count": int}], "ece": float}``.
    """

    title: str
    diagrams: Sequence[Mapping[str, Any]]
    text: Sequence[str] = ()


Section = Table | Gallery | Drawings | Bars | Confusion | Reliability


@dataclass(frozen=True)
class Report:
    """A page."""

    title: str
    intro: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=tuple)
    figures: Sequence[Figure] = ()
    headline: Sequence[tuple[str, str]] = ()
    """What it comes to: (what, figure), set large above all."""
